"""Python models in real workers: what goes in and what comes out."""

import json
import os
from typing import Any

import numpy as np
import pytest

from conch import tensors
from conch.messages import Block, Sequence, TensorDescription
from tests.workers.harness import Stage, ints

HEAD = "import triton_python_backend_utils as pb_utils\n"
ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(r, "IN").as_numpy())])
            for r in requests
        ]
"""
ANY = {"input": [], "output": [{"name": "OUT", "data_type": "TYPE_INT32", "dims": [-1]}]}


def model(body: str) -> str:
    """A model whose ``execute`` has this body for each ``request``, which makes a ``response``."""
    lines = "\n".join("            " + line for line in body.strip().splitlines())
    return f"""
import os
import signal
import sys
import numpy as np
import triton_python_backend_utils as pb_utils
from triton_python_backend_utils import InferenceResponse, Tensor, TritonError

class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.kept = []

    def execute(self, requests):
        responses = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
{lines}
            responses.append(response)
        return responses
"""


def test_echo(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    for number in range(3):
        assert np.array_equal(stage.ask(worker, "echo", ints(1, 2, number)), ints(1, 2, number))


def test_a_batch(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    requests = [stage.requester.request("echo", stage.requester.put("IN", ints(*range(n)))) for n in range(8)]
    batch = stage.send(worker, *requests)
    for number, request in enumerate(requests):
        response = stage.requester.response(worker)
        assert response.id == request.id
        assert np.array_equal(stage.requester.outputs(response)["OUT"], ints(*range(number)))
    done = stage.done(batch)
    assert (done.failed, done.undelivered) == ((), ())
    assert done.started_ns <= done.infer_start_ns <= done.infer_end_ns <= done.ended_ns


def test_an_input_may_be_changed_and_kept(stage: Stage) -> None:
    worker = stage.ready(
        stage.model(
            "keeps",
            model("""
x += 1
self.kept.append(x)
response = InferenceResponse([Tensor("OUT", np.concatenate([kept[0] for kept in self.kept])[None])])
"""),
        )
    )
    request = stage.requester.request("keeps", stage.requester.put("IN", ints(1, 2)))
    expected: list[int] = []
    for _ in range(3):
        stage.send(worker, request)
        expected += [2, 3]
        assert stage.requester.outputs(stage.requester.response(worker))["OUT"].tolist() == [expected]
    stage.requester.free(request)
    assert np.array_equal(stage.ask(worker, "keeps", ints(9)), ints(*expected, 10))


@pytest.mark.parametrize("kept", ["request", "requests", "request.inputs()", "request.inputs()[0]", "lambda: request"])
def test_a_tensor_that_is_kept_unread_keeps_its_values(stage: Stage, kept: str) -> None:
    code = f"""
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    kept = None

    def execute(self, requests):
        (request,) = requests
        before, self.kept = self.kept, {kept}
        while not isinstance(before, pb_utils.Tensor) and before is not None:
            if callable(before):
                before = before()
            elif isinstance(before, list):
                before = before[0]
            else:
                before = before.inputs()
        tensor = before or request.inputs()[0]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy())])]
"""
    worker = stage.ready(stage.model("lazy", code))
    assert np.array_equal(stage.ask(worker, "lazy", ints(1)), ints(1))
    for number in range(2, 5):  # each input is freed, and its memory is overwritten by the next
        assert np.array_equal(stage.ask(worker, "lazy", ints(number)), ints(number - 1))


def test_bytes(stage: Stage) -> None:
    config = stage.model(
        "text",
        model("""
assert x.dtype == np.object_ and all(type(each) is bytes for each in x.reshape(-1))
how = request.parameters()
out = x
if "unicode" in how:
    out = np.array([[each.decode() for each in x[0]]])
elif "fixed" in how:
    out = np.array([[b"ab", b"c"]])
elif "pass" in how:
    response = InferenceResponse([Tensor("OUT", x), request.inputs()[0]])
if "pass" not in how:
    response = InferenceResponse([Tensor("OUT", out)])
"""),
        ANY,
    )
    worker = stage.ready(config)
    texts = np.array([[b"", "\u00e9".encode(), b"a\x00b"]], np.object_)
    for how in ("object", "unicode", "pass"):
        request = stage.requester.request("text", stage.requester.put("IN", texts), parameters={how: True})
        stage.send(worker, request)
        response = stage.requester.response(worker)
        assert [output.datatype for output in response.outputs] == ["BYTES"]
        assert stage.requester.outputs(response)["OUT"].tolist() == texts.tolist()
    request = stage.requester.request("text", stage.requester.put("IN", texts), parameters={"fixed": True})
    stage.send(worker, request)
    assert stage.requester.outputs(stage.requester.response(worker))["OUT"].tolist() == [[b"ab", b"c"]]


def test_datatypes(stage: Stage) -> None:
    worker = stage.ready(stage.model("types", ECHO, ANY))
    for datatype, dtype in tensors.NUMPY_DTYPES.items():
        for shape in ((1, 3), (1, 0), (2, 2, 2)):
            if datatype == "BYTES":
                continue
            array = np.ones(shape, dtype)
            output = stage.ask(worker, "types", array)
            assert output.dtype == dtype and np.array_equal(output, array)


def test_bf16_through_dlpack(stage: Stage) -> None:
    worker = stage.ready(
        stage.model(
            "brain",
            HEAD
            + """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            (tensor,) = request.inputs()
            try:
                tensor.as_numpy()
            except pb_utils.TritonModelException as error:
                assert "BF16" in str(error)
            tensor.to_dlpack()  # unused
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUT", tensor)]))
        return responses
