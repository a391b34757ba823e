"""Python models that fail, at loading and at executing."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.workers.harness import Stage, ints
from tests.workers.test_python_model import HEAD, model

FAILURES = {
    "raise ValueError('no good')": "ValueError: no good\n\nAt:\n",
    "raise pb_utils.TritonModelException('mine')": "TritonModelException: mine\n\nAt:\n",
    "raise KeyError": "KeyError: <EMPTY MESSAGE>\n\nAt:\n",
    "return []": (
        "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
        "InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0\n"
    ),
    "return responses + [InferenceResponse(), InferenceResponse()]": "InferenceResponse(s) size is:2\n",
    "return 5": "Expected a list in the execute return, found type '<class 'int'>'.",
    "return None": "Expected a list in the execute return, found type '<class 'NoneType'>'.",
    "return [3]": (
        "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'int'>'."
    ),
    "return [None]": (
        "Expected an 'InferenceResponse' object in the execute function return list, found type 'NoneType'."
    ),
    "Tensor('', x)": "Tensor name cannot be an empty string.",
    "Tensor('OUT', [1])": "TypeError: Tensor 'OUT' expects a NumPy array, got <class 'list'>",
    "Tensor('OUT', x.astype(np.complex64))": "TritonModelException: NumPy dtype is not supported: 'complex64'",
    "InferenceResponse([None])": "Output tensor for inference response should not be empty.",
    "InferenceResponse(Tensor('OUT', x))": "InferenceResponse expects a list of Tensor objects, got",
    "InferenceResponse(parameters={'a': [1]})": "Expect parameters values to have type bool/int/float/str, found type",
    "InferenceResponse(parameters={'a': 2**64})": "of at most 64 bits, found 18446744073709551616",
    r"raise ValueError('not \udcff UTF-8')": r"ValueError: not \udcff UTF-8",
    "pb_utils.InferenceRequest(inputs=[None], requested_output_names=[], model_name='')": "should not be empty",
    "request.get_response_sender().send(flags=1)": (
        "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
    ),
    "pb_utils.MetricFamily('a b', 'c', pb_utils.MetricFamily.COUNTER)": "Error when creating MetricFamily: Failed",
    "Tensor('OUT', np.array(['a'])).to_dlpack()": "DLPack does not have support for string tensors.",
    "Tensor.from_dlpack('OUT', np.zeros((2, 4))[:, ::2])": "DLPack tensor is not contiguous.",
}


@pytest.fixture(scope="module")
def failing(make_run_dir: Callable[[], Path]) -> Iterator[tuple[Stage, str]]:
    """A worker that fails in the way whose number it is sent, and answers -1 well."""
    branches = "\n".join(f"if x[0, 0] == {number}:\n    {statement}" for number, statement in enumerate(FAILURES))
    stage = Stage(make_run_dir())
    stage.enter()
    code = model(branches + "\nresponse = InferenceResponse([Tensor('OUT', x)])")
    worker = stage.ready(stage.model("fails", code))
    stage.ask(worker, "fails", ints(-1))
    yield stage, worker
    stage.leave()
    stage.close()


@pytest.mark.parametrize("statement", FAILURES)
def test_a_failing_execute_fails_its_requests(failing: tuple[Stage, str], statement: str) -> None:
    stage, worker = failing
    response = stage.infer(worker, "fails", IN=ints(list(FAILURES).index(statement)))
    assert response.error is not None
    assert response.error.kind == "ModelError"
    assert response.error.message.startswith("Failed to process the request(s) for model 'fails_0_0', message: ")
    assert FAILURES[statement] in response.error.message
    assert str(stage.path) not in response.error.message
    if statement.startswith("raise"):
        assert re.search(r"\n\nAt:\n  fails/1/model.py\(\d+\): execute\n$", response.error.message)
        assert f"requests: #{stage.requester.id[:4]}-{stage.requester.next_id - 1:06x}\\n" in stage.model_log("fails")
    assert np.array_equal(stage.ask(worker, "fails", ints(-1)), ints(-1))


CODES = {
    "UNKNOWN": "ClientError",
    "INTERNAL": "ModelError",
    "NOT_FOUND": "NotFound",
    "INVALID_ARG": "InvalidArgument",
    "UNAVAILABLE": "Unavailable",
    "UNSUPPORTED": "Unsupported",
    "ALREADY_EXISTS": "AlreadyExists",
    "CANCELLED": "Cancelled",
}


def test_error_codes(stage: Stage) -> None:
    worker = stage.ready(
        stage.model(
            "codes",
            model("""
code = getattr(TritonError, x[0, 0].decode())
response = InferenceResponse(error=TritonError("bad thing", code))
"""),
        )
    )
    for code, kind in CODES.items():
        response = stage.infer(worker, "codes", IN=np.array([[code]], np.object_))
        assert response.error is not None
        assert (response.error.kind, response.error.message) == (kind, "bad thing")


def test_one_of_a_batch_fails(stage: Stage) -> None:
    worker = stage.ready(
        stage.model(
            "one",
            model("""
