"""The death of the broker, a frontend of each protocol, the launcher, and of everything at once."""

import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from conch.cli.ports import answers
from conch.run_dir import RunDir
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
        pids = server.program_pids(name)
        if pids and pids[0] not in (0, other_than):
            return pids[0]
    raise AssertionError(server.report())


def wait_for(server: Server, condition: Callable[[], bool], timeout_s: float = RESTART_WITHIN_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, server.report()
        time.sleep(0.01)


def wait_for_starts(server: Server, name: str, count: int) -> None:
    """Until this HTTP frontend listens for the ``count``-th time."""
    log = RunDir(server.run_dir).logs / f"{name}.log"
    wait_for(server, lambda: log.read_text().count("Started HTTPService") == count)


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
def test_one_of_two_frontends_killed(serve: Serve, simple_repository: Path) -> None:
    """The other one takes every new connection in the meantime, and each has its log."""
    server = serve(simple_repository, "--http-process-count=2")
    wait_for(server, lambda: len(server.program_pids("http", "http-2")) == 2)
    for name in ("http", "http-2"):
        killed = server.program_pid(name)
        os.kill(killed, signal.SIGKILL)
        # the kernel stops dealing out connections to a dead process before anybody can see that it is dead
        while server.program_pids(name) == [killed]:
            assert server.request("POST", SIMPLE, request())[0] == 200
        for _ in range(20):
            assert server.request("POST", SIMPLE, request())[0] == 200
        wait_for_starts(server, name, 2)


@pytest.mark.timeout(60)
def test_grpc_frontend_killed(serve: Serve, simple_repository: Path) -> None:
    """HTTP does not notice; gRPC is back soon, with the same worker."""
    server = serve(simple_repository)
    worker = server.worker_pids("simple")
    frontend = server.program_pid("grpc")
    assert adds_over_grpc(server)
    with Load(server.http_port, clients=2) as load:
        load.wait_for_answers(0, 20, timeout_s=5)
        killed_s = time.monotonic()
        os.kill(frontend, signal.SIGKILL)
        wait_for(server, lambda: adds_over_grpc(server))
        load.wait_for_answers(killed_s, 20, timeout_s=5)
    load.check()
    assert server.program_pid("grpc") != frontend
    assert server.worker_pids("simple") == worker


@pytest.mark.timeout(60)
def test_metrics_frontend_killed(serve: Serve, simple_repository: Path) -> None:
    """Nobody else notices, and the counts go on: the broker has them."""
    server = serve(simple_repository)
    frontend = server.program_pid("metrics")
    assert server.request("POST", SIMPLE, request())[0] == 200
    os.kill(frontend, signal.SIGKILL)
    wait_for_program(server, "metrics", frontend)
    wait_for(server, lambda: answers("127.0.0.1", server.metrics_port))
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10).read()
    assert b'nv_inference_request_success{model="simple",version="1"} 1\n' in page


def adds_over_grpc(server: Server) -> bool:
    """False while there is nobody to ask."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        inputs = []
        for name, value in (("INPUT0", 1), ("INPUT1", 2)):
            inputs.append(tritonclient.grpc.InferInput(name, [1, 16], "INT32"))
            inputs[-1].set_data_from_numpy(numpy.full((1, 16), value, numpy.int32))
        try:
            result = client.infer("simple", inputs, client_timeout=10)
        except InferenceServerException as error:
            assert error.status() == "StatusCode.UNAVAILABLE", error
            return False
        assert result.as_numpy("OUTPUT0").tolist() == [[3] * 16]
        return True


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
