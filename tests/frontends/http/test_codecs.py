"""Bodies both ways: against the official client's own code, against Python's ``json``, and at the edges."""

import json
import math
import struct
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from conch.errors import ClientError, Internal, InvalidArgument, MalformedJson, TooLarge
from conch.messages import Sequence
from conch.model_config import decode_config
from conch.tensors import NUMPY_DTYPES, pack
from frontends.http.compression import decompressed
from frontends.http.exchange import Reply
from frontends.http.json_values import MAX_DEPTH, _depth, parse
from frontends.http.request_body import BINARY_FORMAT, JSON_FORMAT, OutputFormat, OutputFormats, decode, header_length
from frontends.http.response_body import encode
from frontends.http.tensor_json import dumps, from_wire, to_wire
from frontends.inference import InferenceCall, InferenceResult, OutputTensor
from frontends.models import ReadyModel
from tests.frontends.http.support import MODELS, config

LIMIT = 1 << 26
NUMERIC = [name for name in NUMPY_DTYPES if name not in ("BYTES", "FP16")]
#: JSON cannot say FP16
WAYS = [(name, binary) for name in (*NUMERIC, "FP16", "BYTES") for binary in (False, True) if name != "FP16" or binary]
ANY_JSON = OutputFormats(JSON_FORMAT, {})
ANY_BINARY = OutputFormats(BINARY_FORMAT, {})


def model(settings: dict[str, Any], labels: dict[str, tuple[str, ...]] | None = None) -> ReadyModel:
    text = msgspec.json.encode(settings).decode()
    return ReadyModel(settings["name"], 1, decode_config(text), text, labels or {})


BY_NAME = {settings["name"]: model(settings) for settings in MODELS}
SIMPLE = BY_NAME["simple"]


def decode_json(value: Any, of: ReadyModel = SIMPLE, limit: int = LIMIT) -> tuple[InferenceCall, OutputFormats]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decode(body, len(body), of, limit)


def result(*outputs: OutputTensor, **more: Any) -> InferenceResult:
    return InferenceResult(
        more.get("name", "m"), 1, more.get("id", ""), more.get("parameters", {}), list(outputs), more.get("give_back")
    )


def whole(reply: Reply) -> bytes:
    return reply.body + b"".join(reply.views)


def json_nbytes(reply: Reply) -> int:
    for line in reply.headers.split(b"\r\n"):
        if line.startswith(b"Inference-Header-Content-Length: "):
            return int(line.split()[1])
    return len(reply.body)


# --------------------------------------------------------------------------------------------------- official client


def arrays(datatype: str) -> st.SearchStrategy[Any]:
    shapes = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
    if datatype == "BYTES":
        return hnp.arrays(
            np.object_, shapes, elements=st.text(st.characters(codec="utf-8"), max_size=20).map(str.encode)
        )
    return hnp.arrays(NUMPY_DTYPES[datatype], shapes)


@pytest.mark.parametrize(("datatype", "binary"), WAYS)
def test_client_requests(datatype: str, binary: bool) -> None:
    """What tritonclient sends, we read as the same tensors."""

    @settings(max_examples=40, deadline=None)
    @given(first=arrays(datatype), second=arrays(datatype))
    def check(first: Any, second: Any) -> None:
        inputs = []
        for name, array in (("INPUT0", first), ("INPUT1", second)):
            tensor = InferInput(name, list(array.shape), datatype)
            try:
                tensor.set_data_from_numpy(array, binary_data=binary)
            except Exception:
                return  # FP16 and NaN are refused by the client
            inputs.append(tensor)
        outputs = [InferRequestedOutput("OUTPUT0", binary_data=binary), InferRequestedOutput("OUTPUT1", class_count=2)]
        body, nbytes = InferenceServerClient.generate_request_body(inputs, outputs=outputs, request_id="7")
        call, formats = decode(body, nbytes if nbytes is not None else len(body), SIMPLE, LIMIT)
        assert call.client_id == "7"
        assert [tensor.name for tensor in call.inputs] == ["INPUT0", "INPUT1"]
        assert call.outputs == ("OUTPUT0", "OUTPUT1")
        assert formats.listed == {"OUTPUT0": OutputFormat(binary, 0), "OUTPUT1": OutputFormat(True, 2)}
        for tensor, array in zip(call.inputs, (first, second), strict=True):
            assert tensor.datatype == datatype
            assert tensor.shape == array.shape
            wire = pack(array.reshape(-1).tolist()) if datatype == "BYTES" else array.tobytes()
            if np.issubdtype(array.dtype, np.floating) and not binary:  # JSON's NaN has no sign
                found = np.frombuffer(tensor.data, array.dtype) if len(tensor.data) else array.reshape(-1)
                assert np.array_equal(found, array.reshape(-1), equal_nan=True)
            else:
                assert bytes(tensor.data) == wire

    check()


