"""Inference requests: parameters, formats, sizes, raw requests, and anything at all."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.errors import ClientError, InvalidArgument, MalformedJson, TooLarge
from conch.messages import Sequence
from conch.tensors import NUMPY_DTYPES
from frontends.http.request_body import decode, header_length
from frontends.http.request_outputs import BINARY_FORMAT, JSON_FORMAT
from tests.frontends.http.codecs import (
    ANY_BINARY,
    BY_NAME,
    LIMIT,
    NO_REGIONS,
    SIMPLE,
    decode_json,
)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_body_types(wrap: type) -> None:
    body = json.dumps({"inputs": [{"name": "A", "shape": [2], "datatype": "INT8", "data": [1, 2]}]}).encode()
    call, _ = decode(wrap(body), len(body), SIMPLE, NO_REGIONS, LIMIT)
    assert call.inputs[0].data == b"\1\2"
    shown = {"name": "A", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}}
    body = json.dumps({"inputs": [shown]}).encode()
    call, _ = decode(wrap(body + b"\1\2"), len(body), SIMPLE, NO_REGIONS, LIMIT)
    assert bytes(call.inputs[0].data) == b"\1\2"


def test_parameters() -> None:
    inputs: list[Any] = []
    parameters = {
        "sequence_id": 5,
        "sequence_start": True,
        "sequence_end": False,
        "priority": 2,
        "timeout": 10,
        "binary_data_output": True,
        "a": "b",
        "c": 1.5,
        "d": False,
        "e": -3,
        "f": 2**63,
    }
    call, formats = decode_json({"inputs": inputs, "parameters": parameters})
    assert call.sequence == Sequence(5, True, False)
    assert (call.priority, call.timeout_us) == (2, 10)
    assert formats == ANY_BINARY
    assert call.parameters == {"a": "b", "c": 1.5, "d": False, "e": -3, "f": float(2**63)}
    assert decode_json({"inputs": inputs, "parameters": {"sequence_id": "s"}})[0].sequence == Sequence(
        "s", False, False
    )
    for none in (0, ""):
        assert decode_json({"inputs": inputs, "parameters": {"sequence_id": none}})[0].sequence is None
    with pytest.raises(MalformedJson, match="Unable to parse 'sequence_id'"):
        decode_json({"inputs": inputs, "parameters": {"sequence_id": -1}})


def test_output_formats() -> None:
    """What is listed ignores the request's default (inventory 2.1 item 7)."""
    outputs = [{"name": "A"}, {"name": "B", "parameters": {"binary_data": True}}]
    _, formats = decode_json({"inputs": [], "outputs": outputs, "parameters": {"binary_data_output": True}})
    assert formats.listed == {"A": JSON_FORMAT, "B": BINARY_FORMAT}
    _, formats = decode_json({"inputs": [], "outputs": [], "parameters": {"binary_data_output": True}})
    assert formats == ANY_BINARY
    for more, text in (
        ({"classification": 1}, "'shared_memory_region' and 'classification'"),
        ({"binary_data": True}, "'shared_memory_region' and 'binary_data'"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            decode_json({"inputs": [], "outputs": [{"name": "A", "parameters": {"shared_memory_region": "r", **more}}]})


def test_size_limits() -> None:
    body = json.dumps({"inputs": [{"name": "A", "shape": [100], "datatype": "FP64", "data": [0] * 100}]}).encode()
    with pytest.raises(
        TooLarge, match=f"request JSON size of {len(body)} bytes exceeds the maximum allowed input size"
    ):
        decode(body, len(body), SIMPLE, NO_REGIONS, len(body) - 1)
    with pytest.raises(
        TooLarge, match=r"JSON input 'A' has a byte_size \(800 bytes\) that exceeds the maximum allowed"
    ):
        decode(body, len(body), SIMPLE, NO_REGIONS, 799)
    decode(body, len(body), SIMPLE, NO_REGIONS, 800)
    body = json.dumps({"inputs": [{"name": "A", "shape": [100], "datatype": "BYTES", "data": [""] * 100}]}).encode()
    with pytest.raises(TooLarge, match=r"JSON input 'A' has a byte_size \(400 bytes\)"):
        decode(body.replace(b" ", b""), len(body.replace(b" ", b"")), SIMPLE, NO_REGIONS, 399)
    # blobs are not bounded
    shown = {"name": "A", "shape": [1000], "datatype": "INT8", "parameters": {"binary_data_size": 1000}}
    header = json.dumps({"inputs": [shown]}).encode()
    call, _ = decode(header + bytes(1000), len(header), SIMPLE, NO_REGIONS, len(header))
    assert len(call.inputs[0].data) == 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, 10), (b"0", 0), (b"10", 10), (b"010", 10)],
)
def test_header_length(value: bytes | None, expected: int) -> None:
    assert header_length(value, 10) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"11", r"inference header size should be in range \(0, 10\), got: 11"),
        (b"-1", r"inference header size should be in range \(0, 10\), got: -1"),
        (b"x", "Unable to parse Inference-Header-Content-Length, got: x"),
        (b"", "Unable to parse Inference-Header-Content-Length, got: "),
        (b"1_0", "Unable to parse Inference-Header-Content-Length, got: 1_0"),
        ("١".encode(), "Unable to parse Inference-Header-Content-Length"),
        (b"99999999999", r"value is out of range \[ -2147483648, 2147483647 \], got: 99999999999"),
    ],
)
def test_bad_header_length(value: bytes, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        header_length(value, 10)


def test_raw_request() -> None:
    call, formats = decode(bytes(16), 0, BY_NAME["four"], NO_REGIONS, LIMIT)
    assert (call.inputs[0].name, call.inputs[0].shape, len(call.inputs[0].data)) == ("INPUT0", (1, 4), 16)
    assert formats == ANY_BINARY
    call, _ = decode(bytes(20), 0, BY_NAME["echo_fp32"], NO_REGIONS, LIMIT)
    assert call.inputs[0].shape == (5,)
    call, _ = decode(b"427", 0, BY_NAME["one_string"], NO_REGIONS, LIMIT)
    assert (call.inputs[0].shape, call.inputs[0].data) == ((1, 1), b"\3\0\0\x00427")
    with pytest.raises(TooLarge, match=r"Raw input has a byte_size \(20 bytes\) that exceeds"):
        decode(bytes(20), 0, BY_NAME["echo_fp32"], NO_REGIONS, 19)
    for name, text in (
        ("simple", r"Raw request must only have 1 input \(found 1\) to be deduced but got 2 inputs in 'simple'"),
        ("matrix", "The shape of the raw input 'INPUT0' can not be deduced because there are more than one variable"),
        ("echo_bytes", r"For BYTE datatype raw input 'INPUT0', the model must have input shape \[1\]"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            decode(bytes(16), 0, BY_NAME[name], NO_REGIONS, LIMIT)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            key: st.none() | st.booleans() | st.integers(-2, 2**65) | st.floats() | st.text(max_size=3) | inner
            for key, inner in (
                ("id", st.text(max_size=3)),
                (
                    "parameters",
                    st.dictionaries(st.sampled_from(("priority", "timeout", "sequence_id", "x")), st.integers()),
                ),
                ("outputs", st.lists(st.fixed_dictionaries({"name": st.text(max_size=2)}), max_size=3)),
                (
                    "inputs",
                    st.lists(
                        st.fixed_dictionaries(
                            {
                                "name": st.sampled_from(("INPUT0", 1)),
                                "shape": st.lists(st.integers(-1, 2**64) | st.integers(0, 3), max_size=3),
                                "datatype": st.sampled_from((*NUMPY_DTYPES, "X", None)),
                            },
                            optional={
                                "data": st.recursive(
                                    st.integers() | st.booleans() | st.floats() | st.text(max_size=2),
                                    st.lists,
                                    max_leaves=8,
                                ),
                                "parameters": st.fixed_dictionaries(
                                    {}, optional={"binary_data_size": st.integers(-1, 5)}
                                ),
                            },
                        ),
                        max_size=2,
                    ),
                ),
            )
        },
    )
)
def test_anything_is_decoded_or_refused(value: Any) -> None:
    body = json.dumps(value).encode()
    try:
        decode(body + b"1234", len(body), SIMPLE, NO_REGIONS, LIMIT)
    except (ClientError, MalformedJson) as error:
        assert error.message


@pytest.mark.timeout(10)
def test_shapes_of_very_many_dimensions() -> None:
    """The product of these takes half a minute."""
    dims = [2**63 - 1] * 100_000
    wanted = {"name": "A", "datatype": "INT8", "data": []}
    with pytest.raises(InvalidArgument, match="causes total element count to exceed maximum size of"):
        decode_json({"inputs": [{**wanted, "shape": dims}]})
    call, _ = decode_json({"inputs": [{**wanted, "shape": [*dims, 0]}]})
    assert call.inputs[0].data == b""
