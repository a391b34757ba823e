"""A model that takes more memory than it may is ended before the kernel has to choose whom to end."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.programs import kill_and_wait, wait_for
from tests.scenarios.faults.watch import watching, workers
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model

REASON = re.compile(r"the worker of instance '(\w+)' had (\d+) MiB of memory, more than its MEMORY_LIMIT_MIB of 256")
# Answers once a process of its own has had as many MiB as the request says, many of them for a while.
PARENT = """
import subprocess
import sys

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            (mib,) = request.inputs()[0].as_numpy().reshape(-1)
            code = f"kept = b'x' * ({mib} << 20); print(flush=True); input()"
            with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
                child.stdout.readline()
                time.sleep(mib / 300)
                child.communicate(b"\\n")
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", request.inputs()[0].as_numpy())]))
        return responses
"""
LIMIT = 'parameters { key: "MEMORY_LIMIT_MIB" value { string_value: "256" } }\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("memory") / "models", "simple")
    write_victim(repository, MEMORY_LIMIT_MIB="256")
    write_model(repository, "parent", PARENT, extra=LIMIT)
    with serving([repository], make_run_dir()) as running:
        yield running


def launcher_log(server: Server) -> str:
    return (server.run_dir / "logs" / "launcher.log").read_text()


def check_that_it_tells(server: Server, status: int, text: str, instance: str) -> None:
    found = REASON.search(text)
    assert status == 500 and found is not None and found[1] == instance, (status, text)
    assert 256 < int(found[2]) <= 1000
    assert f"of '{instance}'" in launcher_log(server) and "MEMORY_LIMIT_MIB of 256: it is killed" in launcher_log(
        server
    )


@pytest.mark.timeout(60)
def test_too_much_memory(server: Server) -> None:
    """The request is run twice; those beside and behind it are answered."""
    with watching(server) as watch, ThreadPoolExecutor() as clients:
        before = launcher_log(server).count("it is killed")
        first = clients.submit(say, server, "sleep 0.2")
        texts = [f"hello {number}" for number in range(6)]
        others = [clients.submit(say, server, text) for text in texts[:3]]
        eater = clients.submit(say, server, "allocate 600")
        others += [clients.submit(say, server, text) for text in texts[3:]]
        check_that_it_tells(server, *eater.result(), "victim_0_0")
        assert first.result()[0] == 200
        assert [other.result() for other in others] == [(200, text) for text in texts]
        assert launcher_log(server).count("it is killed") == before + 2
        watch.back_within(5, lambda: say(server, "hello")[0] == 200)


@pytest.mark.timeout(60)
def test_memory_of_what_a_model_has_started(server: Server) -> None:
    def ask(mib: int) -> tuple[int, str]:
        body = f'{{"inputs":[{{"name":"INPUT0","shape":[1],"datatype":"INT32","data":[{mib}]}}]}}'
        status, answer = server.request("POST", "/v2/models/parent/infer", body.encode())
        return status, answer.decode()

    with watching(server) as watch:
        assert ask(20)[0] == 200
        check_that_it_tells(server, *ask(600), "parent_0_0")
        watch.back_within(5, lambda: ask(20)[0] == 200)


@pytest.mark.timeout(60)
def test_a_limit_outlives_the_launcher(server: Server) -> None:
    """The next launcher knows it, although it has not started the worker."""
    with watching(server) as watch:
        before = workers(server)
        kill_and_wait(server, "launcher")
        wait_for(server, lambda: "took over worker" in launcher_log(server))
        assert workers(server) == before
        check_that_it_tells(server, *say(server, "allocate 600"), "victim_0_0")
        watch.back_within(5, lambda: say(server, "hello")[0] == 200)


@pytest.mark.timeout(60)
def test_the_kernel_would_end_a_worker_first(server: Server) -> None:
    """Not the broker, which all models need."""

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    pid = next(iter(workers(server)))
    assert score(pid) > score(server.program_pid("broker"))
    with watching(server) as watch:  # as the kernel does it
        os.kill(watch.worker_pid("victim"), signal.SIGKILL)
        watch.back_within(5, lambda: say(server, "hello")[0] == 200)
