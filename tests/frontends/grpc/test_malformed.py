"""Requests that are refused, with the codes and texts of the real Triton."""

from collections.abc import Callable
from typing import Any

import pytest

from conch.errors import Internal, InvalidArgument, NotReady, Overloaded, TooLarge, Unsupported
from conch.requester.regions import RegionTableView
from conch.tensors import pack
from frontends.grpc.inference import decode
from tests.frontends import samples
from tests.frontends.grpc.support import (
    EngineName,
    Frontend,
    add_input,
    pb,
    refusal,
    set_all,
    simple_request,
    typed_request,
)

INVALID = "INVALID_ARGUMENT"
UNEXPECTED = "unexpected explicit tensor data for input tensor 'INPUT0' for model"


def changed(change: Callable[[Any], Any]) -> Any:
    request = simple_request()
    change(request)
    return request


def with_input(contents: tuple[int, ...] = (), **parameters: Any) -> Any:
    request = pb.ModelInferRequest(model_name="simple")
    add_input(request, "INPUT0", **parameters).contents.int_contents.extend(contents)
    if not contents:
        request.inputs[0].ClearField("contents")
    return request


def with_output(**parameters: Any) -> Any:
    request = simple_request()
    set_all(request.outputs.add(name="OUTPUT0").parameters, parameters)
    return request


def with_parameter(key: str, field: str = "", value: Any = None) -> Any:
    request = simple_request()
    if field:
        setattr(request.parameters[key], field, value)
    else:
        request.parameters[key].SetInParent()
    return request


def twice(change: Callable[[Any], Any]) -> Any:
    """A fault, and an input that is named twice, which Triton finds first."""
    request = simple_request()
    request.inputs[1].name = "INPUT0"
    change(request)
    return request


NAMED_TWICE = "[request id: <id_unknown>] input 'INPUT0' already exists in request"
RESERVED = (
    "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with "
    "'triton_' are allowed: triton_enable_empty_final_response"
)
NOT_CUSTOM = "invalid value type for 'custom' parameter, expected int64_param, bool_param, or string_param."
PLACE: dict[str, Any] = {"shared_memory_region": "zz", "shared_memory_byte_size": 64}

