"""Models that ask, and are asked by, other models."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import tritonclient.http

#: runs a script in the model "script", and returns what it has called ``result``
Run = Callable[[str], Any]
TIMEOUT_S = 20.0

HEAD = """
import asyncio
import json
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def ints(*values):
    return pb_utils.Tensor("IN", np.array(values, np.int32))


def request_to(model, *tensors, **options):
    return pb_utils.InferenceRequest(
        model_name=model, inputs=tensors or [ints(1, 2, 3)], requested_output_names=["OUT"], **options
    )


def ask(model, *tensors, decoupled=False, **options):
    return request_to(model, *tensors, **options).exec(decoupled=decoupled)


def shown(response):
    if response.has_error():
        return [response.error().code(), response.error().message()]
    return [tensor.as_numpy().tolist() for tensor in response.output_tensors()]


def raised(function):
    try:
        return shown(function())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""

# Runs the Python code that it is sent, and answers with what the code has called "result", as JSON.
SCRIPT = """
class TritonPythonModel:
    def initialize(self, args):
        self.in_initialize = raised(lambda: ask("double"))

    def execute(self, requests):
        responses = []
        for request in requests:
            code = pb_utils.get_input_tensor_by_name(request, "CODE").as_numpy()[0].decode()
            names = {**globals(), "request": request, "model": self}
            exec(code, names)
            answer = pb_utils.Tensor("RESULT", np.array([json.dumps(names["result"])], np.object_))
            responses.append(pb_utils.InferenceResponse([answer]))
        return responses

    def finalize(self):
        print("in finalize:", raised(lambda: ask("double")), flush=True)
"""

# Twice its input; tells what it was asked with.
DOUBLE = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            time.sleep(json.loads(request.parameters()).get("ms", 0) / 1000)
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            about = {
                "id": request.request_id(),
                "correlation_id": request.correlation_id(),
                "flags": request.flags(),
                "timeout": request.timeout(),
                "parameters": request.parameters(),
                "outputs": ",".join(request.requested_output_names()),
                "trace": request.trace().get_context() or "",
            }
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array * 2)], parameters=about))
        return responses
"""

# Hands its input to the next model and that one's output on, without looking at either.
PASS_ON = """
class TritonPythonModel:
    def initialize(self, args):
        self.next = json.loads(args["model_config"])["parameters"]["next"]["string_value"]

    def execute(self, requests):
        responses = []
        for request in requests:
            answer = ask(self.next, pb_utils.get_input_tensor_by_name(request, "IN"))
            if answer.has_error():
                responses.append(pb_utils.InferenceResponse(error=answer.error()))
            else:
                responses.append(pb_utils.InferenceResponse(answer.output_tensors()))
        return responses
"""

# "count" responses 0, 1, 2 …; the last one with or without the final flag. It tells when it was cancelled.
COUNT = """
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            options = json.loads(request.parameters())
            sender = request.get_response_sender()
            count = options.get("count", 3)
            size = options.get("size", 1)
            for number in range(count):
                if sender.is_cancelled():
                    print("cancelled", flush=True)
                    break
                time.sleep(options.get("ms", 0) / 1000)
                if number == options.get("error_at", -1):
                    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("in the middle")))
                    continue
                response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full(size, number, np.int32))])
                last = options.get("with_final") and number == count - 1
                sender.send(response, flags=FINAL if last else 0)
            if not (count and options.get("with_final")):
                sender.send(flags=FINAL)
"""

# Dies, after one response if it is decoupled.
DIE = """
import os


class TritonPythonModel:
    def initialize(self, args):
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))

    def execute(self, requests):
        if self.decoupled:
            response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.zeros(1, np.int32))])
            requests[0].get_response_sender().send(response)
        os._exit(1)
"""

ERROR = """
class TritonPythonModel:
    def execute(self, requests):
        error = pb_utils.TritonError("no good", pb_utils.TritonError.NOT_FOUND)
        return [pb_utils.InferenceResponse(error=error) for _ in requests]
"""


def write(repository: Path, name: str, code: str, *, decoupled: bool = False, count: int = 1, more: str = "") -> None:
    """``IN`` and ``OUT`` are INT32 of any length; more of config.pbtxt comes from ``more``."""
    _write(repository, name, code, ("IN", "TYPE_INT32", -1), ("OUT", "TYPE_INT32", -1), decoupled, count, more)


def write_script(repository: Path, name: str = "script", *, count: int = 1, more: str = "") -> None:
    _write(repository, name, SCRIPT, ("CODE", "TYPE_STRING", 1), ("RESULT", "TYPE_STRING", 1), False, count, more)


def _write(
    repository: Path,
    name: str,
    code: str,
    given: tuple[str, str, int],
    answered: tuple[str, str, int],
    decoupled: bool,
    count: int,
    more: str,
) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(HEAD + code)
    tensors = [
        f'{kind} [{{ name: "{tensor}" data_type: {datatype} dims: [{dims}] }}]'
        for kind, (tensor, datatype, dims) in (("input", given), ("output", answered))
    ]
    policy = "model_transaction_policy { decoupled: true }" if decoupled else ""
    (repository / name / "config.pbtxt").write_text(
        "\n".join(['backend: "python"', *tensors, policy, f"instance_group [{{ count: {count} }}]", dedent(more)])
    )


@contextlib.contextmanager
def scripts(url: str) -> Iterator[Run]:
    with tritonclient.http.InferenceServerClient(url, network_timeout=TIMEOUT_S) as client:

        def run(code: str) -> Any:
            given = tritonclient.http.InferInput("CODE", [1], "BYTES")
            given.set_data_from_numpy(np.array([dedent(code).encode()], np.object_))
            answer = client.infer("script", [given]).as_numpy("RESULT")
            assert answer is not None
            return json.loads(answer[0])

        yield run