""",
            ANY,
        )
    )
    for number in range(3):
        data = np.array([[0x3F80 + number, 0xC000]], np.uint16)
        request = stage.requester.request("brain", stage.requester.put_bytes("IN", "BF16", (1, 2), data.tobytes()))
        stage.send(worker, request)
        response = stage.requester.response(worker)
        assert response.error is None, response.error
        assert (response.outputs[0].datatype, response.outputs[0].shape) == ("BF16", (1, 2))
        assert np.array_equal(stage.requester.outputs(response)["OUT"], data)


def test_unusual_arrays(stage: Stage) -> None:
    worker = stage.ready(
        stage.model(
            "views",
            model("""
big = np.arange(40000, dtype=np.int32).reshape(200, 200)
outputs = [big.T, big[:, ::2], x[:, ::-1], np.array(5, np.int32), x.astype(">i4")]
response = InferenceResponse([Tensor(f"OUT{i}", each) for i, each in enumerate(outputs)])
"""),
            {"output": [{"name": f"OUT{i}", "data_type": "TYPE_INT32", "dims": [-1]} for i in range(5)]},
        )
    )
    outputs = stage.requester.outputs(stage.infer(worker, "views", IN=ints(1, 2, 3)))
    big = np.arange(40000, dtype=np.int32).reshape(200, 200)
    assert np.array_equal(outputs["OUT0"], big.T)
    assert np.array_equal(outputs["OUT1"], big[:, ::2])
    assert np.array_equal(outputs["OUT2"], ints(3, 2, 1))
    assert outputs["OUT3"].shape == () and outputs["OUT3"] == 5
    assert np.array_equal(outputs["OUT4"], ints(1, 2, 3))


def test_what_a_request_tells(stage: Stage) -> None:
    worker = stage.ready(
        stage.model(
            "tells",
            model("""
facts = [request.request_id(), request.correlation_id(), request.flags(), request.timeout(), request.parameters(),
         request.requested_output_names(), request.is_cancelled(), request.trace().get_context(),
         [t.name() for t in request.inputs()], request.inputs()[0].shape(), request.inputs()[0].triton_dtype(),
         request.inputs()[0].is_cpu(), pb_utils.get_input_tensor_by_name(request, "NONE")]
import json
response = InferenceResponse([Tensor("OUT", np.array([json.dumps(facts)], np.object_))], parameters={"a": 1, "b": 0.5})
"""),
            ANY,
        )
    )

    def facts(**options: Any) -> list[Any]:
        request = stage.requester.request("tells", stage.requester.put("IN", ints(1, 2)), **options)
        stage.send(worker, request)
        response = stage.requester.response(worker)
        assert response.parameters == {"a": 1, "b": 0.5}
        found: list[Any] = json.loads(stage.requester.outputs(response)["OUT"][0])
        return found

    assert facts() == ["", 0, 0, 0, "{}", ["OUT"], False, None, ["IN"], [1, 2], 8, True, None]
    told = facts(
        client_id="id",
        sequence=Sequence("seven", True, True),
        timeout_us=5,
        parameters={"x": True, "y": "z"},
        outputs=("OUT",),
        trace="{}",
    )
    assert told[:8] == ["id", "seven", 3, 5, '{"x":true,"y":"z"}', ["OUT"], False, "{}"]


def test_what_initialize_is_told(stage: Stage) -> None:
    worker = stage.ready(
        stage.model(
            "args",
            model("""
