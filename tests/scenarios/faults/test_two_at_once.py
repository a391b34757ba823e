"""Several processes are killed in the same moment: the next ones put everything together again."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.programs import BROKEN, runs, successor, wait_for
from tests.scenarios.faults.traffic import asking_over_grpc
from tests.scenarios.faults.watch import pids_of, watching, workers
from tests.scenarios.harness import Server, serving
from tests.scenarios.load import Load

TOGETHER = [
    ("broker", "worker simple_0"),
    ("broker", "launcher"),
    ("launcher", "worker simple_0"),
    ("broker", "http"),
    ("http", "worker victim_0"),
    ("launcher", "template", "worker simple_0"),
    ("broker", "launcher", "http"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("together") / "models", "simple")
    write_victim(repository)
    with serving([repository], make_run_dir()) as running:
        yield running


@pytest.mark.timeout(60)
@pytest.mark.parametrize("roles", TOGETHER, ids="+".join)
def test_killed_together(server: Server, roles: tuple[str, ...]) -> None:
    """Only connections that were open on a killed frontend see an error; workers that were not killed live on."""
    before = workers(server)
    pids = [pid for role in roles for pid in pids_of(server, role)]
    with (
        watching(server, bystanders=False, settles_within_s=10),
        asking_over_grpc(server) as over_grpc,
        ThreadPoolExecutor() as clients,
    ):
        with Load(server.http_port, clients=2) as load:
            load.wait_for_answers(0, 20, timeout_s=10)
            over_grpc.wait_for_answer()
            asked = clients.submit(say, server, "sleep 2")
            wait_for(server, lambda: runs(server, "victim"))
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for role, pid in zip(roles, pids, strict=True):
                successor(server, role, pid)
            over_grpc.wait_for_answer()
            wait_for(server, server.ready)
            load.wait_for_answers(time.monotonic(), 20, timeout_s=10)
        if "http" in roles:
            with suppress(OSError):
                asked.result()
            assert all(problem.startswith(BROKEN) for problem in load.problems()), load.problems()[:5]
        else:
            assert asked.result() == (200, "sleep 2")
            load.check()
        assert say(server, "hello") == (200, "hello")
    assert not over_grpc.problems, over_grpc.problems
    assert {pid: name for pid, name in before.items() if pid not in pids}.items() <= workers(server).items()