tensor = Tensor("OUT", x)
response = InferenceResponse([tensor], TritonError("this one")) if x[0, 0] else InferenceResponse([tensor])
"""),
        )
    )
    batch = stage.send(
        worker, *[stage.requester.request("one", stage.requester.put("IN", ints(number))) for number in (0, 1, 0)]
    )
    assert [stage.requester.response(worker).error is None for _ in range(3)] == [True, False, True]
    assert stage.done(batch).failed == (1,)


LOAD_FAILURES = {
    "syntax": ("def x(:", "SyntaxError: invalid syntax (model.py, line 1)"),
    "no_class": ("x = 1", "unable to load model 'no_class': 'no_class/1/model.py' has no class 'TritonPythonModel'"),
    "no_package": (
        "import no_such_package_at_all",
        "ModuleNotFoundError: No module named 'no_such_package_at_all'\n\nAt:\n  no_package/1/model.py(1): <module>\n",
    ),
    "initialize": (
        "class TritonPythonModel:\n    def initialize(self, args):\n        raise RuntimeError('not today')",
        "RuntimeError: not today\n\nAt:\n  initialize/1/model.py(3): initialize\n",
    ),
    "undecodable": (
        r"raise ValueError('not \udcff UTF-8')",
        "ValueError: not \\udcff UTF-8\n\nAt:\n  undecodable/1/model.py(1): <module>\n",
    ),
    "constructor": (
        "class TritonPythonModel:\n    def __init__(self):\n        raise RuntimeError('not today')",
        "RuntimeError: not today\n\nAt:\n  constructor/1/model.py(3): __init__\n",
    ),
}


@pytest.mark.parametrize("name", LOAD_FAILURES)
def test_reasons_of_load_failures(stage: Stage, name: str) -> None:
    code, reason = LOAD_FAILURES[name]
    assert stage.load_failure(stage.model(name, code)) == reason
    if name not in ("initialize", "constructor"):
        assert stage.load_failure(stage.model(name, code), complete=True) == reason


def test_a_model_without_execute(stage: Stage) -> None:
    worker = stage.ready(stage.model("idle", "class TritonPythonModel:\n    pass"))
    response = stage.infer(worker, "idle", IN=ints(1))
    assert response.error is not None
    assert response.error.message == (
        "Failed to process the request(s) for model 'idle_0_0', message: Python model idle/1/model.py does not "
        "implement `execute` method."
    )


def test_a_missing_file(stage: Stage) -> None:
    config = stage.model("gone", "") | {"default_model_filename": "other.py"}
    assert stage.load_failure(config) == "Python model file not found in 'gone/1/other.py'"


COMPLETES = (
    HEAD
    + """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_INT32", "dims": [-1]})
        config.set_max_batch_size(8)
        config.set_dynamic_batching()
        return config

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", request.inputs()[0].as_numpy())]) for request in requests
        ]
"""
)


def test_completion(stage: Stage) -> None:
    empty = {"input": [], "output": [], "max_batch_size": 0}
    worker, config = stage.complete(stage.model("completes", COMPLETES, empty))
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"] == {}
    assert config["input"] == [{"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]}]
    assert np.array_equal(stage.ask(worker, "completes", ints(1)), ints(1))


def test_completion_that_fails(stage: Stage) -> None:
    code = COMPLETES.replace("return config", "return None")
    assert stage.load_failure(stage.model("nothing", code), complete=True) == (
        "auto_complete_config function in model 'nothing' must return a valid pb.ModelConfig object."
    )
    wrong = {"input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [-1]}]}
    reason = stage.load_failure(stage.model("differs", COMPLETES, wrong), complete=True)
    assert reason.startswith(
        "ValueError: unable to load model 'differs', configuration expects datatype TYPE_FP32 for input 'IN', model "
        "provides TYPE_INT32\n\nAt:\n"
    )


@pytest.mark.parametrize(
    "hangs", ["time.sleep(60)", "atexit.register(time.sleep, 60)"], ids=["in finalize", "afterwards"]
)
def test_a_finalize_that_never_ends_is_ended(hangs: str) -> None:
    code = f"""
import atexit
import time
from types import SimpleNamespace
from workers import worker

class Hangs:
    stops = None

    def finalize(self):
        {hangs}

worker.FINALIZE_S = 0.1
worker.Worker._finalize(SimpleNamespace(_spawn=SimpleNamespace(instance_name="m_0_0")), Hangs())
atexit._run_exitfuncs()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "finalize of 'm_0_0' has not come to an end in 0 s, its process is ended" in done.stderr
    assert 'File "<string>", line ' in done.stderr
