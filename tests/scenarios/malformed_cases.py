"""Requests that are wrong, and what the real Triton 2.51 answers. Where Conch differs on purpose the case says so."""

import json
import struct
from dataclasses import dataclass, field
from typing import Any

SIMPLE = "/v2/models/simple/infer"
NUMBERS = list(range(16))
BLOB = struct.pack("<16i", *NUMBERS)


@dataclass(frozen=True)
class Case:
    """``text`` is a part of the error's message. ``triton``: the status that Triton gives where ours is another."""

    name: str
    body: bytes
    status: int
    text: str
    path: str = SIMPLE
    headers: dict[str, str] = field(default_factory=dict)
    triton: int | str = ""


def tensor(name: str = "INPUT0", shape: Any = (1, 16), datatype: Any = "INT32", **more: Any) -> dict[str, Any]:
    """An input of ``simple``; ``data`` or ``parameters`` in ``more`` replace the sixteen numbers."""
    source = {} if more else {"data": NUMBERS}
    return {"name": name, "shape": shape, "datatype": datatype, **source, **more}


def request(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": inputs or (tensor(), tensor("INPUT1")), **more}).encode()


def binary(size: Any = 64, name: str = "INPUT0", **more: Any) -> dict[str, Any]:
    return tensor(name, parameters={"binary_data_size": size}, **more)


def with_blobs(first: dict[str, Any], blobs: bytes, length: str | None = None) -> tuple[bytes, dict[str, str]]:
    """A body of ``first``, a good binary INPUT1, and ``blobs``; the length header says ``length`` or the truth."""
    header = request(first, binary(name="INPUT1"))
    return header + blobs, {"Inference-Header-Content-Length": length or str(len(header))}


def one(
    name: str, model: str, datatype: str, data: str, status: int, text: str, shape: str = "[1]", triton: int | str = ""
) -> Case:
    """A request to a model with one input INPUT0; ``data`` and ``shape`` are JSON."""
    body = f'{{"inputs":[{{"name":"INPUT0","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}'
    return Case(name, body.encode(), status, text, f"/v2/models/{model}/infer", triton=triton)


def value(text: str, datatype: str, status: int, error: str, triton: int | str = "") -> Case:
    return one(f"{datatype} {text}", f"echo_{datatype.lower()}", datatype, f"[{text}]", status, error, triton=triton)


def blobs(name: str, first: dict[str, Any], data: bytes, status: int, text: str, length: str | None = None) -> Case:
    body, headers = with_blobs(first, data, length)
    return Case(name, body, status, text, headers=headers)


def strings(name: str, shape: int, data: bytes, text: str) -> Case:
    parameters = {"binary_data_size": len(data)}
    header = request(tensor(shape=[shape], datatype="BYTES", parameters=parameters))
    headers = {"Inference-Header-Content-Length": str(len(header))}
    return Case(f"strings {name}", header + data, 400, text, "/v2/models/echo_bytes/infer", headers)


NO_SIGNED = "attempt to access JSON non-signed-integer as signed-integer"
NO_UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"
NO_ARRAY = "attempt to access JSON non-array as array"
NO_STRING = "attempt to access JSON non-string as string"
NO_BOOLEAN = "attempt to access JSON non-boolean as boolean"
NO_SOURCE = "Input must set only one of the following fields"
NO_JSON = "failed to parse the request JSON buffer"
TOO_DEEP = "JSON nesting depth exceeds maximum allowed limit (100)"
RAW = "Raw request must only have 1 input (found 1) to be deduced but got 2 inputs"

JSON_TEXT = [
    Case("empty body", b"", 400, RAW),
    Case("cut off", request()[:100], 500, NO_JSON),
    Case("not JSON", b"hello", 500, NO_JSON),
    Case("trailing comma", b'{"inputs":[],}', 500, NO_JSON),
    Case("trailing garbage", request() + b"xx", 500, NO_JSON),
    Case("empty object", b"{}", 500, "Unable to parse 'inputs': attempt to access non-existing object member 'inputs'"),
    Case("a list", b"[]", 500, "Unable to parse 'inputs'"),
    one("half a surrogate pair", "echo_bytes", "BYTES", '["\\ud800"]', 500, NO_JSON),
    one("deep data", "echo_int32", "INT32", "[" * 200 + "1" + "]" * 200, 400, TOO_DEEP, triton=200),
    one("deeper data", "echo_int32", "INT32", "[" * 1000 + "1" + "]" * 1000, 400, TOO_DEEP, triton=200),
    one("deepest data", "echo_int32", "INT32", "[" * 100_000 + "1" + "]" * 100_000, 400, TOO_DEEP, triton="crash"),
    Case("deep elsewhere", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, TOO_DEEP, triton=500),
]

JSON_TYPES = [
    Case("inputs null", b'{"inputs":null}', 500, f"Unable to parse 'inputs': {NO_ARRAY}"),
    Case("inputs an object", b'{"inputs":{}}', 500, f"Unable to parse 'inputs': {NO_ARRAY}"),
    Case("inputs of numbers", b'{"inputs":[1]}', 400, NO_SOURCE),
    Case("no name", b'{"inputs":[{"shape":[1],"datatype":"INT32","data":[1]}]}', 500, "Unable to parse 'name'"),
    Case("no shape", b'{"inputs":[{"name":"INPUT0","datatype":"INT32","data":[1]}]}', 500, "Unable to parse 'shape'"),
    Case("no datatype", b'{"inputs":[{"name":"INPUT0","shape":[1],"data":[1]}]}', 500, "Unable to parse 'datatype'"),
    Case("no data", request(tensor(parameters={}), tensor("INPUT1")), 400, f"{NO_SOURCE}"),
    Case("shape a number", request(tensor(shape=5)), 500, f"Unable to parse 'shape': {NO_ARRAY}"),
    Case("shape of strings", request(tensor(shape=["16"])), 500, f"Unable to parse 'shape': {NO_UNSIGNED}"),
    Case("shape of floats", request(tensor(shape=[1, 16.0])), 500, f"Unable to parse 'shape': {NO_UNSIGNED}"),
    Case("shape negative", request(tensor(shape=[1, -16])), 500, f"Unable to parse 'shape': {NO_UNSIGNED}"),
    Case("shape over 64 bits", request(tensor(shape=[1, 2**64])), 500, f"Unable to parse 'shape': {NO_UNSIGNED}"),
    Case("datatype a number", request(tensor(datatype=3)), 500, f"Unable to parse 'datatype': {NO_STRING}"),
    Case("data null", request(tensor(data=None)), 500, f"Unable to parse 'data': {NO_ARRAY}"),
    Case("data a string", request(tensor(data="abc")), 500, f"Unable to parse 'data': {NO_ARRAY}"),
    Case("outputs a string", request(outputs="OUTPUT0"), 500, f"Unable to parse 'outputs': {NO_ARRAY}"),
    Case("outputs null", request(outputs=None), 500, f"Unable to parse 'outputs': {NO_ARRAY}"),
    Case("outputs of strings", request(outputs=["OUTPUT0"]), 500, "Unable to parse 'name'"),
    Case("parameters a list", request(parameters=[]), 500, "failed to get request params."),
    Case("parameter a list", request(parameters={"a": []}), 400, "parameter 'a' has invalid type."),
    Case("reserved parameter", request(parameters={"triton_x": 1}), 400, "reserved for Triton usage"),
    Case("id a number", request(id=5), 500, f"Unable to parse 'id': {NO_STRING}"),
    Case("priority negative", request(parameters={"priority": -1}), 500, f"'priority': {NO_UNSIGNED}"),
    Case("timeout a string", request(parameters={"timeout": "a"}), 500, f"'timeout': {NO_UNSIGNED}"),
    Case("sequence_start 1", request(parameters={"sequence_start": 1}), 500, f"'sequence_start': {NO_BOOLEAN}"),
    Case(
        "binary_data a number",
        request(outputs=[{"name": "OUTPUT0", "parameters": {"binary_data": 1}}]),
        500,
        f"Unable to parse 'binary_data': {NO_BOOLEAN}",
    ),
    Case(
        "classification negative",
        request(outputs=[{"name": "OUTPUT0", "parameters": {"classification": -1}}]),
        500,
        f"Unable to set 'classification': {NO_UNSIGNED}",
    ),
]

NAMES_AND_SHAPES = [
    Case(
        "input missing",
        request(tensor()),
        400,
        "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0'], "
        "but missing required input(s) ['INPUT1']. Please provide all required input(s).",
    ),
    Case("input too many", request(tensor(), tensor("INPUT1"), tensor("X")), 400, "expected 2 inputs but got 3 inputs"),
    Case("input unknown", request(tensor(), tensor("X")), 400, "unexpected inference input 'X' for model 'simple'"),
    Case("input twice", request(tensor(), tensor()), 400, "input 'INPUT0' already exists in request"),
    Case("output unknown", request(outputs=[{"name": "X"}]), 400, "unexpected inference output 'X' for model 'simple'"),
    Case(
        "output twice",
        request(outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}]),
        400,
        "output 'OUTPUT0' already exists in request",
        triton=200,  # 2.73 refuses it as well
    ),
    Case(
        "datatype",
        request(tensor(datatype="FP32"), tensor("INPUT1")),
        400,
        "inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'",
    ),
    Case("datatype unknown", request(tensor(datatype="INT31")), 400, "invalid datatype for input INPUT0"),
    Case("datatype of the config", request(tensor(datatype="TYPE_INT32")), 400, "invalid datatype for input INPUT0"),
    Case(
        "shape",
        request(tensor(shape=[1, 15], data=[0] * 15), tensor("INPUT1")),
        400,
        "unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got [1,15]. NOTE: ",
    ),
    Case("no batch dimension", request(tensor(shape=[]), tensor("INPUT1")), 400, "", triton=400),
    Case(
        "batch of 9",
        request(tensor(shape=[9, 16], data=[0] * 144), tensor("INPUT1", shape=[9, 16], data=[0] * 144)),
        400,
        "inference request batch-size must be <= 8 for 'simple'",
    ),
    Case(
        "batch sizes differ",
        request(tensor(shape=[2, 16], data=[0] * 32), tensor("INPUT1")),
        400,
        "batch size does not match other inputs for 'simple'",
    ),
    Case("values too few", request(tensor(data=[1] * 15), tensor("INPUT1")), 500, "hape does not match true shape"),
    Case("values too many", request(tensor(data=[1] * 17), tensor("INPUT1")), 500, "hape does not match true shape"),
    Case("no values", request(tensor(data=[]), tensor("INPUT1")), 500, "hape does not match true shape"),
    one("shape of 2**62", "echo_int32", "INT32", "[1]", 400, "", f"[{2**62}]", "crash"),
    one("shape of 2**40", "echo_int32", "INT32", "[1]", 400, "exceeds", f"[{2**40}]", "crash"),
    one("shape that wraps", "matrix", "FP32", "[1]", 400, "exceed", f"[{2**63},2]", "crash"),
]

