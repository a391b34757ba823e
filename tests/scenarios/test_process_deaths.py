"""The death of the broker, a frontend, the launcher, and of everything at once."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import status
from tests.scenarios.conftest import Serve
from tests.scenarios.harness import Server
from tests.scenarios.load import Load
from tests.scenarios.malformed_cases import SIMPLE, request

#: supervisord takes one or two seconds to start a program again
RESTART_WITHIN_S = 8.0


def wait_for_program(server: Server, name: str, other_than: int, timeout_s: float = RESTART_WITHIN_S) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        pids = [row["pid"] for row in server.status()["processes"] if row["name"].split(":")[0] == name]
        if pids and pids[0] not in (0, other_than):
            return int(pids[0])
    raise AssertionError(server.report())


@pytest.mark.timeout(60)
def test_broker_killed_under_load(serve: Serve, simple_repository: Path) -> None:
    """Requests wait, and all are answered by the next broker; the model is not loaded again."""
    server = serve(simple_repository)
    worker = server.worker_pids("simple")
    broker = server.program_pid("broker")
    with Load(server.http_port, clients=4) as load:
        load.wait_for_answers(0, 50, timeout_s=5)
        for _ in range(2):
            killed_s = time.monotonic()
            os.kill(broker, signal.SIGKILL)
            load.wait_for_answers(killed_s, 50, timeout_s=RESTART_WITHIN_S)
            broker = wait_for_program(server, "broker", broker)
    load.check()
    assert server.worker_pids("simple") == worker
    assert server.ready()


@pytest.mark.timeout(60)
def test_launcher_killed(serve: Serve, simple_repository: Path) -> None:
    """Requests are answered without it; its successor watches over the workers and starts them again when they die."""
    server = serve(simple_repository)
    launcher = server.program_pid("launcher")
    with Load(server.http_port, clients=2) as load:
        load.wait_for_answers(0, 20, timeout_s=5)
        os.kill(launcher, signal.SIGKILL)
        wait_for_program(server, "launcher", launcher)
        killed_s = time.monotonic()
        # it may just be replacing the worker that it took over
        for pid in server.worker_pids("simple"):
            if status(pid) is not None:
                os.kill(pid, signal.SIGKILL)
        load.wait_for_answers(killed_s, 20, timeout_s=RESTART_WITHIN_S)
    load.check()


@pytest.mark.timeout(60)
def test_frontend_killed(serve: Serve, simple_repository: Path) -> None:
    """Its connections break, and its successor answers; the worker forgets what it had leased to the dead one."""
    server = serve(simple_repository)
    worker = server.worker_pids("simple")
    frontend = server.program_pid("http")
    with Load(server.http_port, clients=4) as load:
        load.wait_for_answers(0, 50, timeout_s=5)
        os.kill(frontend, signal.SIGKILL)
        wait_for_program(server, "http", frontend)
        load.wait_for_answers(time.monotonic(), 50, timeout_s=RESTART_WITHIN_S)
    wrong = [problem for problem in load.problems() if problem.startswith("asked")]
    assert not wrong
    # each client loses at most the request that it was waiting for, and then finds nobody for a while
    refusals = ("ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "BrokenPipeError")
    assert all(problem.startswith(refusals) for problem in load.problems()), load.problems()[:5]
    assert server.worker_pids("simple") == worker


@pytest.mark.timeout(60)
def test_everything_killed_and_started_again(simple_repository: Path, make_run_dir: Callable[[], Path]) -> None:
    run_dir = make_run_dir()
    first = Server([simple_repository], run_dir)
    try:
        first.start()
        with Load(first.http_port, clients=4) as load:
            load.wait_for_answers(0, 50, timeout_s=5)
            first.kill_everything()
    finally:
        first.kill_everything()
    assert not [problem for problem in load.problems() if problem.startswith("asked")]

    second = Server([simple_repository], run_dir, http_port=first.http_port)
    try:
        second.start()
        assert second.request("POST", SIMPLE, request())[0] == 200
        assert second.stop() == 0, second.report()
        assert not second.leftovers(), second.report()
    finally:
        second.kill_everything()


@pytest.mark.timeout(60)
def test_serve_killed(simple_repository: Path, make_run_dir: Callable[[], Path]) -> None:
    """Nothing goes on without the command that started it, or it goes on and says so to the next one."""
    server = Server([simple_repository], make_run_dir())
    try:
        server.start()
        assert server.process is not None
        server.process.kill()
        server.wait(5)
        deadline = time.monotonic() + 20
        while server.pids():
            assert time.monotonic() < deadline, server.report()
            time.sleep(0.05)
        assert not server.leftovers(), server.report()
    finally:
        server.kill_everything()
