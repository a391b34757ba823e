"""Unary inferences that succeed: where their tensors come from and go to."""

import time
from typing import Any

import numpy as np
import pytest

from conch.messages import Region, RegionTable, Sequence
from conch.requester.inference import InferenceCall, InferenceResult, OutputTensor, RegionWindow
from conch.requester.models import ReadyModel
from conch.tensors import pack
from tests.frontends.grpc.support import (
    EngineName,
    Frontend,
    add_input,
    pb,
    refusal,
    set_all,
    simple_request,
    sums,
    typed_request,
)
from tests.frontends.http.support import StubRequester


def test_raw_contents(frontend: Frontend) -> None:
    response = frontend.call("ModelInfer", simple_request(id="a/b 1"))
    assert (response.model_name, response.model_version, response.id) == ("simple", "1", "a/b 1")
    assert [(output.name, output.datatype, list(output.shape)) for output in response.outputs] == [
        ("OUTPUT0", "INT32", [1, 16]),
        ("OUTPUT1", "INT32", [1, 16]),
    ]
    assert sums(response) == [list(range(1, 17)), list(range(-1, 15))]
    assert not any(output.HasField("contents") for output in response.outputs)


def test_only_what_is_asked_for(frontend: Frontend) -> None:
    request = simple_request()
    request.outputs.add(name="OUTPUT1")
    response = frontend.call("ModelInfer", request)
    assert [output.name for output in response.outputs] == ["OUTPUT1"]
    assert sums(response) == [list(range(-1, 15))]


def test_more_raw_contents_than_inputs_are_ignored_as_in_triton(frontend: Frontend) -> None:
    request = simple_request()
    request.raw_input_contents.append(b"more")
    assert sums(frontend.call("ModelInfer", request))[0] == list(range(1, 17))


@pytest.mark.parametrize(
    ("datatype", "field", "values", "wire"),
    [
        ("BOOL", "bool_contents", [True, False, True], b"\1\0\1"),
        ("INT8", "int_contents", [-128, 0, 127], np.array([-128, 0, 127], np.int8).tobytes()),
        ("INT16", "int_contents", [-32768, 5, 32767], np.array([-32768, 5, 32767], np.int16).tobytes()),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1], np.array([-(2**31), 2**31 - 1], np.int32).tobytes()),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1], np.array([-(2**63), 2**63 - 1], np.int64).tobytes()),
        ("UINT8", "uint_contents", [0, 255], b"\0\xff"),
        ("UINT16", "uint_contents", [0, 65535], b"\0\0\xff\xff"),
        ("UINT32", "uint_contents", [2**32 - 1], b"\xff" * 4),
        ("UINT64", "uint64_contents", [2**64 - 1, 2**53 + 1], np.array([2**64 - 1, 2**53 + 1], np.uint64).tobytes()),
        ("FP32", "fp32_contents", [0.5, float("inf")], np.array([0.5, np.inf], np.float32).tobytes()),
        ("FP64", "fp64_contents", [0.1], np.array([0.1], np.float64).tobytes()),
        ("BYTES", "bytes_contents", [b"a\0b", b"", b"\xff"], pack([b"a\0b", b"", b"\xff"])),
        ("FP32", "fp32_contents", [], b""),
    ],
)
def test_typed_contents(frontend: Frontend, datatype: str, field: str, values: list[Any], wire: bytes) -> None:
    request = typed_request(f"echo_{datatype.lower()}", datatype, (len(values),), **{field: values})
    response = frontend.call("ModelInfer", request)
    assert list(response.raw_output_contents) == [wire]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_sixteen_bit_floats_are_raw(frontend: Frontend, datatype: str) -> None:
    request = pb.ModelInferRequest(model_name=f"echo_{datatype.lower()}", raw_input_contents=[b"\x00\x3c\x00\x40"])
    add_input(request, "INPUT0", (2,), datatype)
    assert list(frontend.call("ModelInfer", request).raw_output_contents) == [b"\x00\x3c\x00\x40"]


@pytest.mark.parametrize("nbytes", [16, 1 << 16, 5 << 20])
def test_sizes(frontend: Frontend, nbytes: int) -> None:
    data = np.random.default_rng(1).bytes(nbytes)
    request = pb.ModelInferRequest(model_name="echo_uint8", raw_input_contents=[data])
    add_input(request, "INPUT0", (nbytes,), "UINT8")
    assert frontend.call("ModelInfer", request).raw_output_contents[0] == data


def test_classification(frontend: Frontend) -> None:
    scores = np.array([[0.1, 0.9, 0.5, -1, 3]], np.float32)
    request = pb.ModelInferRequest(model_name="scores", raw_input_contents=[scores.tobytes()])
    add_input(request, "INPUT0", (1, 5), "FP32")
    set_all(request.outputs.add(name="OUTPUT0").parameters, {"classification": 3})
    response = frontend.call("ModelInfer", request)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [1, 3])
    assert response.raw_output_contents[0] == pack([b"3.000000:4", b"0.900000:1:dog", b"0.500000:2"])
    request.outputs[0].parameters["classification"].int64_param = 2**62
    assert list(frontend.call("ModelInfer", request).outputs[0].shape) == [1, 5]


