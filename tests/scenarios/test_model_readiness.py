"""Models that say themselves whether they are ready, through a whole server and Triton's own clients."""

import threading
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from tests.scenarios.harness import Server, serving

CODE = """
import os
import time
import triton_python_backend_utils as pb_utils

HERE = os.path.dirname(__file__)

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(0)
        config.add_input({"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_INT32", "dims": [-1]})
        return config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(request, "IN").as_numpy())]
            )
            for request in requests
        ]
"""
CHECKS = """
    def is_ready(self):
        with open(os.path.join(HERE, "asked"), "a") as asked:
            asked.write("x")
        while os.path.exists(os.path.join(HERE, "hang")):
            time.sleep(0.05)
        return not os.path.exists(os.path.join(HERE, "down"))
"""


def write(repository: Path, name: str, code: str) -> Path:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(code)
    return folder


def ready(server: Server, model: str) -> tuple[bool, bool]:
    """What the HTTP and the gRPC client say."""
    with tritonclient.http.InferenceServerClient(server.url) as over_http:
        first = over_http.is_model_ready(model)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as over_grpc:
        return first, over_grpc.is_model_ready(model)


def server_ready(server: Server) -> tuple[bool, bool]:
    with tritonclient.http.InferenceServerClient(server.url) as over_http:
        first = over_http.is_server_ready()
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as over_grpc:
        return first, over_grpc.is_server_ready()


def infer(server: Server, model: str) -> int:
    with tritonclient.http.InferenceServerClient(server.url) as client:
        wanted = tritonclient.http.InferInput("IN", [1], "INT32")
        wanted.set_data_from_numpy(np.array([7], np.int32))
        found = client.infer(model, [wanted]).as_numpy("OUT")
        assert found is not None
        return int(found[0])


@pytest.mark.timeout(90)
def test_a_model_says_whether_it_is_ready(tmp_path: Path, run_dir: Path) -> None:
    folder = write(tmp_path, "says", CODE + CHECKS)
    write(tmp_path, "silent", CODE)
    with serving([tmp_path], run_dir) as server:
        assert ready(server, "says") == ready(server, "silent") == server_ready(server) == (True, True)
        (folder / "down").touch()
        assert ready(server, "says") == server_ready(server) == (False, False)
        assert ready(server, "silent") == (True, True)
        assert infer(server, "says") == 7
        (folder / "down").unlink()
        assert ready(server, "says") == server_ready(server) == (True, True)

        # one that hangs is not ready, is asked once, and goes on serving
        (folder / "asked").unlink()
        (folder / "hang").touch()
        answers: list[tuple[bool, bool]] = []
        threads = [threading.Thread(target=lambda: answers.append(ready(server, "says"))) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert infer(server, "says") == 7
        for thread in threads:
            thread.join(40)
        assert answers == [(False, False)] * 3
        assert (folder / "asked").read_text() == "x"
        (folder / "hang").unlink()
        assert ready(server, "says") == (True, True)


@pytest.mark.timeout(60)
def test_a_server_that_is_not_strict_does_not_ask(tmp_path: Path, run_dir: Path) -> None:
    folder = write(tmp_path, "says", CODE + CHECKS)
    (folder / "down").touch()
    with serving([tmp_path], run_dir, "--strict-readiness=false") as server:
        assert server_ready(server) == (True, True)
        assert ready(server, "says") == (False, False)
