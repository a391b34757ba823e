"""The launcher cannot do what it should, and models that print without end."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conch.run_dir import RunDir
from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.limits import no_descriptor
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.programs import wait_for
from tests.scenarios.faults.watch import Watch, pids_of, watching, workers
from tests.scenarios.harness import Server, serving

MOST_LOG_MIB = 20
KEPT_LOGS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("launcher") / "models", "simple")
    write_victim(repository)
    with serving([repository], make_run_dir()) as running:
        yield running


def launcher_log(server: Server) -> str:
    return (server.run_dir / "logs" / "launcher.log").read_text()


def is_back(server: Server) -> bool:
    return say(server, "hello") == (200, "hello")


def others(server: Server, model: str) -> dict[int, str]:
    """Workers of all other models."""
    return {pid: of for pid, of in workers(server).items() if not of.startswith(model)}


def kill_worker(watch: Watch) -> int:
    pid = watch.worker_pid("victim")
    os.kill(pid, signal.SIGKILL)
    return pid


def kill_template(server: Server) -> None:
    """Or a worker that it is just forking. Returns when it is gone."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = pids_of(server, "template")
        return bool(found)

    wait_for(server, is_there)
    with contextlib.suppress(ProcessLookupError):
        os.kill(found[0], signal.SIGKILL)
    wait_for(server, lambda: found[0] not in pids_of(server, "template"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("first", ["template", "worker"])
def test_the_template_is_killed_while_a_worker_is_started(server: Server, first: str) -> None:
    """Whichever dies first, and when two templates die in a row."""
    with watching(server) as watch:
        bystanders = others(server, "victim")
        if first == "template":
            kill_template(server)
            kill_worker(watch)
        else:
            kill_worker(watch)
            kill_template(server)
        kill_template(server)
        watch.back_within(10, lambda: is_back(server))
        assert others(server, "victim") == bystanders
        wait_for(server, lambda: len(pids_of(server, "template")) == 1)


@pytest.mark.timeout(60)
def test_no_descriptors_while_a_worker_dies(server: Server) -> None:
    """What was asked is answered once there are some again; everybody else goes on."""
    with watching(server) as watch:
        launcher = server.program_pid("launcher")
        with no_descriptor(launcher):
            kill_worker(watch)
            wait_for(server, lambda: "cannot be looked after: Too many open files" in launcher_log(server))
        watch.back_within(10, lambda: is_back(server))
        assert server.program_pid("launcher") == launcher


@pytest.mark.timeout(60)
def test_a_flood_of_output(server: Server) -> None:
    """It is answered, does not fill the disk, and what is printed afterwards is in the log."""
    with watching(server):
        assert say(server, "flood 300") == (200, "flood 300")
        log = RunDir(server.run_dir).model_log("victim")
        wait_for(server, lambda: log.stat().st_size <= MOST_LOG_MIB << 20)
        kept = list(log.parent.glob("victim.log.*"))
        assert 1 <= len(kept) <= KEPT_LOGS
        assert all(path.stat().st_size <= MOST_LOG_MIB << 20 for path in kept)
        assert say(server, "raise")[0] == 500
        assert "told to raise" in log.read_text()