@pytest.mark.parametrize(("datatype", "binary"), WAYS)
def test_client_responses(datatype: str, binary: bool) -> None:
    """What we answer, tritonclient reads as the same arrays."""

    @settings(max_examples=40, deadline=None)
    @given(first=arrays(datatype), second=arrays(datatype), name=st.text(st.characters(codec="utf-8"), min_size=1))
    def check(first: Any, second: Any, name: str) -> None:
        outputs = []
        for output, array in (("OUTPUT0", first), (name, second)):
            wire = pack(array.reshape(-1).tolist()) if datatype == "BYTES" else array.tobytes()
            outputs.append(OutputTensor(output, datatype, array.shape, wire))
        reply = encode(result(*outputs, id="7"), ANY_BINARY if binary else ANY_JSON, SIMPLE)
        shown = InferenceServerClient.parse_response_body(whole(reply), header_length=json_nbytes(reply))
        assert shown.get_response()["id"] == "7"
        for output, array in (("OUTPUT0", first), (name, second)):
            if output == "OUTPUT0" and name == "OUTPUT0":
                continue
            found = shown.as_numpy(output)
            expected = array
            if datatype == "BYTES" and not binary:
                found = np.array([text.encode() for text in found.reshape(-1)], np.object_).reshape(found.shape)
            if array.dtype.kind == "f":
                assert found.tobytes() == expected.tobytes() or np.array_equal(found, expected, equal_nan=True)
            else:
                assert np.array_equal(found, expected)
            assert found.shape == array.shape

    check()


# ----------------------------------------------------------------------------------------------------- JSON of tensors

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


# --------------------------------------------------------------------------------------------------------- JSON as such


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats()
        | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
        max_leaves=20,
    )
)
def test_parse_agrees_with_the_standard_library(value: Any) -> None:
    text = json.dumps(value).encode()
    assert repr(parse(text, LIMIT)) == repr(json.loads(text))
    assert repr(parse(bytearray(text), LIMIT)) == repr(json.loads(text))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{}",:\\ntrue019.eE+- ', max_size=60).map(str.encode))
def test_parse_of_anything(text: bytes) -> None:
    try:
        parse(text, LIMIT)
    except MalformedJson as error:
        assert error.message.startswith("failed to parse the request JSON buffer: ")


@settings(max_examples=200, deadline=None)
@given(st.text('[]{}"\\a', max_size=40))
def test_depth(text: str) -> None:
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            in_string = character != '"' or escaped
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    assert max(0, _depth(text.encode())) == deepest


def test_depth_limits() -> None:
    for depth in (MAX_DEPTH - 3, MAX_DEPTH - 2):
        body = (
            b'{"inputs":[{"name":"A","shape":[1],"datatype":"INT8","data":'
            + b"[" * depth
            + b"1"
            + b"]" * depth
            + b"}]}"
        )
        if depth == MAX_DEPTH - 3:
            assert decode_json(body)[0].inputs[0].data == b"\1"
        else:
            with pytest.raises(InvalidArgument, match=r"JSON nesting depth exceeds maximum allowed limit \(100\)"):
                decode_json(body)
    many = b'{"x":[' + b",".join([b'{"a":"[[[["}'] * 1000) + b"]}"
    assert len(parse(many, LIMIT)["x"]) == 1000


@pytest.mark.parametrize(
    "text",
    [b'"' * 200_001, b'"' + b'\\"' * 100_000, b'{"a' * 100_000, b"[" * 500_000, b'"\\' * 100_000, b"[" * 200 + b'"'],
)
def test_nothing_takes_long(text: bytes) -> None:
    import time

    begin = time.monotonic()
    with pytest.raises(ClientError):
        parse(text, LIMIT)
    assert time.monotonic() - begin < 0.2


