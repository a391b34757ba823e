"""HTTP requests that are damaged: in their documents, in their headers and framing, or anywhere."""

import gzip
import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.differential import http_cases
from tests.scenarios.fuzz.values import DATATYPES, GARBAGE, JSON_VALUES, damaged, mutated
from tests.scenarios.malformed_cases import BLOB, NUMBERS, SIMPLE, tensor

LENGTH = http_cases.LENGTH
Headers = tuple[tuple[str, str], ...]


class Sent(NamedTuple):
    """``headers`` without Content-Length."""

    method: str
    path: str
    body: bytes
    headers: Headers = ()


class Template(NamedTuple):
    path: str
    document: Any
    blobs: bytes = b""


def _binary(shape: Sequence[int], datatype: str, nbytes: int, name: str = "INPUT0") -> dict[str, Any]:
    return {"name": name, "shape": [*shape], "datatype": datatype, "parameters": {"binary_data_size": nbytes}}


_TEXTS = b"\1\0\0\0a\2\0\0\0bc"
_REGION = {"shared_memory_region": "region", "shared_memory_byte_size": 64, "shared_memory_offset": 0}
_GENERATE = {"INPUT0": NUMBERS, "INPUT1": NUMBERS, "id": "7", "parameters": {"a": 1, "b": "x"}}
_LOG = {"log_info": True, "log_verbose_level": 0, "log_format": "default", "log_file": ""}
_TRACE = {"trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0", "trace_file": ""}
_CONFIG = {"backend": "python", "input": [{"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [-1]}]}

INFERENCES = (
    Template(SIMPLE, http_cases.good()),
    Template(SIMPLE, {**http_cases.good(), "id": "1", "parameters": {"priority": 1, "timeout": 1000000, "a": "b"}}),
    Template(SIMPLE, http_cases.with_regions()),
    Template(SIMPLE, {"inputs": [_binary([1, 16], "INT32", 64), _binary([1, 16], "INT32", 64, "INPUT1")]}, BLOB * 2),
    Template(
        "/v2/models/echo_bytes/infer",
        {"inputs": [_binary([2], "BYTES", 11)], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]},
        _TEXTS,
    ),
    Template(
        "/v2/models/echo_bytes/infer",
        {"inputs": [{"name": "INPUT0", "shape": [2], "datatype": "BYTES", "data": ["a", "é"]}]},
    ),
    Template(
        "/v2/models/echo_fp32/infer",
        {"inputs": [{"name": "INPUT0", "shape": [3], "datatype": "FP32", "data": [1.5, -2, 3e5]}]},
    ),
    Template(
        "/v2/models/matrix/infer",
        {"inputs": [_binary([2, 2], "FP32", 16)], "parameters": {"binary_data_output": True}},
        bytes(16),
    ),
    Template(
        "/v2/models/scores/infer",
        {
            "inputs": [tensor(shape=[1, 5], datatype="FP32", data=[0.1, 0.5, 0.2, 0.4, 0.3])],
            "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 2}}],
        },
    ),
    Template(
        "/v2/models/echo_int32/infer",
        {
            "inputs": [{"name": "INPUT0", "shape": [4], "datatype": "INT32", "parameters": _REGION}],
            "outputs": [{"name": "OUTPUT0", "parameters": _REGION}],
        },
    ),
    Template("/v2/models/echo_int32/infer", {"inputs": [_binary([4], "INT32", 16)]}, bytes(16)),
)
OTHERS = (
    Template("/v2/models/simple/generate", _GENERATE),
    Template("/v2/models/simple/generate_stream", _GENERATE),
    Template("/v2/models/echo_bytes/generate", {"INPUT0": "a"}),
    Template("/v2/logging", _LOG),
    Template("/v2/trace/setting", _TRACE),
    Template("/v2/models/simple/trace/setting", _TRACE),
    Template("/v2/repository/index", {"ready": True}),
    Template("/v2/repository/models/nope/load", {"parameters": {"config": json.dumps(_CONFIG)}}),
    Template("/v2/repository/models/nope/unload", {"parameters": {"unload_dependents": True}}),
    Template(
        "/v2/cudasharedmemory/region/region/register",
        {"raw_handle": {"b64": "AAAA" * 21 + "AA=="}, "device_id": 0, "byte_size": 64},
    ),
    Template("/v2/cudasharedmemory/region/region/unregister", {}),
)
LOADS = (
    Template(
        "/v2/repository/models/other/load",
        {"parameters": {"config": json.dumps(_CONFIG), "file:1/model.py": "aW1wb3J0IG9z"}},
    ),
    Template("/v2/repository/models/other/load", {"parameters": {"config": json.dumps(_CONFIG)}}),
    Template("/v2/repository/models/other/unload", {"parameters": {"unload_dependents": False}}),
)

#: the ones of the comparison with Triton, which change nothing that the others need
CASES = [
    case
    for case in (*http_cases.inference_cases(), *http_cases.endpoint_cases())
    if not case.path.endswith(("/load", "/unload"))
]

_HEADERS = st.one_of(
    st.tuples(
        st.just(LENGTH),
        st.one_of(
            st.integers(-3, 400).map(str), st.sampled_from(["", "0", "abc", str(2**63), str(2**64), "1e2", "0x1"])
        ),
    ),
    st.tuples(st.just("Content-Encoding"), st.sampled_from(["gzip", "deflate", "identity", "br", "", "gzip, gzip"])),
    st.tuples(
        st.just("Accept-Encoding"),
        st.sampled_from(["gzip", "deflate", "*;q=0", "gzip;q=nan", "gzip;q=1e999", "gzip;;;", ",,,", "identity;q=0"]),
    ),
    st.tuples(st.just("Content-Type"), st.sampled_from(["application/octet-stream", "text/plain", "", "x" * 300])),
    st.tuples(st.just("Expect"), st.sampled_from(["100-continue", "x"])),
    st.tuples(st.sampled_from(["X-A", "x-binary_data_output", "x-"]), st.text("abc é\t", max_size=10).map(str.strip)),
    st.tuples(st.just("triton-restricted"), st.just("a")),
)


def _encoded(document: Any, ascii_only: bool) -> bytes:
    """NaN and infinities become the words that are no JSON, and lone surrogates bytes that are no UTF-8."""
    return json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


@st.composite
def documents(draw: st.DrawFn, templates: Sequence[Template]) -> Sent:
    """A template with changes in its document; sometimes in its blobs and headers, too."""
    template = draw(st.sampled_from(templates))
    document = draw(mutated(template.document)) if draw(st.integers(0, 9)) else template.document
    head = _encoded(document, draw(st.booleans()))
    if draw(st.integers(0, 11)) == 0:
        head = draw(damaged(head))
    blobs = template.blobs
    if draw(st.integers(0, 3)) == 0:
        blobs = draw(damaged(blobs))
    headers: list[tuple[str, str]] = [(LENGTH, str(len(head)))] if template.blobs or draw(st.booleans()) else []
    if draw(st.integers(0, 2)) == 0:
        headers += draw(st.lists(_HEADERS, max_size=3))
    return Sent("POST", template.path, *_compressed(draw, head + blobs, headers))


def _compressed(draw: st.DrawFn, body: bytes, headers: list[tuple[str, str]]) -> tuple[bytes, Headers]:
    encoding = draw(st.sampled_from(["", "", "", "", "gzip", "deflate"]))
    if encoding:
        body = gzip.compress(body, 1) if encoding == "gzip" else zlib.compress(body, 1)
        if draw(st.booleans()):
            body = draw(damaged(body))
        headers = [*headers, ("Content-Encoding", encoding)]
    return body, tuple(headers)


@st.composite
def raw_binary(draw: st.DrawFn) -> Sent:
    """Without a JSON header."""
    model = draw(st.sampled_from(["simple", "echo_int32", "echo_bytes", "matrix", "scores"]))
    body = draw(st.one_of(GARBAGE, st.just(_TEXTS), damaged(_TEXTS), st.integers(0, 70).map(bytes)))
    return Sent("POST", f"/v2/models/{model}/infer", body, ((LENGTH, "0"), *draw(st.lists(_HEADERS, max_size=1))))


@st.composite
def huge_shapes(draw: st.DrawFn) -> Sent:
    """Shapes whose products are more than there is memory, or wrap around."""
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 16, 2**16, 2**31, 2**32, 2**62, 2**63 - 1, 2**63]), max_size=40))
    datatype = draw(st.sampled_from(DATATYPES))
    one = {"name": "INPUT0", "shape": shape, "datatype": datatype}
    if draw(st.booleans()):
        one["data"] = draw(st.one_of(st.just([]), st.just([1]), JSON_VALUES))
        return Sent("POST", "/v2/models/echo_int32/infer", _encoded({"inputs": [one]}, True))
    nbytes = draw(st.sampled_from([0, 4, 64, 2**32, 2**63, 2**64 - 1]))
    head = _encoded({"inputs": [{**one, "parameters": {"binary_data_size": nbytes}}]}, True)
    model = draw(st.sampled_from(["echo_int32", "echo_bytes", "matrix", "simple"]))
    return Sent("POST", f"/v2/models/{model}/infer", head + bytes(min(nbytes, 64)), ((LENGTH, str(len(head))),))


