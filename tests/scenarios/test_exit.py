"""What a server that exits still does: accepted requests finish, whatever other models they ask."""

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conch.run_dir import RunDir
from tests.scenarios import bls_models
from tests.scenarios.harness import Server

INPUT = json.dumps({"inputs": [{"name": "IN", "shape": [1], "datatype": "INT32", "data": [3]}]}).encode()

WAIT = """
import os


def wait():
    while not os.path.exists(os.environ["TEST_EVENT"]):
        time.sleep(0.01)
"""

# Twice its input once the test says so, from a model that it asks only then, and how many responses another one gave.
ASKS_LATER = """
class TritonPythonModel:
    def execute(self, requests):
        wait()
        assert pb_utils.is_model_ready("passes")
        doubled = ask("passes", requests[0].inputs()[0]).output_tensors()[0].as_numpy()
        counted = len([each for each in ask("count", ints(1), decoupled=True) if each.output_tensors()])
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([*doubled, counted], np.int32))])]
"""

# One response at once, and another from a thread that asks a model first.
ANSWERS_LATER = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            request.get_response_sender().send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", ints(0).as_numpy())]))
            threading.Thread(target=self.go_on, args=(request,)).start()

    def go_on(self, request):
        wait()
        doubled = ask("double", request.inputs()[0]).output_tensors()
        request.get_response_sender().send(pb_utils.InferenceResponse(doubled), FINAL)
"""

# Asks by itself, for ever: nobody must wait for that.
BUSY = """
class TritonPythonModel:
    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        if not self.threads:
            self.threads = [threading.Thread(target=self.go_on, daemon=True) for _ in range(3)]
            for thread in self.threads:
                thread.start()
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", r.inputs()[0].as_numpy())]) for r in requests]

    def go_on(self):
        while not ask("double").has_error():
            pass
"""


def write_models(repository: Path) -> None:
    bls_models.write(repository, "double", bls_models.DOUBLE)
    bls_models.write(repository, "count", bls_models.COUNT, decoupled=True)
    next_model = 'parameters { key: "next" value { string_value: "double" } }'
    bls_models.write(repository, "passes", bls_models.PASS_ON, more=next_model)
    bls_models.write(repository, "asks_later", WAIT + ASKS_LATER)
    bls_models.write(repository, "answers_later", WAIT + ANSWERS_LATER, decoupled=True)
    bls_models.write(repository, "busy", BUSY)


def wait_until(server: Server, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, server.report()


def all_run(server: Server, *models: str) -> bool:
    return set(models) <= {row["model"] for row in server.status()["models"] if row["running"]}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stopped", ["server", "broker"])
def test_models_ask_until_the_end(tmp_path: Path, run_dir: Path, stopped: str) -> None:
    """A broker that is stopped alone comes back; one that is stopped with its server is the last but one to end."""
    event = tmp_path / "event"
    write_models(tmp_path / "models")
    server = Server([tmp_path / "models"], run_dir, variables={"TEST_EVENT": str(event)})
    generate = json.dumps({"IN": 4}).encode()
    try:
        server.start()
        assert server.request("POST", "/v2/models/busy/infer", INPUT)[0] == 200
        with ThreadPoolExecutor() as clients:
            ask = clients.submit(server.request, "POST", "/v2/models/asks_later/infer", INPUT, timeout_s=30)
            stream = clients.submit(
                server.request, "POST", "/v2/models/answers_later/generate_stream", generate, timeout_s=30
            )
            try:
                wait_until(server, lambda: all_run(server, "asks_later", "answers_later"))
                pid = server.process.pid if stopped == "server" and server.process else server.program_pid("broker")
                os.kill(pid, signal.SIGTERM)
                # the frontends have closed their ports, or know that the broker exits
                wait_until(server, lambda: not server.ready())
                if stopped == "broker":
                    assert "Server exiting" in str(server.request("POST", "/v2/models/double/infer", INPUT)[1])
            finally:
                event.touch()
            status, answer = ask.result()
            assert status == 200, answer
            assert json.loads(answer)["outputs"][0]["data"] == [6, 3]
            status, answer = stream.result()
            assert status == 200
            parts = [json.loads(line[5:])["OUT"] for line in answer.splitlines() if line]
            assert parts == [0, 8]
        if stopped == "broker":
            wait_until(server, server.ready)
        assert (server.wait(20) if stopped == "server" else server.stop()) == 0
        assert "Exit timeout expired" not in (RunDir(run_dir).logs / "broker.log").read_text()
        assert not server.leftovers()
    finally:
        server.kill_everything()