VALUES = [
    *(value(text, "INT32", 500, NO_SIGNED) for text in ("1.5", "1.0", "1e2", "true", "null", '"1"', "{}", "NaN")),
    *(value(text, "INT32", 500, NO_SIGNED) for text in ("9223372036854775808", "99999999999999999999999")),
    *(value(text, "UINT8", 500, NO_UNSIGNED) for text in ("-1", "true")),
    # Triton cuts off the high bits
    value("300", "INT8", 400, "out of the range of datatype INT8", triton=200),
    value("2147483648", "INT32", 400, "out of the range of datatype INT32", triton=200),
    value("4294967296", "UINT32", 400, "out of the range of datatype UINT32", triton=200),
    *(value(text, "BOOL", 500, NO_BOOLEAN) for text in ("1", "0", '"true"', "null")),
    *(value(text, "FP32", 500, "attempt to access JSON non-number as double") for text in ("true", "null", '"1"')),
    *(value(text, "FP32", 500, NO_JSON) for text in ("1e400", "-1e400", "nan", "inf")),
    *(value(text, "BYTES", 500, f"Unable to parse JSON bytes array: {NO_STRING}") for text in ("1", "null", "{}")),
    value('"a","b"', "BYTES", 400, "unexpected number of string elements 2 for inference input 'INPUT0'"),
    value("1.0", "FP16", 400, "receiving FP16 data via JSON is not supported. Please use the binary data format"),
    value("1.0", "BF16", 400, "receiving BF16 data via JSON is not supported. Please use the binary data format"),
]

