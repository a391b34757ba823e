"""Requests over HTTP for the comparison with Triton, good and bad."""

import base64
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tests.differential.variations import Path, variations
from tests.scenarios.malformed_cases import BLOB, CASES, NUMBERS, SIMPLE, tensor

LENGTH = "Inference-Header-Content-Length"


class HttpCase(NamedTuple):
    name: str
    method: str
    path: str
    body: bytes | None = None
    headers: Sequence[tuple[str, str]] = ()


def post(name: str, path: str, body: Any = None, **headers: str) -> HttpCase:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return HttpCase(name, "POST", path, data, tuple(headers.items()))


def get(path: str, name: str = "") -> HttpCase:
    return HttpCase(name or f"GET {path}", "GET", path)


def good() -> dict[str, Any]:
    return {"inputs": [tensor(shape=[1, 16], data=NUMBERS), tensor("INPUT1")], "outputs": [{"name": "OUTPUT0"}]}


def with_regions() -> dict[str, Any]:
    """Of a region that nobody has registered."""
    region = {"shared_memory_region": "differential", "shared_memory_byte_size": 64}
    inputs = [tensor(parameters=dict(region)), tensor("INPUT1")]
    return {"inputs": inputs, "outputs": [{"name": "OUTPUT0", "parameters": dict(region)}]}


def with_blobs(name: str, header: Any, *blobs: bytes, path: str = SIMPLE) -> HttpCase:
    text = json.dumps(header).encode()
    return HttpCase(name, "POST", path, text + b"".join(blobs), ((LENGTH, str(len(text))),))


# ------------------------------------------------------------------------------------------------------------ inference

_REQUEST_PATHS: tuple[Path, ...] = (
    ("id",),
    ("inputs",),
    ("outputs",),
    ("parameters",),
    ("inputs", 0),
    ("inputs", 0, "name"),
    ("inputs", 0, "datatype"),
    ("inputs", 0, "shape"),
    ("inputs", 0, "shape", 0),
    ("inputs", 0, "data"),
    ("inputs", 0, "data", 3),
    ("inputs", 0, "parameters"),
    ("outputs", 0),
    ("outputs", 0, "name"),
    ("outputs", 0, "parameters"),
    *(
        ("parameters", key)
        for key in (
            *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output"),
            *("custom", "headers", "triton_enable_empty_final_response"),
        )
    ),
    ("outputs", 0, "parameters", "binary_data"),
    ("outputs", 0, "parameters", "classification"),
)
_REGION_PATHS: tuple[Path, ...] = tuple(
    (side, 0, "parameters", key)
    for side in ("inputs", "outputs")
    for key in ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")
)
_BINARY_PATHS: tuple[Path, ...] = (
    ("inputs", 0, "parameters", "binary_data_size"),
    ("inputs", 0, "parameters", "shared_memory_region"),
    ("inputs", 0, "data"),
)