CASES = {
    "mixed": (
        changed(lambda r: r.inputs[0].contents.int_contents.extend(range(16))),
        "contents field must not be specified when using raw_input_contents for 'INPUT0' for model 'simple'",
    ),
    "too few raw": (
        changed(lambda r: r.raw_input_contents.pop()),
        "unable to find data for input tensor 'INPUT1' for model 'simple' in request.",
    ),
    "no data": (with_input(), "unable to find data for input tensor 'INPUT0' for model 'simple' in request."),
    "too few typed": (
        typed_request("echo_int32", "INT32", (4,), int_contents=[1, 2, 3]),
        "[request id: <id_unknown>] input byte size mismatch for input 'INPUT0' for model 'echo_int32'. Expected 16, "
        "got 12",
    ),
    "empty typed": (
        typed_request("echo_int32", "INT32", (4,)),
        "[request id: <id_unknown>] input byte size mismatch for input 'INPUT0' for model 'echo_int32'. Expected 16, "
        "got 0",
    ),
    "other typed": (
        typed_request("echo_int32", "INT32", (1,), fp32_contents=[1]),
        f"{UNEXPECTED} 'echo_int32' of type 'FP32', expected datatype 'INT32'",
    ),
    "typed half": (
        typed_request("echo_fp16", "FP16", (1,), fp32_contents=[1]),
        f"{UNEXPECTED} 'echo_fp16' of type 'FP32', expected datatype 'FP16'",
    ),
    "typed unknown": (
        typed_request("echo_int32", "FOO", (1,), uint_contents=[1]),
        f"{UNEXPECTED} 'echo_int32' of type 'UINT32', expected datatype '<invalid>'",
    ),
    "two typed": (
        typed_request("echo_int32", "INT32", (1,), int_contents=[1], int64_contents=[1]),
        f"{UNEXPECTED} 'echo_int32', binary data was already supplied.",
    ),
    "INT8": (
        typed_request("echo_int8", "INT8", (2,), int_contents=[1, 128]),
        "a value of input 'INPUT0' is out of the range of datatype INT8",
    ),
    "INT16": (
        typed_request("echo_int16", "INT16", (1,), int_contents=[-32769]),
        "a value of input 'INPUT0' is out of the range of datatype INT16",
    ),
    "UINT8": (
        typed_request("echo_uint8", "UINT8", (1,), uint_contents=[256]),
        "a value of input 'INPUT0' is out of the range of datatype UINT8",
    ),
    "named twice": (twice(lambda r: None), NAMED_TWICE),
    "named twice, no data": (twice(lambda r: r.ClearField("raw_input_contents")), NAMED_TWICE),
    "unknown input": (
        changed(lambda r: setattr(r.inputs[0], "name", "X")),
        "unexpected inference input 'X' for model 'simple'",
    ),
    "unknown datatype": (
        changed(lambda r: setattr(r.inputs[0], "datatype", "FOO")),
        "[request id: <id_unknown>] inference input 'INPUT0' data-type is '<invalid>', but model 'simple' expects "
        "'INT32'",
    ),
    "unknown output": (
        changed(lambda r: r.outputs.add(name="X")),
        "unexpected inference output 'X' for model 'simple'",
    ),
    "negative shape": (
        changed(lambda r: r.inputs[0].shape.__setitem__(0, -1)),
        "[request id: <id_unknown>] input 'INPUT1' batch size does not match other inputs for 'simple'",
    ),
    "version": (
        changed(lambda r: setattr(r, "model_version", "x")),
        "failed to get model version from specified version string 'x' (details: stol), version should be an "
        "integral value > 0",
    ),
    "sequence_id": (
        with_parameter("sequence_id", "bool_param", True),
        "invalid value type for 'sequence_id' parameter, expected int64_param or string_param.",
    ),
    "sequence_start": (
        with_parameter("sequence_start", "int64_param", 1),
        "invalid value type for 'sequence_start' parameter, expected bool_param.",
    ),
    "sequence_end": (
        with_parameter("sequence_end", "string_param", "true"),
        "invalid value type for 'sequence_end' parameter, expected bool_param.",
    ),
    "priority": (
        with_parameter("priority", "string_param", "1"),
        "invalid value type for 'priority' parameter, expected int64_param or uint64_param.",
    ),
    "negative priority": (
        with_parameter("priority", "int64_param", -1),
        "invalid value for 'priority', expected value >= 0.",
    ),
    "timeout": (
        with_parameter("timeout", "uint64_param", 1),
        "invalid value type for 'timeout' parameter, expected int64_param.",
    ),
    "reserved": (with_parameter("triton_foo", "bool_param", True), RESERVED),
    "final response": (
        with_parameter("triton_enable_empty_final_response", "int64_param", 1),
        "invalid value type for 'triton_enable_empty_final_response' parameter, expected bool_param.",
    ),
    "custom": (with_parameter("custom", "uint64_param", 1), NOT_CUSTOM),
    "custom without value": (with_parameter("custom"), NOT_CUSTOM),
    "region type": (
        with_input(shared_memory_region=5),
        "invalid value type for 'shared_memory_region' parameter for tensor 'INPUT0', expected string_param.",
    ),
    "region without size": (
        with_input(shared_memory_region="zz"),
        "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor 'INPUT0'",
    ),
    "offset alone": (
        with_input(shared_memory_offset=1),
        "'shared_memory_offset' can not be specified without 'shared_memory_region' parameter for tensor 'INPUT0'",
    ),
    "size alone": (
        with_input(shared_memory_byte_size=1),
        "'shared_memory_byte_size' can not be specified without 'shared_memory_region' parameter for tensor 'INPUT0'",
    ),
    "offset type": (
        with_input(shared_memory_region="zz", shared_memory_offset="1"),
        "invalid value type for 'shared_memory_offset' parameter for tensor 'INPUT0', expected int64_param.",
    ),
    "size type": (
        with_input(shared_memory_region="zz", shared_memory_byte_size="1"),
        "invalid value type for 'shared_memory_byte_size' parameter for tensor 'INPUT0', expected int64_param.",
    ),
    "region and contents": (
        with_input((1,), **PLACE),
        "unexpected 'content' provided when using shared memory for input tensor 'INPUT0' for model 'simple'",
    ),
    "class count type": (
        with_output(classification="1"),
        "invalid value type for 'classification' parameter, expected int64_param",
    ),
    "class count": (
        with_output(classification=0),
        "invalid value for 'classification' parameter, expected >= 0",
    ),
    "classes in a region": (
        with_output(classification=1, **PLACE),
        "output can't set both 'shared_memory_region' and 'classification'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_invalid(frontend: Frontend, name: str) -> None:
    request, text = CASES[name]
    assert refusal(frontend.call, "ModelInfer", request) == (INVALID, text)


def test_unknown_things(frontend: Frontend) -> None:
    unknown = [
        (simple_request(model_name="nope"), "Request for unknown model: 'nope' is not found"),
        (simple_request(model_version="9"), "Request for unknown model: 'simple' version 9 is not found"),
        (with_input(**PLACE), "Unable to find shared memory region: 'zz'"),
        (with_output(**PLACE), "Unable to find shared memory region: 'zz'"),
    ]
    for request, text in unknown:
        assert refusal(frontend.call, "ModelInfer", request) == ("NOT_FOUND", text)


def test_decoupled_models(frontend: Frontend) -> None:
    request = typed_request("stream", "INT32", (1,), int_contents=[1])
    text = "ModelInfer RPC doesn't support models with decoupled transaction policy"
    assert refusal(frontend.call, "ModelInfer", request) == ("UNIMPLEMENTED", text)


def test_text_that_is_no_utf8(frontend: Frontend) -> None:
    payload = simple_request(id="abc").SerializeToString().replace(b"abc", b"a\xffc")
    assert refusal(frontend.raw, "ModelInfer", payload) == ("INTERNAL", "Unable to parse request")


def test_truncated_requests(frontend: Frontend) -> None:
    payload = simple_request(id="abc").SerializeToString()
    for length in range(len(payload)):
        code, text = refusal(frontend.raw, "ModelInfer", payload[:length])
        assert code in ("INTERNAL", "NOT_FOUND", INVALID), text
        assert code != "INTERNAL" or text == "Unable to parse request"


def test_reserved_metadata(engine: EngineName) -> None:
    with Frontend(engine, grpc_header_forward_pattern="prio|triton") as frontend:
        for key in ("priority", "triton_x"):
            expected = (INVALID, f"Header '{key}' is reserved for Triton usage and cannot be forwarded.")
            assert refusal(frontend.call, "ModelInfer", simple_request(), ((key, "1"),)) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Overloaded("the queue is full"), ("UNAVAILABLE", "the queue is full")),
        (NotReady("not yet"), ("UNAVAILABLE", "not yet")),
        (Unsupported("not here"), ("UNIMPLEMENTED", "not here")),
        (TooLarge("too much"), (INVALID, "too much")),
        (Internal("broken: ä\n%"), ("INTERNAL", "broken: ä\n%")),
    ],
)
def test_errors_of_the_model(frontend: Frontend, error: Any, expected: tuple[str, str]) -> None:
    frontend.requester.errors["what"] = error
    request = pb.ModelInferRequest(model_name="failing", raw_input_contents=[pack([b"what"])])
    add_input(request, "INPUT0", (1,), "BYTES")
    assert refusal(frontend.call, "ModelInfer", request) == expected


