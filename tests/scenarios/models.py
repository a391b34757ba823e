"""Python models that the scenarios serve. Each function writes one model folder into a repository."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

HEAD = """
import json
import os
import time

import numpy
import triton_python_backend_utils as pb_utils
"""

# Answers every input INPUTn as OUTPUTn.
ECHO = """
class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.seconds = float(parameters.get("seconds", {}).get("string_value", "0"))

    def execute(self, requests):
        time.sleep(self.seconds)
        responses = []
        for request in requests:
            outputs = [pb_utils.Tensor(t.name().replace("INPUT", "OUTPUT"), t.as_numpy()) for t in request.inputs()]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
"""

# The same in DLPack, which also carries BF16 (NumPy has no such type).
ECHO_DLPACK = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUTPUT0", tensor.to_dlpack())]))
        return responses
"""

# Changes its input in place, then answers it: the client's bytes of the next request must not have changed.
INCREMENT = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            values += 1
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values)]))
        return responses
"""

# Answers the input array of the request before, which it kept.
KEEP = """
class TritonPythonModel:
    def initialize(self, args):
        self.kept = None

    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            answer = values if self.kept is None else self.kept
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", answer)]))
            self.kept = values
        return responses
"""

# Does what its string input says.
OBEY = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.obey(request) for request in requests]

    def obey(self, request):
        order = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy().reshape(-1)[0].decode()
        answer = numpy.array([order.encode()], dtype=numpy.object_)
        if order == "die":
            os.kill(os.getpid(), 9)
        if order == "exit":
            os._exit(3)
        if order == "raise":
            raise ValueError("told to raise")
        if order == "nothing":
            return None
        if order == "no outputs":
            return pb_utils.InferenceResponse([])
        if order == "wrong name":
            return pb_utils.InferenceResponse([pb_utils.Tensor("OTHER", answer)])
        if order == "wrong type":
            return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", numpy.zeros([1], dtype=numpy.float32))])
        if order == "wrong shape":
            return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", answer.reshape(1, 1))])
        if order == "parameters":
            answer = numpy.array([request.parameters()], dtype=numpy.object_)
        if order == "id":
            answer = numpy.array([request.request_id()], dtype=numpy.object_)
        if order == "pid":
            answer = numpy.array([str(os.getpid())], dtype=numpy.object_)
        if order.startswith("sleep "):
            time.sleep(float(order.split()[1]))
        if order.startswith("error "):
            code = getattr(pb_utils.TritonError, order.split()[1])
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("told to fail", code))
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", answer)])
"""


def write_model(
    repository: Path,
    name: str,
    code: str,
    datatype: str = "INT32",
    dims: Sequence[int] = (-1,),
    max_batch_size: int = 0,
    instances: int = 1,
    extra: str = "",
) -> None:
    """Write a Python model with one input INPUT0 and one output OUTPUT0 of the same datatype (configuration spelling,
    without ``TYPE_``) and dims. ``extra`` is appended to config.pbtxt."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    dims_text = ", ".join(str(dim) for dim in dims)
    config = f"""\
        backend: "python"
        max_batch_size: {max_batch_size}
        input {{ name: "INPUT0", data_type: TYPE_{datatype}, dims: [ {dims_text} ] }}
        output {{ name: "OUTPUT0", data_type: TYPE_{datatype}, dims: [ {dims_text} ] }}
        instance_group {{ count: {instances}, kind: KIND_CPU }}
        """
    (folder / "config.pbtxt").write_text(dedent(config) + extra)
    (folder / "1" / "model.py").write_text(HEAD + code)


def write_classifier(repository: Path, name: str, datatype: str, max_batch_size: int, labels: Sequence[str]) -> None:
    """A model that answers its five scores as they are, with a label file that may be too short."""
    write_model(repository, name, ECHO, datatype, [5], max_batch_size)
    config = repository / name / "config.pbtxt"
    config.write_text(config.read_text().replace("output {", 'output { label_filename: "labels.txt",'))
    (repository / name / "labels.txt").write_text("\n".join(labels) + "\n")


DATATYPES = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")


def write_datatype_models(repository: Path) -> None:
    """``echo_<datatype>`` for every datatype, shape [-1]."""
    for datatype in DATATYPES:
        write_model(repository, f"echo_{datatype.lower()}", ECHO, datatype)
    write_model(repository, "echo_bytes", ECHO, "STRING")
    write_model(repository, "echo_bf16", ECHO_DLPACK, "BF16")
