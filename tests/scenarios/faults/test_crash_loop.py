"""A model that dies again and again is not started for ever: it is UNAVAILABLE, everybody is told why, and it comes
back by itself or by a load."""

import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conch.run_dir import RunDir
from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.models import say, say_grpc, write_victim
from tests.scenarios.faults.watch import watching
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model
from tests.scenarios.test_metrics import scrape

# Cannot be loaded without a file.
FRAGILE = """
class TritonPythonModel:
    def initialize(self, args):
        with open(os.path.join(args["model_repository"], "weights")):
            pass

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", r.inputs()[0].as_numpy())]) for r in requests]
"""
#: more than the budget: the first may have been well for a while, so that its death does not count
MOST_DEATHS = 30


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = copy_examples(tmp_path_factory.mktemp("crashes") / "models", "simple")
    write_victim(repository)
    write_model(repository, "fragile", FRAGILE, "STRING", [1], max_batch_size=1)
    (repository / "fragile" / "weights").touch()
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    flags = ("--model-control-mode=explicit", "--load-model=*", "--drain-delay-secs=0")
    with serving([repository], make_run_dir(), *flags) as running:
        yield running


def index_entry(server: Server, model: str) -> dict[str, str]:
    _, answer = server.request("POST", "/v2/repository/index")
    (entry,) = [entry for entry in json.loads(answer) if entry["name"] == model]
    return dict(entry)


def instance(server: Server, model: str) -> dict[str, Any]:
    (row,) = [row for row in server.status()["instances"] if row["model"] == model]
    return dict(row)


def available(server: Server, model: str) -> float:
    return scrape(server)["conch_model_available", model, "1"]


def retry_after(server: Server, model: str) -> str | None:
    """The header of a refusal."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", b'{"inputs": []}')
        response = connection.getresponse()
        assert response.status == 503, response.read()
        return response.getheader("Retry-After")
    finally:
        connection.close()


@pytest.mark.timeout(60)
def test_a_worker_that_dies_too_often(server: Server) -> None:
    """As long as the budget lasts clients only wait. After it they are refused at once, for a short while."""
    log = RunDir(server.run_dir).logs / "broker.log"
    with watching(server) as watch:
        pid = 0
        for _ in range(MOST_DEATHS):
            pid = watch.worker_pid("victim", other_than=pid)
            os.kill(pid, signal.SIGKILL)
            status, text = say(server, "hello")
            if status != 200:
                break
        refusal = "model 'victim' version 1 keeps crashing and is started again after a pause; try again"
        assert (status, text) == (503, refusal)
        watch.back_within(5, lambda: say(server, "hello") == (200, "hello"))
        assert "instance 'victim_0_0' is backed off: it is started again in 0.5 s" in log.read_text()
        assert "'victim' version 1 is available again" in log.read_text()
        assert scrape(server, "cause")["conch_worker_deaths", "victim", "1", "SIGKILL"] >= 10
        assert instance(server, "victim")["restarts"] >= 10


@pytest.mark.timeout(60)
def test_a_model_that_cannot_be_loaded_any_more(server: Server, repository: Path) -> None:
    weights = repository / "fragile" / "weights"
    with watching(server) as watch:
        assert available(server, "fragile") == 1
        assert say(server, "hello", "fragile") == (200, "hello")
        weights.unlink()
        os.kill(watch.worker_pid("fragile"), signal.SIGKILL)
        watch.back_within(5, lambda: index_entry(server, "fragile")["state"] == "UNAVAILABLE")
        assert "it keeps crashing" in index_entry(server, "fragile")["reason"]
        assert "No such file" in index_entry(server, "fragile")["reason"]
        refusal = "model 'fragile' version 1 keeps crashing and is started again after a pause; try again"
        assert say(server, "hello", "fragile") == (503, refusal)
        assert retry_after(server, "fragile") == "1"
        assert say_grpc(server, "hello", "fragile") == ("UNAVAILABLE", refusal)
        assert server.request("GET", "/v2/models/fragile/ready")[0] == 503
        assert available(server, "fragile") == 0
        watch.back_within(5, lambda: 0 < instance(server, "fragile")["retry_in_s"])
        row = instance(server, "fragile")
        assert row["restarts"] < 8 and "No such file" in row["last_error"]

        status, answer = server.request("POST", "/v2/repository/models/fragile/load", timeout_s=30)
        assert status == 400 and b"No such file" in answer
        assert say(server, "hello", "fragile") == (503, refusal)
        assert "it keeps crashing" in index_entry(server, "fragile")["reason"]
        assert available(server, "fragile") == 0

        weights.touch()
        watch.back_within(15, lambda: say(server, "hello", "fragile") == (200, "hello"))
        assert available(server, "fragile") == 1

        weights.unlink()
        os.kill(watch.worker_pid("fragile"), signal.SIGKILL)
        watch.back_within(5, lambda: index_entry(server, "fragile")["state"] == "UNAVAILABLE")
        weights.touch()
        assert server.request("POST", "/v2/repository/models/fragile/load", timeout_s=30)[0] == 200
        assert say(server, "hello", "fragile") == (200, "hello")