def test_long_errors_are_shortened(frontend: Frontend) -> None:
    """Clients take 8 KiB of metadata, no more."""
    request = pb.ModelInferRequest(model_name="failing", raw_input_contents=[pack([b"what"])])
    add_input(request, "INPUT0", (1,), "BYTES")
    for text in ("x" * 100_000, "\u20ac\n" * 30_000):
        frontend.requester.errors["what"] = Internal(text)
        code, shown = refusal(frontend.call, "ModelInfer", request)
        assert code == "INTERNAL"
        assert shown.endswith("...")
        assert text.startswith(shown[:-3])
        assert len(shown) > 1000


def test_classes_of_text_are_refused(frontend: Frontend) -> None:
    request = typed_request("one_string", "BYTES", (1, 1), bytes_contents=[b"x"])
    set_all(request.outputs.add(name="OUTPUT0").parameters, {"classification": 1})
    text = "class result not available for output due to unsupported type 'BYTES'"
    assert refusal(frontend.call, "ModelInfer", request) == (INVALID, text)


@pytest.mark.timeout(10)
def test_very_many_names() -> None:
    """What takes a time that is the square of their number holds everybody up for a minute."""
    request = pb.ModelInferRequest(model_name="simple")
    for i in range(100_000):
        request.inputs.add(name=f"n{i}")
    request.inputs.add(name="n99999")
    with pytest.raises(InvalidArgument, match="input 'n99999' already exists in request"):
        decode(request, [], samples.model(), RegionTableView(), {})
