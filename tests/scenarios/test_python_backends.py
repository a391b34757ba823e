"""A backend that is a Python file: models without code of their own, and a backend that is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.scenarios.harness import Server, serving

BACKEND = """
import json
import os
import triton_python_backend_utils as pb_utils
from arithmetic import OPERATIONS

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        names = [tensor["name"] for tensor in config.as_dict()["input"]]
        for name in ("INPUT0", "INPUT1"):
            if name not in names:
                config.add_input({"name": name, "data_type": "TYPE_FP32", "dims": [4]})
        config.add_output({"name": "OUTPUT", "data_type": "TYPE_FP32", "dims": [4]})
        return config

    def initialize(self, args):
        with open(os.path.join(pb_utils.get_model_dir(), "model.json")) as file:
            self.operation = OPERATIONS[json.load(file)["operation"]]

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUTPUT", self.operation(*(tensor.as_numpy() for tensor in request.inputs())))]
            )
            for request in requests
        ]
"""


def write(path: Path) -> None:
    backend = path / "backends" / "add_sub"
    backend.mkdir(parents=True)
    (backend / "model.py").write_text(BACKEND)
    (backend / "arithmetic.py").write_text("import operator\nOPERATIONS = {'add': operator.add, 'sub': operator.sub}\n")
    for name, versions in (("add", (1, 2)), ("sub", (1,))):
        for version in versions:
            folder = path / "models" / name / str(version)
            folder.mkdir(parents=True)
            (folder / "model.json").write_text(json.dumps({"operation": name}))
        (path / "models" / name / "config.pbtxt").write_text('backend: "add_sub"')
    lost = path / "models" / "lost" / "1"
    lost.mkdir(parents=True)
    (lost.parent / "config.pbtxt").write_text('backend: "nothing"')


def calculate(server: Server, model: str, version: str = "") -> list[float]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        inputs = []
        for name, values in (("INPUT0", [5, 6, 7, 8]), ("INPUT1", [1, 2, 3, 4])):
            inputs.append(tritonclient.grpc.InferInput(name, [4], "FP32"))
            inputs[-1].set_data_from_numpy(np.array(values, np.float32))
        found = client.infer(model, inputs, version).as_numpy("OUTPUT")
        assert found is not None
        return [float(value) for value in found]


@pytest.mark.timeout(60)
def test_models_of_a_python_based_backend(tmp_path: Path, run_dir: Path) -> None:
    write(tmp_path)
    flags = (f"--backend-directory={tmp_path / 'backends'}", "--model-control-mode=explicit")
    with serving([tmp_path / "models"], run_dir, *flags) as server:
        with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
            client.load_model("add", config='{"backend":"add_sub","version_policy":{"latest":{"num_versions":2}}}')
            client.load_model("sub")
            assert client.get_model_config("sub", as_json=True)["config"]["runtime"] == "model.py"
            with pytest.raises(InferenceServerException) as raised:
                client.load_model("lost")
        assert "there is no backend 'nothing'; there are add_sub, onnxruntime, python" in raised.value.message()
        assert calculate(server, "add", "1") == calculate(server, "add", "2") == [6, 8, 10, 12]
        assert calculate(server, "sub") == [4, 4, 4, 4]