@st.composite
def changed_cases(draw: st.DrawFn) -> Sent:
    case = draw(st.sampled_from(CASES))
    body = case.body or b""
    if body and draw(st.integers(0, 2)) == 0:
        body = draw(damaged(body))
    headers = [*case.headers, *draw(st.lists(_HEADERS, max_size=2))]
    return Sent(case.method, case.path, body, tuple(headers))


# -------------------------------------------------------------------------------------------------------- on the wire

_ODD_LINES = (
    *(b": x\r\n", b"a\r\n", b"a: b\n", b" folded\r\n", b"a:\0\r\n", b"\xff: \xfe\r\n", b"H: v\r\n" * 200),
    *(b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n", b"Long: " + b"x" * 70000 + b"\r\n"),
)


def _target(draw: st.DrawFn, path: str) -> bytes:
    target = path.encode()
    match draw(st.integers(0, 11)):
        case 0:
            target = draw(damaged(target))
        case 1:
            target += draw(
                st.sampled_from([b"?", b"?a=b&c", b"#x", b"?" + b"a" * 9000, b"%", b"/%2e%2e", b"%ff", b"//"])
            )
        case 2:
            target = draw(st.sampled_from([b"*", b"http://x" + target, b"//" + target, b"", b"/" * 5000, b"\xff\xfe"]))
    return target


def _framed(draw: st.DrawFn, body: bytes) -> bytes:
    """The headers that say how long the body is, the end of the headers, and the body."""
    match draw(st.sampled_from([*["true"] * 6, *["chunked"] * 4, "broken chunks", "wrong", "both", "none"])):
        case "true":
            return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        case "chunked":
            return b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(_chunks(draw, body)) + b"0\r\n\r\n"
        case "broken chunks":
            return b"Transfer-Encoding: chunked\r\n\r\n" + draw(damaged(b"".join(_chunks(draw, body)) + b"0\r\n\r\n"))
        case "wrong":
            lengths = [
                b"-1",
                b"abc",
                b"",
                b"1e3",
                b"%d" % (len(body) + 7),
                b"3",
                b"18446744073709551616",
                b"+5",
                b"5, 5",
            ]
            return b"Content-Length: %b\r\n\r\n%b" % (draw(st.sampled_from(lengths)), body)
        case "both":
            return b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        case _:
            return b"\r\n" + body


def _chunks(draw: st.DrawFn, body: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    while body and len(pieces) < 20:
        nbytes = draw(st.integers(1, max(1, len(body))))
        more = draw(st.sampled_from([b"", b"", b";a=b", b" ", b";" + b"x" * 200]))
        pieces.append(b"%x%b\r\n%b\r\n" % (nbytes, more, body[:nbytes]))
        body = body[nbytes:]
    return pieces


@st.composite
def on_the_wire(draw: st.DrawFn) -> bytes:
    """One to three requests in bytes, pipelined, as a client might send them that is broken."""
    data = b""
    for _ in range(draw(st.integers(1, 3))):
        sent = draw(st.one_of(documents(INFERENCES), documents(OTHERS), changed_cases()))
        line = [sent.method.encode(), _target(draw, sent.path), b"HTTP/1.1"]
        if draw(st.integers(0, 11)) == 0:
            line[draw(st.integers(0, 2))] = draw(
                st.sampled_from([b"", b"PRI", b"get", b"POST POST", b"HTTP/9.9", b"HTTP/1.0", b"\x16\x03\x01", b"\0"])
            )
        data += b" ".join(line) + b"\r\nHost: x\r\n"
        for name, value in sent.headers:
            data += b"%b: %b\r\n" % (name.encode(), value.encode("utf-8", "replace"))
        if draw(st.integers(0, 7)) == 0:
            data += draw(st.sampled_from(_ODD_LINES))
        data += _framed(draw, sent.body)
    if draw(st.integers(0, 5)) == 0:
        data = draw(damaged(data))
    return data


WIRE = st.one_of(on_the_wire(), on_the_wire(), on_the_wire(), st.binary(max_size=300), GARBAGE)