import json
facts = {**self.args, "dir": pb_utils.get_model_dir(), "module": __name__, "file": __file__}
response = InferenceResponse([Tensor("OUT", np.array([json.dumps(facts)], np.object_))])
"""),
            {"output": [{"name": "OUT", "data_type": "TYPE_STRING", "dims": [1]}]},
        )
    )
    args = json.loads(stage.ask(worker, "args", ints(1))[0])
    config = json.loads(args.pop("model_config"))
    assert (config["name"], config["max_batch_size"]) == ("args", 8)
    folder = str(stage.path / "models" / "args")
    assert args == {
        "model_instance_kind": "CPU",
        "model_instance_name": "args_0_0",
        "model_instance_device_id": "0",
        "model_repository": folder,
        "model_version": "1",
        "model_name": "args",
        "dir": os.path.join(folder, "1"),
        "module": "1.model",
        "file": os.path.join(folder, "1", "model.py"),
    }


def test_outputs_that_nobody_asked_for_are_dropped(stage: Stage) -> None:
    outputs = [{"name": name, "data_type": "TYPE_INT32", "dims": [-1]} for name in ("OUT", "MORE")]
    worker = stage.ready(
        stage.model(
            "more",
            model("""response = InferenceResponse([Tensor(name, x) for name in ("UNKNOWN", "MORE", "OUT")])"""),
            {"output": outputs},
        )
    )
    assert list(stage.requester.outputs(stage.infer(worker, "more", IN=ints(1)))) == ["MORE", "OUT"]
    request = stage.requester.request("more", stage.requester.put("IN", ints(1)), outputs=("OUT",))
    stage.send(worker, request)
    assert list(stage.requester.outputs(stage.requester.response(worker))) == ["OUT"]


def test_an_output_that_is_not_as_configured_passes_with_a_warning(stage: Stage) -> None:
    worker = stage.ready(
        stage.model("sloppy", model("""response = InferenceResponse([Tensor("OUT", x.astype(np.float64)[0])])"""))
    )
    for _ in range(2):
        output = stage.ask(worker, "sloppy", ints(1, 2))
        assert output.dtype == np.float64 and output.shape == (2,)
    log = stage.model_log("sloppy")
    expected = "output 'OUT' of model 'sloppy' is FP64 [2], but its configuration says INT32 [-1, -1]"
    assert log.count(expected) == 1


def test_reshape(stage: Stage) -> None:
    tensor = {"data_type": "TYPE_INT32", "dims": [-1, 2], "reshape": {"shape": [2, -1]}}
    worker = stage.ready(
        stage.model(
            "reshaped",
            model("""
assert x.shape == (1, 2, 3), x.shape
response = InferenceResponse([Tensor("OUT", x)])
"""),
            {"input": [{"name": "IN", **tensor}], "output": [{"name": "OUT", **tensor}]},
        )
    )
    array = np.arange(6, dtype=np.int32).reshape(1, 3, 2)
    assert np.array_equal(stage.ask(worker, "reshaped", array), array)


def test_parameters_of_a_response(stage: Stage) -> None:
    """NumPy's scalars and enumerations are Python's types by inheritance only."""
    code = model(
        """
import enum
parameters = {"f": np.float64(0.5), "s": np.str_("text"), "b": True, "i": enum.IntEnum("E", "A").A, "n": -(2**63)}
response = InferenceResponse([Tensor("OUT", x)], parameters=parameters)
"""
    )
    worker = stage.ready(stage.model("parameters", code))
    response = stage.infer(worker, "parameters", IN=ints(1))
    assert response.error is None
    assert response.parameters == {"f": 0.5, "s": "text", "b": True, "i": 1, "n": -(2**63)}
    assert type(response.parameters["b"]) is bool


def test_an_answer_that_cannot_be_encoded(stage: Stage) -> None:
    code = model("response = InferenceResponse([Tensor('OUT', x)], parameters={'a': 'b' if x[0, 0] else '\\udcff'})")
    worker = stage.ready(stage.model("unencodable", code))
    requests = [stage.requester.request("unencodable", stage.requester.put("IN", ints(number))) for number in (1, 0, 2)]
    batch = stage.send(worker, *requests)
    answers = {}
    for _ in requests:
        response = stage.requester.response(worker)
        answers[response.id] = response.error
    first, second, third = [answers[request.id] for request in requests]
    assert first is None and third is None
    assert second is not None and second.message == "the response cannot be put into a message"
    stage.done(batch)


def test_an_asynchronous_model(stage: Stage) -> None:
    code = ECHO.replace("def execute", "async def execute").replace(
        "        return [", "        import asyncio\n        await asyncio.sleep(0.001)\n        return [", 1
    )
    worker = stage.ready(stage.model("later", code))
    assert np.array_equal(stage.ask(worker, "later", ints(4)), ints(4))


def test_a_reference_that_cannot_be_read(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    good = stage.requester.put("IN", ints(1))
    assert isinstance(good.reference, Block)
    beyond = Block(good.reference.segment, good.reference.offset, 1 << 40)
    requests = [
        stage.requester.request("echo", TensorDescription("IN", "INT32", (1, 1), beyond)),
        stage.requester.request("echo", good),
    ]
    batch = stage.send(worker, *requests)
    first = stage.requester.response(worker)
    assert first.error is not None and first.error.kind == "Internal"
    assert np.array_equal(stage.requester.outputs(stage.requester.response(worker))["OUT"], ints(1))
    assert stage.done(batch).failed == (0,)
