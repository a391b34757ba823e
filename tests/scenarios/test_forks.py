"""Models that fork: what their children have of the server is their parents'."""

from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import tritonclient.http

from tests.scenarios import bls_models
from tests.scenarios.bls_models import TIMEOUT_S, Run
from tests.scenarios.harness import Server, serving

FORKED = "TritonModelException: a process that a model has forked cannot reach other models or clients"

HEAD = """
import gc
import multiprocessing
import os

fork = multiprocessing.get_context("fork")


def in_child(function):
    receiver, sender = fork.Pipe(duplex=False)
    child = fork.Process(target=lambda: sender.send(function()))
    child.start()
    sender.close()
    found = receiver.recv()
    child.join()
    return found
"""

# Answers from a child, then by itself, with what the child was told.
ANSWERS = """
import os


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            receiving, sending = os.pipe()
            pid = os.fork()
            if not pid:
                response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.zeros(1, np.int32))])
                os.write(sending, raised(lambda: sender.send(response)).encode())
                os._exit(0)
            os.waitpid(pid, 0)
            told = "a process that a model has forked" in os.read(receiving, 1000).decode()
            os.close(receiving)
            os.close(sending)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([told], np.int32))]), flags=FINAL)
"""


@pytest.fixture(scope="module")
def forking_server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("forks")
    bls_models.write_script(repository)
    bls_models.write(repository, "double", bls_models.DOUBLE)
    bls_models.write(repository, "count", bls_models.COUNT, decoupled=True)
    bls_models.write(repository, "answers", ANSWERS)
    with serving([repository], make_run_dir()) as server:
        yield server


@pytest.fixture
def run(forking_server: Server) -> Iterator[Run]:
    with bls_models.scripts(forking_server.url) as run:
        yield lambda code: run(HEAD + dedent(code))


def test_a_child_cannot_ask(run: Run) -> None:
    found = run("ask('double'); result = [in_child(lambda: raised(lambda: ask('double'))), shown(ask('double'))]")
    assert found[0].startswith(FORKED) and found[1] == [[2, 4, 6]]


def test_a_child_cannot_go_on_with_an_iterator(run: Run) -> None:
    code = """
        responses = ask("count", decoupled=True)
        next(responses)
        told = in_child(lambda: raised(lambda: next(responses)))
        in_child(responses.cancel)
        result = [told, [shown(each) for each in responses]]
    """
    told, rest = run(code)
    assert told.startswith(FORKED) and rest == [[[1]], [[2]], []]


def test_a_pool_of_processes_ends(run: Run) -> None:
    code = """
        with fork.Pool(2) as pool:
            result = pool.map(abs, [-1, -2, -3])
    """
    assert run(code) == [1, 2, 3]


def test_a_child_reads_tensors(run: Run) -> None:
    code = """
        tensor = ask("double", pb_utils.Tensor("IN", np.arange(1 << 18, dtype=np.int32))).output_tensors()[0]
        result = in_child(lambda: tensor.as_numpy()[:3].tolist())
    """
    assert run(code) == [0, 2, 4]


def test_what_a_child_drops_its_parent_still_reads(run: Run) -> None:
    code = """
        big = np.arange(1 << 18, dtype=np.int32)
        kept = [ask("double", pb_utils.Tensor("IN", big)).output_tensors()]

        def drop():
            kept.clear()
            gc.collect()

        in_child(drop)
        for _ in range(4):
            ask("double", pb_utils.Tensor("IN", np.zeros(1 << 18, np.int32)))
        result = bool((kept[0][0].as_numpy() == 2 * big).all())
    """
    assert run(code) is True


@pytest.mark.parametrize(("ends", "status"), [("sys.exit(3)", 3), ("raise KeyError", 1), ("pass", 1)])
def test_a_child_that_leaves_execute_ends(run: Run, ends: str, status: int) -> None:
    code = f"""
        import sys
        pid = os.fork()
        if not pid:
            {ends}
        result = pid and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """
    assert run(code) == status
    assert run("result = shown(ask('double'))") == [[2, 4, 6]]


def test_a_child_cannot_answer(forking_server: Server) -> None:
    given = tritonclient.http.InferInput("IN", [1], "INT32")
    given.set_data_from_numpy(np.ones(1, np.int32))
    with tritonclient.http.InferenceServerClient(forking_server.url, network_timeout=TIMEOUT_S) as client:
        answer = client.infer("answers", [given]).as_numpy("OUT")
    assert answer is not None and answer.tolist() == [1]
