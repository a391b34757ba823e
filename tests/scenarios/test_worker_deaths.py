"""Workers that are killed, or that kill themselves: nobody else notices."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.scenarios.conftest import Serve, copy_examples
from tests.scenarios.harness import Server
from tests.scenarios.load import Load
from tests.scenarios.models import OBEY, write_model

KILLS = 5
BACK_WITHIN_S = 1.0


def order(server: Server, text: str, timeout_s: float = 15.0) -> tuple[int, bytes]:
    body = f'{{"inputs":[{{"name":"INPUT0","shape":[1],"datatype":"BYTES","data":["{text}"]}}]}}'
    return server.request("POST", "/v2/models/obey/infer", body.encode(), timeout_s=timeout_s)


def wait_for_worker(server: Server, model: str, other_than: int, timeout_s: float = 5.0) -> int:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        pids = server.worker_pids(model)
        if pids and pids[0] != other_than:
            return pids[0]
    raise AssertionError(server.report())


@pytest.mark.timeout(60)
def test_killed_under_load(serve: Serve, simple_repository: Path) -> None:
    """Five times: no request fails, no answer is another request's, and the model answers again within a second."""
    server = serve(simple_repository)
    pid = server.worker_pids("simple")[0]
    back_after_s = []
    with Load(server.http_port, clients=4) as load:
        load.wait_for_answers(0, 50, timeout_s=5)
        for _ in range(KILLS):
            killed_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            load.wait_for_answers(killed_s, 50, timeout_s=10)
            back_after_s.append(load.answered_since(killed_s)[0].answered_s - killed_s)
            pid = wait_for_worker(server, "simple", pid)
    load.check()
    assert max(back_after_s) < BACK_WITHIN_S, back_after_s
    rows = [row for row in server.status()["instances"] if row["model"] == "simple"]
    assert [row["restarts"] for row in rows] == [KILLS]


@pytest.mark.timeout(60)
def test_killed_with_others_running(serve: Serve, tmp_path: Path) -> None:
    """Another model's requests do not even wait."""
    repository = copy_examples(tmp_path / "models", "simple")
    write_model(repository, "obey", OBEY, "STRING", [1])
    server = serve(repository)
    with Load(server.http_port, clients=2) as load:
        load.wait_for_answers(0, 20, timeout_s=5)
        os.kill(server.worker_pids("obey")[0], signal.SIGKILL)
        load.wait_for_answers(time.monotonic(), 100, timeout_s=10)
    load.check()
    assert order(server, "hello")[0] == 200


@pytest.mark.timeout(60)
def test_poison_request(serve: Serve, tmp_path: Path) -> None:
    """A request that kills its worker is tried once more, alone, and then answered with the signal's name; requests
    that were with it in a batch or in the queue are answered as ever."""
    repository = tmp_path / "models"
    write_model(repository, "obey", OBEY, "STRING", [1])
    server = serve(repository)
    answers: dict[str, tuple[int, bytes]] = {}

    def ask(text: str) -> None:
        answers[text] = order(server, text)

    texts = ["sleep 0.3", "die", *(f"number {i}" for i in range(10))]
    clients = [threading.Thread(target=ask, args=[text]) for text in texts]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    status, error = answers.pop("die")
    assert status == 500
    assert b"SIGKILL" in error
    for text, (status, answer) in answers.items():
        assert status == 200, (text, answer)
        assert f'"data":["{text}"]'.encode() in answer
    assert order(server, "after")[0] == 200


@pytest.mark.timeout(60)
def test_poison_does_not_use_up_the_model(serve: Serve, tmp_path: Path) -> None:
    """However often a client sends what kills the worker, the others are served."""
    repository = tmp_path / "models"
    write_model(repository, "obey", OBEY, "STRING", [1])
    server = serve(repository)
    for _ in range(4):
        assert order(server, "die")[0] == 500
        assert order(server, "hello")[0] == 200


def test_a_worker_that_exits(serve: Serve, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_model(repository, "obey", OBEY, "STRING", [1])
    server = serve(repository)
    status, error = order(server, "exit")
    assert status == 500
    assert b"3" in error
    assert order(server, "hello")[0] == 200


@pytest.mark.timeout(60)
def test_several_instances(serve: Serve, tmp_path: Path) -> None:
    """One of two dies: the other one goes on, and then there are two again."""
    repository = tmp_path / "models"
    write_model(repository, "obey", OBEY, "STRING", [1], instances=2)
    server = serve(repository)
    before = server.worker_pids("obey")
    assert len(set(before)) == 2
    os.kill(before[0], signal.SIGKILL)
    assert all(order(server, "hello")[0] == 200 for _ in range(20))
    deadline = time.monotonic() + 5
    while len(set(server.worker_pids("obey")) - {before[0]}) < 2:
        assert time.monotonic() < deadline, server.report()
    assert before[1] in server.worker_pids("obey")
