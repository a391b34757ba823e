"""Numbers and strings between JSON lists and wire bytes."""

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conch.errors import Internal, InvalidArgument, MalformedJson
from conch.requester.inference import OutputTensor
from conch.tensors import NUMPY_DTYPES, pack
from frontends.http.json_values import parse
from frontends.http.request_outputs import BINARY_FORMAT, JSON_FORMAT, OutputFormats
from frontends.http.response_body import encode
from frontends.http.tensor_json import dumps, from_wire, to_wire
from tests.frontends.http.codecs import (
    ANY_JSON,
    BY_NAME,
    LIMIT,
    NUMERIC,
    SIMPLE,
    decode_json,
    json_nbytes,
    result,
)

INTEGERS = {name: np.iinfo(NUMPY_DTYPES[name]) for name in NUMERIC if "INT" in name}


def nested(values: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return values[0]
    if len(shape) == 1:
        return values
    step = math.prod(shape[1:])
    return [nested(values[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


@pytest.mark.parametrize("datatype", NUMERIC)
def test_numbers_round_trip(datatype: str) -> None:
    element: st.SearchStrategy[Any]
    if datatype == "BOOL":
        element = st.booleans()
    elif datatype in INTEGERS:
        element = st.integers(int(INTEGERS[datatype].min), int(INTEGERS[datatype].max))
    else:
        element = st.floats(width=32 if datatype == "FP32" else 64)

    @settings(max_examples=60, deadline=None)
    @given(values=st.lists(element, max_size=600), rows=st.sampled_from((1, 2, 3)))
    def check(values: list[Any], rows: int) -> None:
        values = values * rows
        data = nested(values, (rows, len(values) // rows)) if values else []
        text = dumps(values)
        parsed = parse(b'{"data":' + text + b"}", LIMIT)["data"]
        assert np.array_equal(np.array(parsed), np.array(values), equal_nan=datatype[0] == "F")
        wire = to_wire("X", datatype, data, len(values))
        assert wire == np.array(values, NUMPY_DTYPES[datatype]).tobytes() or datatype[0] == "F"
        back = from_wire("X", datatype, wire, len(values))
        assert np.array_equal(np.array(back), np.array(values), equal_nan=datatype[0] == "F")
        assert list(back) == list(from_wire("X", datatype, memoryview(wire), len(values))) or datatype[0] == "F"

    check()


def test_fp32_is_written_as_the_double_that_equals_it() -> None:
    wire = struct.pack("<4f", 0.1, 1.0, -0.0, 16777216.0)
    reply = encode(result(OutputTensor("O", "FP32", (4,), wire)), ANY_JSON, SIMPLE)
    assert b'"data":[0.10000000149011612,1.0,-0.0,16777216.0]' in reply.body


def test_nan_and_infinity() -> None:
    wire = struct.pack("<5d", math.nan, math.inf, -math.inf, 0.5, 1e300)
    name = 'null"ö'
    reply = encode(
        result(
            OutputTensor(name, "FP64", (5,), wire),
            OutputTensor("OTHER", "BYTES", (2,), pack([b"null", b""])),
            OutputTensor("BLOB", "INT8", (1,), b"\1"),
            id="null",
            name="null",
            parameters={"a": math.nan, "b": True, "c": "null", "d": 5},
        ),
        OutputFormats(JSON_FORMAT, {"BLOB": BINARY_FORMAT}),
        SIMPLE,
    )
    text = reply.body[: json_nbytes(reply)]
    assert b'"data":[NaN,Infinity,-Infinity,0.5,1e300]' in text.replace(b"e+", b"e")
    assert b'"parameters":{"a":NaN,"b":true,"c":"null","d":5}' in text
    shown = json.loads(text)
    assert list(shown) == ["id", "model_name", "model_version", "parameters", "outputs"]
    assert [output["name"] for output in shown["outputs"]] == [name, "OTHER", "BLOB"]
    assert shown["outputs"][1]["data"] == ["null", ""]
    assert shown["outputs"][2] == {
        "name": "BLOB",
        "datatype": "INT8",
        "shape": [1],
        "parameters": {"binary_data_size": 1},
    }
    call, _ = decode_json(
        b'{"inputs":[{"name":"A","shape":[4],"datatype":"FP32","data":[NaN,-Infinity,1,Infinity]}]}',
        BY_NAME["echo_fp32"],
    )
    assert struct.unpack("<4f", call.inputs[0].data)[1:] == (-math.inf, 1.0, math.inf)
    assert math.isnan(struct.unpack("<4f", call.inputs[0].data)[0])


def test_a_double_beyond_fp32_is_infinite() -> None:
    assert to_wire("X", "FP32", [1e300, 2], 2) == struct.pack("<2f", math.inf, 2)


@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("count", [1, 300])
def test_integers_out_of_range(datatype: str, count: int) -> None:
    limits = INTEGERS[datatype]
    for value in (int(limits.min), int(limits.max)):
        assert len(to_wire("X", datatype, [value] * count, count)) == count * limits.bits // 8
    for value in (int(limits.min) - 1, int(limits.max) + 1):
        with pytest.raises((MalformedJson, InvalidArgument), match="Unable to parse 'data': "):
            to_wire("X", datatype, [value] * count, count)


@pytest.mark.parametrize("wrong", [True, 1.0, "1", None, {}])
@pytest.mark.parametrize("datatype", INTEGERS)
@pytest.mark.parametrize("count", [2, 300])
def test_not_integers(datatype: str, wrong: Any, count: int) -> None:
    data = [1] * (count - 1) + [wrong]
    with pytest.raises(MalformedJson):
        to_wire("X", datatype, data, count)


def test_ragged_nesting_is_flattened() -> None:
    assert to_wire("X", "INT8", [1, [2, [3], []], 4], 4) == b"\1\2\3\4"


@pytest.mark.parametrize(
    ("datatype", "data", "kind", "text"),
    [
        ("FP16", b"\0\0", InvalidArgument, "sending FP16 data via JSON is not supported"),
        ("BF16", b"", InvalidArgument, "sending BF16 data via JSON is not supported"),
        ("BYTES", pack([b"\xff"]), InvalidArgument, "not UTF-8"),
        ("BYTES", pack([b"a", b"b"]), Internal, "does not match size"),
        ("BYTES", b"\5\0\0\0a", Internal, "does not match size"),
        ("INT32", b"\0" * 5, Internal, "does not match size"),
    ],
)
def test_outputs_that_cannot_be_shown(datatype: str, data: bytes, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        encode(result(OutputTensor("O", datatype, (1,), data)), ANY_JSON, SIMPLE)