BINARY = [
    blobs("header length negative", binary(), BLOB * 2, 400, "inference header size should be in range", "-1"),
    blobs("header length too large", binary(), BLOB * 2, 400, "inference header size should be in range", "100000"),
    blobs("header length short", binary(), BLOB * 2, 500, NO_JSON, "20"),
    # Triton 2.51 reads it as 0, a raw request, which `simple` cannot take
    blobs("header length a word", binary(), BLOB * 2, 400, "", "abc"),
    blobs("header length 2**64", binary(), BLOB * 2, 400, "", str(2**64)),
    blobs("header length 0", binary(), BLOB * 2, 400, RAW, "0"),
    blobs("blob missing", binary(), BLOB, 400, "unexpected size for input 'INPUT1', expecting 64 additional bytes"),
    blobs("blob short", binary(), BLOB + BLOB[:-1], 400, "unexpected size for input 'INPUT1', expecting 1 additional"),
    blobs("blob long", binary(), BLOB * 2 + b"x", 400, "unexpected additional input data for model 'simple'"),
    blobs(
        "blob of another size",
        binary(60),
        BLOB * 2,
        400,
        "unexpected additional input data for model 'simple'",
    ),
    blobs("blob of 2**62", binary(2**62), BLOB, 400, "unexpected size for input 'INPUT0', expecting"),
    blobs("blob size a string", binary("64"), BLOB, 500, f"Unable to parse 'binary_data_size': {NO_UNSIGNED}"),
    blobs("blob size negative", binary(-1), BLOB, 500, f"Unable to parse 'binary_data_size': {NO_UNSIGNED}"),
    blobs("data and blob", binary(data=NUMBERS), BLOB * 2, 400, "But set 'data' 'binary_data_size'"),
    strings("too few", 3, b"\1\0\0\0a\2\0\0\0bc", "expected 3 string elements for inference input 'INPUT0'"),
    strings("too many", 1, b"\1\0\0\0a\2\0\0\0bc", "unexpected number of string elements 2"),
    strings("cut in the length", 2, b"\1\0\0\0a\2\0", "incomplete string length indicator"),
    strings("cut in the text", 2, b"\1\0\0\0a\2\0\0\0b", "incomplete string data for inference input 'INPUT0'"),
    strings("of 4 GiB", 1, b"\xff\xff\xff\xffa", "expecting string of length 4294967295 but only 1 bytes available"),
    Case(
        "unknown region",
        request(tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 64}), tensor("INPUT1")),
        404,
        "Unable to find shared memory region: 'r'",
    ),
]

MODELS = [
    Case("unknown model", request(), 404, "Request for unknown model: 'nope' is not found", "/v2/models/nope/infer"),
    Case(
        "unknown model, bad body", b"x", 404, "Request for unknown model: 'nope' is not found", "/v2/models/nope/infer"
    ),
    Case(
        "unknown version",
        request(),
        404,
        "Request for unknown model: 'simple' version 9 is not found",
        "/v2/models/simple/versions/9/infer",
    ),
    Case("version a word", request(), 404, "Not Found", "/v2/models/simple/versions/abc/infer"),
    Case(
        "version huge",
        request(),
        400,
        "failed to get model version from specified version string '99999999999999999999'",
        "/v2/models/simple/versions/99999999999999999999/infer",
    ),
    Case("path unknown", request(), 404, "Not Found", "/v2/models/simple/infer/"),
    Case(
        "content encoding unknown",
        request(),
        501,
        "Unsupported compression type",
        headers={"Content-Encoding": "br"},
    ),
    Case("content encoding untrue", request(), 400, "", headers={"Content-Encoding": "gzip"}),
]

CASES = [*JSON_TEXT, *JSON_TYPES, *NAMES_AND_SHAPES, *VALUES, *BINARY, *MODELS]