def test_parameters(frontend: Frontend) -> None:
    request = simple_request()
    given = {"echo_i": -5, "echo_b": True, "echo_s": "text", "echo_d": 0.25}
    set_all(request.parameters, {**given, "priority": 3, "timeout": 1000, "headers": "kept"})
    response = frontend.call("ModelInfer", request)
    shown = {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in response.parameters.items()}
    assert shown == given
    call = frontend.requester.submitted[-1]
    assert call.parameters == {**given, "headers": "kept"}
    assert (call.priority, call.timeout_us, call.sequence) == (3, 1000, None)


def test_numbers_are_unsigned_and_64_bits_wide_as_in_triton(frontend: Frontend) -> None:
    request = simple_request()
    request.parameters["priority"].uint64_param = 2**64 - 1
    set_all(request.parameters, {"timeout": -1, "sequence_id": -2, "sequence_start": True, "sequence_end": False})
    frontend.call("ModelInfer", request)
    call = frontend.requester.submitted[-1]
    assert (call.priority, call.timeout_us) == (2**64 - 1, 2**64 - 1)
    assert call.sequence == Sequence(2**64 - 2, True, False)


@pytest.mark.parametrize(("given", "known"), [("a b", "a b"), (7, 7), (0, None), ("", None)])
def test_sequence_ids(frontend: Frontend, given: int | str, known: int | str | None) -> None:
    request = simple_request()
    set_all(request.parameters, {"sequence_id": given})
    frontend.call("ModelInfer", request)
    sequence = frontend.requester.submitted[-1].sequence
    assert (sequence and sequence.id) == known


def test_the_deadline_goes_with_the_call(frontend: Frontend) -> None:
    frontend.raw("ModelInfer", simple_request().SerializeToString(), timeout_s=8)
    deadline = frontend.requester.submitted[-1].deadline
    assert deadline is not None
    assert 0 < deadline - time.monotonic() <= 8.1  # clients send whole units of time


def test_metadata_is_forwarded(engine: EngineName) -> None:
    with Frontend(engine, grpc_header_forward_pattern="^my-") as frontend:
        frontend.call("ModelInfer", simple_request(), (("my-key", "value"), ("other", "no"), ("my-bin", b"\1\xff")))  # type: ignore[arg-type]
        assert frontend.requester.submitted[-1].parameters == {"my-key": "value", "my-bin": "\x01\udcff"}


class _InRegions(StubRequester):
    """Its answers lie in the clients' memory."""

    def _result(self, model: ReadyModel, call: InferenceCall) -> InferenceResult:
        outputs = [OutputTensor(name, "INT32", (1, 16), b"", window) for name, window in call.targets.items()]
        return InferenceResult(model.name, model.version, call.client_id, {}, outputs, None)


def test_shared_memory(engine: EngineName) -> None:
    """Only what is in the message counts for ``raw_input_contents``."""
    region = Region("system", "region", 11, 0, 256, "/key")
    with Frontend(engine, requester=_InRegions()) as frontend:
        frontend.requester.regions.update(RegionTable(1, 1, (region,)))
        request = pb.ModelInferRequest(model_name="simple", raw_input_contents=[bytes(64)])
        place: dict[str, Any] = {"shared_memory_region": "region", "shared_memory_byte_size": 64}
        add_input(request, "INPUT0", shared_memory_offset=64, **place)
        add_input(request, "INPUT1")
        set_all(request.outputs.add(name="OUTPUT0").parameters, {"shared_memory_offset": 128, **place})
        response = frontend.call("ModelInfer", request)
        call = frontend.requester.submitted[-1]
        assert call.inputs[0].region == RegionWindow("region", 11, 64, 64)
        assert call.inputs[1].region is None
        assert call.targets == {"OUTPUT0": RegionWindow("region", 11, 128, 64)}
        assert list(response.raw_output_contents) == [b""]
        assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("INT32", [1, 16])


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({"shared_memory_offset": 257}, "Invalid offset for shared memory region: 'region'"),
        ({"shared_memory_offset": -1}, "Invalid offset for shared memory region: 'region'"),
        ({"shared_memory_offset": 224}, "Invalid offset + byte size for shared memory region: 'region'"),
        ({"shared_memory_byte_size": -1}, "Invalid offset + byte size for shared memory region: 'region'"),
        (
            {"shared_memory_byte_size": -1, "shared_memory_offset": 8},
            "Integer overflow detected: byte_size (18446744073709551615) + offset (8) exceeds maximum value "
            "(18446744073709551615) for region 'region'",
        ),
        ({"shared_memory_byte_size": 2**63 - 1}, "Invalid offset + byte size for shared memory region: 'region'"),
    ],
)
def test_places_outside_a_region(frontend: Frontend, place: dict[str, int], text: str) -> None:
    region = Region("system", "region", 11, 0, 256, "/key")
    frontend.do(lambda: frontend.requester.regions.update(RegionTable(1, 1, (region,))))
    request = pb.ModelInferRequest(model_name="simple")
    parameters: dict[str, Any] = {"shared_memory_region": "region", "shared_memory_byte_size": 64, **place}
    add_input(request, "INPUT0", **parameters)
    assert refusal(frontend.call, "ModelInfer", request) == ("INVALID_ARGUMENT", text)