@pytest.mark.parametrize("text", ["1e400", "-1e400", "[NaN,1e400]", "[NaN," + "9" * 400 + "]", '[NaN,"\\ud800"]'])
def test_numbers_too_big_and_half_characters(text: str) -> None:
    with pytest.raises(MalformedJson):
        parse(text.encode(), LIMIT)


def test_big_integers_become_floats() -> None:
    for prefix in ("[", "[NaN,"):
        found = parse((prefix + "18446744073709551615,18446744073709551616,-9223372036854775809]").encode(), LIMIT)
        assert repr(found[-3:]) == "[18446744073709551615, 1.8446744073709552e+19, -9.223372036854776e+18]"


# ------------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_body_types(wrap: type) -> None:
    body = json.dumps({"inputs": [{"name": "A", "shape": [2], "datatype": "INT8", "data": [1, 2]}]}).encode()
    call, _ = decode(wrap(body), len(body), SIMPLE, LIMIT)
    assert call.inputs[0].data == b"\1\2"
    shown = {"name": "A", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}}
    body = json.dumps({"inputs": [shown]}).encode()
    call, _ = decode(wrap(body + b"\1\2"), len(body), SIMPLE, LIMIT)
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
        decode(body, len(body), SIMPLE, len(body) - 1)
    with pytest.raises(
        TooLarge, match=r"JSON input 'A' has a byte_size \(800 bytes\) that exceeds the maximum allowed"
    ):
        decode(body, len(body), SIMPLE, 799)
    decode(body, len(body), SIMPLE, 800)
    body = json.dumps({"inputs": [{"name": "A", "shape": [100], "datatype": "BYTES", "data": [""] * 100}]}).encode()
    with pytest.raises(TooLarge, match=r"JSON input 'A' has a byte_size \(400 bytes\)"):
        decode(body.replace(b" ", b""), len(body.replace(b" ", b"")), SIMPLE, 399)
    # blobs are not bounded
    shown = {"name": "A", "shape": [1000], "datatype": "INT8", "parameters": {"binary_data_size": 1000}}
    header = json.dumps({"inputs": [shown]}).encode()
    call, _ = decode(header + bytes(1000), len(header), SIMPLE, len(header))
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
    call, formats = decode(bytes(16), 0, BY_NAME["four"], LIMIT)
    assert (call.inputs[0].name, call.inputs[0].shape, len(call.inputs[0].data)) == ("INPUT0", (1, 4), 16)
    assert formats == ANY_BINARY
    call, _ = decode(bytes(20), 0, BY_NAME["echo_fp32"], LIMIT)
    assert call.inputs[0].shape == (5,)
    call, _ = decode(b"427", 0, BY_NAME["one_string"], LIMIT)
    assert (call.inputs[0].shape, call.inputs[0].data) == ((1, 1), b"\3\0\0\x00427")
    with pytest.raises(TooLarge, match=r"Raw input has a byte_size \(20 bytes\) that exceeds"):
        decode(bytes(20), 0, BY_NAME["echo_fp32"], 19)
    for name, text in (
        ("simple", r"Raw request must only have 1 input \(found 1\) to be deduced but got 2 inputs in 'simple'"),
        ("matrix", "The shape of the raw input 'INPUT0' can not be deduced because there are more than one variable"),
        ("echo_bytes", r"For BYTE datatype raw input 'INPUT0', the model must have input shape \[1\]"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            decode(bytes(16), 0, BY_NAME[name], LIMIT)


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
        decode(body + b"1234", len(body), SIMPLE, LIMIT)
    except (ClientError, MalformedJson) as error:
        assert error.message


def test_compression() -> None:
    import gzip

    body = b"x" * 1000
    assert decompressed(gzip.compress(body), b"gzip", 1000) == body
    assert decompressed(zlib.compress(body), b"deflate", 1000) == body
    assert decompressed(body, b"identity", 10) == body
    with pytest.raises(TooLarge, match="Decompressed data size exceeds the maximum allowed value of 999 bytes"):
        decompressed(gzip.compress(body), b"gzip", 999)
    for broken in (body, gzip.compress(body)[:-9], b""):
        with pytest.raises(InvalidArgument):
            decompressed(broken, b"gzip", 1000)


# ------------------------------------------------------------------------------------------------------- classification


def classes(values: Any, count: int, labels: tuple[str, ...] = (), batched: bool = True) -> tuple[list[int], list[str]]:
    array = np.asarray(values)
    datatype = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64", np.dtype(np.float64): "FP64"}[array.dtype]
    shown = model(config("c", datatype, [-1], max_batch_size=8 if batched else 0), {"O": labels})
    output = OutputTensor("O", datatype, array.shape, array.tobytes())
    reply = encode(result(output), OutputFormats(JSON_FORMAT, {"O": OutputFormat(False, count)}), shown)
    found = json.loads(reply.body)["outputs"][0]
    assert found["datatype"] == "BYTES"
    return found["shape"], found["data"]


def test_classification() -> None:
    scores = np.array([[0.1, 0.5, 0.25], [3.0, -1.0, 3.0]], np.float32)
    assert classes(scores, 2, ("cat", "dog")) == (
        [2, 2],
        ["0.500000:1:dog", "0.250000:2", "3.000000:0:cat", "3.000000:2"],
    )
    assert classes(scores, 9) == (
        [2, 3],
        ["0.500000:1", "0.250000:2", "0.100000:0", "3.000000:0", "3.000000:2", "-1.000000:1"],
    )
    assert classes(scores.reshape(2, 3, 1), 1) == ([2, 1], ["0.500000:1", "3.000000:0"])
    assert classes(scores, 2, batched=False) == ([2], ["3.000000:3", "3.000000:5"])
    assert classes(np.array([[5, -7]]), 2, ("a", "")) == ([1, 2], ["5:0:a", "-7:1"])


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.sampled_from((0.0, 1.0, 2.5, -1))
    ),
    st.integers(1, 45),
)
def test_classification_order(values: Any, count: int) -> None:
    shape, texts = classes(values, count)
    shown = min(count, values.shape[1])
    assert shape == [values.shape[0], shown]
    for row, item in enumerate(values):
        best = sorted(range(len(item)), key=lambda i: (-item[i], i))[:shown]
        assert texts[row * shown : (row + 1) * shown] == [f"{item[i]:f}:{i}" for i in best]