_DATA: dict[str, list[Any]] = {
    "BOOL": [True, False],
    **{name: [0, 1, 127] for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
    "FP32": [0.1, 1e10, -1.5e-30, 3],
    "FP64": [0.1, 1e300, -1.5e-30, 3],
    "BYTES": ["a", "", 'é"/\\\n'],
}
_ITEM_NBYTES = {
    **dict.fromkeys(("BOOL", "INT8", "UINT8"), 1),
    **dict.fromkeys(("INT16", "UINT16", "FP16", "BF16"), 2),
    **dict.fromkeys(("INT32", "UINT32", "FP32"), 4),
    **dict.fromkeys(("INT64", "UINT64", "FP64"), 8),
}


def _echo_path(datatype: str) -> str:
    return f"/v2/models/echo_{datatype.lower()}/infer"


def _datatypes() -> Iterator[HttpCase]:
    for datatype, data in _DATA.items():
        one = {"name": "INPUT0", "shape": [len(data)], "datatype": datatype, "data": data}
        yield post(f"{datatype} JSON", _echo_path(datatype), {"inputs": [one]})
        yield post(f"{datatype} empty", _echo_path(datatype), {"inputs": [{**one, "shape": [0], "data": []}]})
        for other in ("[]", "[null]", '["a"]', "[true]", "[1]", "[-1]", "[1.5]", "[[1]]", "[{}]", "1", "[1,2]"):
            body = f'{{"inputs":[{{"name":"INPUT0","shape":[1],"datatype":"{datatype}","data":{other}}}]}}'
            yield post(f"{datatype} data {other}", _echo_path(datatype), body.encode())
    for datatype, item_nbytes in _ITEM_NBYTES.items():
        for nbytes in (0, item_nbytes - 1, item_nbytes, item_nbytes + 1, 4 * item_nbytes):
            blob = {"name": "INPUT0", "shape": [4], "datatype": datatype, "parameters": {"binary_data_size": nbytes}}
            both = {"inputs": [blob], "parameters": {"binary_data_output": True}}
            yield with_blobs(f"{datatype} binary, {nbytes} bytes", both, bytes(nbytes), path=_echo_path(datatype))


def _binary() -> Iterator[HttpCase]:
    parameters = {"binary_data_size": 64}
    inputs = [tensor(parameters=parameters), tensor("INPUT1", parameters=parameters)]
    yield with_blobs("binary in, JSON out", {"inputs": inputs}, BLOB, BLOB)
    yield with_blobs("binary", {"inputs": inputs, "parameters": {"binary_data_output": True}}, BLOB, BLOB)
    for binary in (True, False):
        outputs = [{"name": "OUTPUT1", "parameters": {"binary_data": binary}}, {"name": "OUTPUT0"}]
        header = {"inputs": inputs, "outputs": outputs, "parameters": {"binary_data_output": True}, "id": "7"}
        yield with_blobs(f"one output binary {binary}", header, BLOB, BLOB)
    base = {"inputs": inputs}
    for name, changed in variations(base, _BINARY_PATHS):
        yield with_blobs(f"binary: {name}", changed, BLOB, BLOB)
    for length in ("", "0", "-1", "1", "5000", "1e3", "abc", "99999999999", " 10", "0x10"):
        text = json.dumps(base).encode() + BLOB * 2
        yield HttpCase(f"{LENGTH} '{length}'", "POST", SIMPLE, text, ((LENGTH, length),))
    for nbytes in (0, 4, 6, 16):
        raw = HttpCase(f"raw, {nbytes} bytes", "POST", _echo_path("INT32"), bytes(nbytes), ((LENGTH, "0"),))
        yield raw


def _encodings() -> Iterator[HttpCase]:
    text = json.dumps(good()).encode()
    for encoding, body in (
        *(("gzip", gzip.compress(text)), ("deflate", zlib.compress(text)), ("identity", text), ("br", text)),
        *(("gzip", text), ("deflate", text), ("gzip", gzip.compress(text)[:-9]), ("gzip", b""), ("GZIP", text)),
    ):
        yield HttpCase(f"Content-Encoding {encoding}", "POST", SIMPLE, body, (("Content-Encoding", encoding),))


def _classification() -> Iterator[HttpCase]:
    scores = {"name": "INPUT0", "shape": [5], "datatype": "FP32", "data": [0.1, 0.5, 0.2, 0.4, 0.3]}
    for count in (1, 3, 5, 6, 1000):
        outputs = [{"name": "OUTPUT0", "parameters": {"classification": count}}]
        body = {"inputs": [scores], "outputs": outputs}
        yield post(f"classification of {count}", "/v2/models/scores_nobatch/infer", body)


def inference_cases() -> Iterator[HttpCase]:
    yield post("good", SIMPLE, good())
    yield post("good, a version", "/v2/models/simple/versions/1/infer", good())
    yield post("good, a query", SIMPLE + "?a=b", good())
    yield post("good, an id", SIMPLE, {**good(), "id": "abc"})
    yield post("nested data", SIMPLE, {"inputs": [tensor(data=[NUMBERS]), tensor("INPUT1")]})
    yield post("oddly nested data", SIMPLE, {"inputs": [tensor(data=[NUMBERS[:8], NUMBERS[8:]]), tensor("INPUT1")]})
    for name, changed in variations(good(), _REQUEST_PATHS):
        yield post(name, SIMPLE, changed)
    for name, changed in variations(with_regions(), _REGION_PATHS):
        yield post(f"regions: {name}", SIMPLE, changed)
    for case in CASES:
        if case.triton != "crash":
            yield HttpCase(f"malformed: {case.name}", "POST", case.path, case.body, tuple(case.headers.items()))
    yield from _datatypes()
    yield from _binary()
    yield from _encodings()
    yield from _classification()


# ------------------------------------------------------------------------------------------------------ everything else


def _shared_memory() -> Iterator[HttpCase]:
    for kind in ("system", "cuda"):
        base = f"/v2/{kind}sharedmemory"
        yield get(f"{base}/status")
        yield get(f"{base}/region/differential/status")
        yield post(f"{kind} unregister unknown", f"{base}/region/differential/unregister")
        yield post(f"{kind} unregister all", f"{base}/unregister")
    register = "/v2/systemsharedmemory/region/differential/register"
    whole = {"key": "/differential_key_that_is_not_there", "offset": 0, "byte_size": 64}
    for name, changed in variations(whole, (("key",), ("offset",), ("byte_size",))):
        yield post(f"register: {name}", register, changed)
    for key in ("", "/", "//", "a/b", "/../x", "/triton_python_backend_shm_region_1", "\0"):
        yield post(f"register key {key!r}", register, {**whole, "key": key})
    for body in (b"", b"x", b"[]", b"{}"):
        yield post(f"register body {body!r}", register, body)
    handle = {"raw_handle": {"b64": base64.b64encode(bytes(64)).decode()}, "device_id": 0, "byte_size": 64}
    yield post("register cuda", "/v2/cudasharedmemory/region/differential/register", handle)


_LOG_VALUES: tuple[Any, ...] = (None, True, 0, 1, -1, "", "ISO8601", "x", [], {})
_TRACE_VALUES: tuple[Any, ...] = (None, 1, "1", "x", "-1", ["1"], [], ["OFF"], ["TIMESTAMPS"], ["x"], {}, True)


def _settings() -> Iterator[HttpCase]:
    yield get("/v2/logging")
    keys = ("log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format", "unknown")
    for key in keys:
        for value in _LOG_VALUES:
            yield post(f"logging {key} = {value!r}", "/v2/logging", {key: value})
        yield post(
            f"logging back after {key}",
            "/v2/logging",
            {"log_info": True, "log_warning": True, "log_error": True, "log_verbose_level": 0, "log_format": "default"},
        )
    for body in (b"", b"x", b"[]"):
        yield post(f"logging body {body!r}", "/v2/logging", body)
    for path in ("/v2/trace/setting", "/v2/models/simple/trace/setting"):
        yield get(path)
        for key in ("trace_file", "trace_level", "trace_rate", "trace_count", "log_frequency", "trace_mode", "unknown"):
            for setting in _TRACE_VALUES:
                yield post(f"{path} {key} = {setting!r}", path, {key: setting})
            yield post(f"{path} back after {key}", path, {"trace_level": None, "trace_rate": None, "trace_count": None})
    yield get("/v2/models/nope/trace/setting")
    yield get("/v2/models/simple/versions/1/trace/setting")


def _generate() -> Iterator[HttpCase]:
    for kind in ("generate", "generate_stream"):
        path = f"/v2/models/simple/{kind}"
        whole = {"INPUT0": NUMBERS, "INPUT1": NUMBERS}
        yield post(f"{kind} good", path, whole)
        yield post(f"{kind} with id and parameters", path, {**whole, "id": "7", "parameters": {"a": 1, "b": "x"}})
        for name, changed in variations(whole, (("INPUT0",), ("id",), ("parameters",), ("other",))):
            yield post(f"{kind}: {name}", path, changed)
        for body in (b"", b"x", b"[]", b"{}", b'{"INPUT0":[1],"INPUT0":[1]}'):
            yield post(f"{kind} body {body!r}", path, body)
        for value in ("text", 1, True, ["a"], ["a", "b"], [], None, {"a": 1}, [["a"]]):
            yield post(f"{kind} of text {value!r}", f"/v2/models/echo_bytes/{kind}", {"INPUT0": value})
        yield post(f"{kind} unknown model", f"/v2/models/nope/{kind}", whole)
        yield get(path)


def endpoint_cases() -> Iterator[HttpCase]:
    paths = (
        *(
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models/simple",
            "/v2/models/simple/versions/1",
            "/v2/models/nope",
        ),
        *("/v2/models/nope", "/v2/models/simple/ready", "/v2/models/simple/versions/1/ready", "/v2/models/nope/ready"),
        *("/v2/models/simple/versions/7", "/v2/models/simple/versions/7/ready", "/v2/models/simple/versions/x"),
        *("/v2/models/simple/config", "/v2/models/simple/versions/1/config", "/v2/models/nope/config"),
        *("/v2/models/scores/config", "/v2/models/matrix", "/v2/models/matrix/config", "/v2/models/obey/config"),
        *("/v2/models/simple/stats", "/v2/models/simple/versions/1/stats", "/v2/models/nope/stats"),
        *("/v2/models/simple/versions/7/stats", "/", "/v2/", "/v2/models", "/v2/models/", "/v3", "/v2/health"),
        *("/v2/models/simple/", "/v2//health/live", "/v2/repository/index", "/v2/models/simple/infer", "/metrics"),
    )
    for path in ("/v2", *paths):
        yield get(path)
        yield post(f"POST {path}", path, b"{}")
    for method in ("PUT", "DELETE", "HEAD"):
        yield HttpCase(f"{method} ready", method, "/v2/health/ready")
    for body in (b"", b"{}", b'{"ready":true}', b'{"ready":false}', b'{"ready":1}', b'{"ready":null}', b"[]", b"x"):
        yield post(f"index {body!r}", "/v2/repository/index", body)
    for action in ("load", "unload"):
        for model in ("simple", "nope"):
            yield post(f"{action} {model}", f"/v2/repository/models/{model}/{action}", b"{}")
        yield post(f"{action} in a repository", f"/v2/repository/r/models/simple/{action}", b"{}")
    yield from _shared_memory()
    yield from _settings()
    yield from _generate()
