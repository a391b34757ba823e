"""The models that the benchmarks serve, and the requests that they send to them."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy

ROOT = Path(__file__).parents[1]

IDENTITY_CONFIG = """\
backend: "python"
max_batch_size: 0
input { name: "INPUT0", data_type: TYPE_UINT8, dims: [ -1 ] }
output { name: "OUTPUT0", data_type: TYPE_UINT8, dims: [ -1 ] }
instance_group { kind: KIND_CPU }
"""
IDENTITY_CODE = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUTPUT0", pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy())]
            )
            for request in requests
        ]
"""
# Every request is one batch, on one thread, so that the bare loop does the same work.
CLASSIFIER_PARAMETERS = """
instance_group { count: 1, kind: KIND_CPU }
parameters { key: "intra_op_thread_count" value { string_value: "1" } }
parameters { key: "inter_op_thread_count" value { string_value: "1" } }
"""
CLASSIFIER = "file_type"
CLASSIFIER_BATCH_SIZES = (1, 8)


@dataclass(frozen=True)
class HttpRequest:
    """An inference request as it goes over the wire. ``expected`` is a part of the right answer's body."""

    path: str
    headers: dict[str, str]
    body: bytes
    expected: bytes


def write_python_models(repository: Path) -> None:
    """``simple`` from the examples and ``identity``, for Conch and for Triton."""
    shutil.copytree(ROOT / "examples" / "model_repository" / "simple", repository / "simple")
    (repository / "identity" / "1").mkdir(parents=True)
    (repository / "identity" / "config.pbtxt").write_text(IDENTITY_CONFIG)
    (repository / "identity" / "1" / "model.py").write_text(IDENTITY_CODE)


def write_classifier(repository: Path) -> Path:
    """The quickstart's classifier on one thread, once for each batch size, which is also the largest, so that no
    requests are merged: the bare loop's batches are of that size too. Returns the ONNX file."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "examples" / "quickstart" / "build_repository.py")
    assert spec is not None and spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    folder: Path = build.build_repository(repository)
    config = (folder / "config.pbtxt").read_text() + CLASSIFIER_PARAMETERS
    assert "max_batch_size: 16\n" in config
    for size in CLASSIFIER_BATCH_SIZES:
        copy = repository / f"{CLASSIFIER}_{size}"
        shutil.copytree(folder, copy)
        (copy / "config.pbtxt").write_text(config.replace("max_batch_size: 16\n", f"max_batch_size: {size}\n"))
    shutil.rmtree(folder)
    return copy / "1" / "model.onnx"


def classifier_input(batch_size: int) -> numpy.ndarray:
    """INT32 of shape [batch_size, 2048]: this file's bytes, shifted a little for each row."""
    text = numpy.frombuffer(Path(__file__).read_bytes(), dtype=numpy.uint8).astype(numpy.int32)
    return numpy.stack([text[row : row + 2048] for row in range(batch_size)])


def json_request(model: str, inputs: dict[str, numpy.ndarray], datatype: str, expected: bytes) -> HttpRequest:
    tensors = [
        {"name": name, "shape": values.shape, "datatype": datatype, "data": values.ravel().tolist()}
        for name, values in inputs.items()
    ]
    body = json.dumps({"inputs": tensors}).encode()
    return HttpRequest(f"/v2/models/{model}/infer", {"Content-Type": "application/json"}, body, expected)


def binary_request(model: str, inputs: dict[str, numpy.ndarray], datatype: str, expected: bytes) -> HttpRequest:
    tensors = [
        {
            "name": name,
            "shape": values.shape,
            "datatype": datatype,
            "parameters": {"binary_data_size": values.nbytes},
        }
        for name, values in inputs.items()
    ]
    header = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    body = header + b"".join(values.tobytes() for values in inputs.values())
    return HttpRequest(f"/v2/models/{model}/infer", headers, body, expected)


def add_sub_inputs() -> dict[str, numpy.ndarray]:
    left = numpy.arange(16, dtype=numpy.int32).reshape(1, 16)
    return {"INPUT0": left, "INPUT1": numpy.full_like(left, 7)}


def add_sub_json() -> HttpRequest:
    expected = b'"data":[7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22]'
    return json_request("simple", add_sub_inputs(), "INT32", expected)


def add_sub_binary() -> HttpRequest:
    inputs = add_sub_inputs()
    expected = (inputs["INPUT0"] + inputs["INPUT1"]).tobytes() + (inputs["INPUT0"] - inputs["INPUT1"]).tobytes()
    return binary_request("simple", inputs, "INT32", expected)


def random_bytes(nbytes: int) -> numpy.ndarray:
    return numpy.random.default_rng(1).integers(0, 256, nbytes, dtype=numpy.uint8)


def identity(nbytes: int) -> HttpRequest:
    values = random_bytes(nbytes)
    return binary_request("identity", {"INPUT0": values}, "UINT8", values.tobytes())


def chain(nbytes: int) -> HttpRequest:
    values = random_bytes(nbytes)
    return binary_request("chain", {"IN": values}, "UINT8", (values + 2).tobytes())


def classification(batch_size: int) -> HttpRequest:
    return binary_request(
        f"{CLASSIFIER}_{batch_size}", {"bytes": classifier_input(batch_size)}, "INT32", b'"binary_data_size":'
    )
