"""Whatever is killed, in whatever order: nothing remains that nobody looks after, and the next server starts."""

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from conch.process import lock_holder
from conch.run_dir import RunDir
from tests.scenarios.conftest import Serve, copy_examples
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.programs import kill, runs, wait_for
from tests.scenarios.faults.watch import pids_of, role, workers
from tests.scenarios.harness import Server
from tests.scenarios.load import Load
from tests.scenarios.malformed_cases import SIMPLE, request
from tests.scenarios.models import write_model

SEEDS = range(3)
#: a worker that neither broker nor launcher looks after ends after 10 s
ALONE_WITHIN_S = 25.0
#: these stop by themselves when supervisord or ``conch serve`` is gone
PROGRAMS = {"serve", "supervisord", "broker", "launcher", "http", "grpc", "metrics"}
#: between two requests a connection is closed, and then nobody listens
ENDED = ("ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "BrokenPipeError", "503")

# Cannot be loaded once a file is there.
FRAGILE = """
class TritonPythonModel:
    def initialize(self, args):
        if os.path.exists(os.path.join(args["model_repository"], "broken")):
            os._exit(3)

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", r.inputs()[0].as_numpy())]) for r in requests]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = copy_examples(tmp_path / "models", "simple")
    write_victim(repository)
    return repository


def kill_in_any_order(server: Server, choice: random.Random) -> list[str]:
    """Kills processes one by one, ``conch serve`` or supervisord among them; between two of them it may wait for what
    the others do about it. Returns the roles."""
    names = workers(server)
    victims = [(role(pid, names), pid) for pid in server.pids()]
    choice.shuffle(victims)
    first = min(position for position, (name, _) in enumerate(victims) if name in ("serve", "supervisord"))
    victims = victims[: choice.randint(first + 1, len(victims))]
    for _, pid in victims:
        known = set(server.pids())
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if choice.random() < 0.5:
            deadline = time.monotonic() + choice.random() * 0.3
            while set(server.pids()) <= known and time.monotonic() < deadline:
                time.sleep(0.01)
    return [name for name, _ in victims]


def programs_have_ended(server: Server) -> bool:
    if server.process is not None:
        server.process.poll()
    names = workers(server)
    return not PROGRAMS & {role(pid, names) for pid in server.pids()}


@pytest.mark.timeout(120)
def test_killed_in_any_order(repository: Path, make_run_dir: Callable[[], Path]) -> None:
    """Under load. The programs end by themselves; workers wait for the next server, which takes them over or ends them.
    In the end nothing is left."""
    run_dir = make_run_dir()
    server = Server([repository], run_dir)
    history = []
    try:
        for seed in SEEDS:
            server = again(server)
            server.start()
            assert server.request("POST", SIMPLE, request())[0] == 200
            with Load(server.http_port, clients=2, timeout_s=5) as load:
                load.wait_for_answers(0, 5, timeout_s=10)
                history.append(kill_in_any_order(server, random.Random(seed)))
            assert not [problem for problem in load.problems() if problem.startswith("asked")]
            wait_for(server, partial(programs_have_ended, server), timeout_s=20)
            close(server)
        server = again(server)
        server.start()
        assert server.request("POST", SIMPLE, request())[0] == 200
        assert say(server, "hello") == (200, "hello")
        assert server.stop() == 0, server.report()
        assert not server.leftovers(), server.report()
    except BaseException:
        print(history, server.report())
        raise
    finally:
        server.kill_everything()


def again(server: Server) -> Server:
    """The next life of a server: the same run directory and ports."""
    return Server(server.repositories, server.run_dir, (), server.http_port, server.grpc_port, server.metrics_port)


def close(server: Server) -> None:
    """What is left of a server whose ``conch serve`` has ended."""
    assert server.process is not None and server.process.stdout is not None
    server.process.wait(5)
    server.process.stdout.close()


@pytest.mark.timeout(90)
def test_workers_alone(repository: Path, make_run_dir: Callable[[], Path]) -> None:
    """Everybody but the workers is killed at once: they end by themselves after ten seconds. What is then left in
    /dev/shm the next server removes."""
    server = Server([repository], make_run_dir())
    try:
        server.start()
        alone = workers(server)
        assert sorted(alone.values()) == ["simple_0", "victim_0"]
        for pid in set(server.pids()) - alone.keys():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(server, lambda: programs_have_ended(server))
        assert server.pids()
        wait_for(server, lambda: not server.pids(), timeout_s=ALONE_WITHIN_S)
        close(server)
        server = again(server)
        server.start()
        assert server.stop() == 0, server.report()
        assert not server.leftovers(), server.report()
    finally:
        server.kill_everything()


@pytest.mark.timeout(60)
def test_serve_killed(repository: Path, make_run_dir: Callable[[], Path]) -> None:
    """Nothing goes on without the command that started it."""
    server = Server([repository], make_run_dir())
    try:
        server.start()
        kill(server, "serve")
        wait_for(server, lambda: not server.pids(), timeout_s=20)
        close(server)
        assert not server.leftovers(), server.report()
    finally:
        server.kill_everything()


@pytest.mark.timeout(60)
def test_the_supervisor_killed(repository: Path, make_run_dir: Callable[[], Path]) -> None:
    """What was accepted is answered, then everything ends in order, and ``conch serve`` says that it went wrong."""
    server = Server([repository], make_run_dir())
    try:
        server.start()
        with ThreadPoolExecutor() as clients:
            with Load(server.http_port, clients=2) as load:
                asked = clients.submit(say, server, "sleep 1")
                wait_for(server, lambda: runs(server, "victim"))
                kill(server, "supervisord")
                assert asked.result() == (200, "sleep 1")
            assert not [each for each in load.problems() if not each.startswith(ENDED)], load.problems()
            assert server.wait(20) == 1, server.report()
        assert not server.leftovers(), server.report()
    finally:
        server.kill_everything()


@pytest.mark.timeout(60)
def test_stopped_while_the_broker_is_restarted(serve: Serve, repository: Path) -> None:
    """The fixture stops it: exit status 0, and nothing is left."""
    kill(serve(repository), "broker")


@pytest.mark.timeout(60)
def test_stopped_while_a_worker_is_in_its_back_off(serve: Serve, repository: Path) -> None:
    write_model(repository, "fragile", FRAGILE)
    server = serve(repository)
    (repository / "fragile" / "broken").touch()
    (pid,) = [pid for pid, name in workers(server).items() if name == "fragile_0"]
    os.kill(pid, signal.SIGKILL)
    wait_for(server, lambda: any(row["state"] == "backed-off" for row in server.status()["instances"]))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("order", ["hang", "stop"])
def test_stopped_with_a_hung_model(repository: Path, make_run_dir: Callable[[], Path], order: str) -> None:
    """It does not keep the server beyond its time; whoever waited for it is answered or cut off."""
    server = Server([repository], make_run_dir(), ["--exit-timeout-secs=2"])
    try:
        server.start()
        with ThreadPoolExecutor() as clients:
            asked = clients.submit(say, server, order)
            wait_for(server, lambda: runs(server, "victim"))
            began_s = time.monotonic()
            assert server.process is not None
            server.process.terminate()
            assert server.wait(20) == 1, server.report()
            assert time.monotonic() - began_s < 12
            with suppress(OSError):
                asked.result()
        assert not server.leftovers(), server.report()
        assert lock_holder(RunDir(server.run_dir).supervisor_lock) is None
        assert not pids_of(server, "worker victim_0")
    finally:
        server.kill_everything()