@pytest.mark.parametrize("datatype", ["BYTES", "BOOL", "FP16", "BF16"])
def test_classification_of_unsupported_types(datatype: str) -> None:
    shown = model(config("c", datatype, [1]))
    with pytest.raises(
        InvalidArgument, match=f"class result not available for output due to unsupported type '{datatype}'"
    ):
        encode(
            result(OutputTensor("O", datatype, (1,), b"\0\0")),
            OutputFormats(JSON_FORMAT, {"O": OutputFormat(True, 1)}),
            shown,
        )


def test_classification_of_too_much() -> None:
    with pytest.raises(InvalidArgument, match="classification output tensor too large"):
        classes(np.zeros((1, 1_000_001), np.float32), 1)
    assert classes(np.zeros((1, 1_000_000), np.float32), 1) == ([1, 1], ["0.000000:0"])


# ----------------------------------------------------------------------------------------------------- borrowed answers


def test_what_is_borrowed_is_given_back_once() -> None:
    given_back: list[int] = []

    def borrowed(nbytes: int) -> InferenceResult:
        view = memoryview(bytearray(nbytes)).toreadonly()
        return result(OutputTensor("O", "INT8", (nbytes,), view), give_back=lambda: given_back.append(1))

    reply = encode(borrowed(100), ANY_JSON, SIMPLE)
    assert (len(given_back), reply.views, reply.release) == (1, (), None)
    reply = encode(borrowed(65536), ANY_BINARY, SIMPLE)
    assert (len(given_back), reply.views, reply.release) == (2, (), None)
    assert reply.body.endswith(bytes(65536))
    reply = encode(borrowed(65537), ANY_BINARY, SIMPLE)
    assert len(given_back) == 2 and len(reply.views) == 1 and reply.release is not None
    reply.release()
    reply.release()
    assert len(given_back) == 3
