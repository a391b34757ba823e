"""What a client that does not know HTTP/2 writes to a gRPC port."""

import struct

from hypothesis import strategies as st

from tests.differential.grpc_cases import SERVICE, good
from tests.scenarios.fuzz.values import GARBAGE, damaged

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _PRIORITY, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = range(10)
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8
_GOOD = good().SerializeToString()
_INFER = SERVICE.encode() + b"ModelInfer"
_PATHS = (
    *(
        _INFER,
        SERVICE.encode() + b"ModelStreamInfer",
        SERVICE.encode() + b"ServerLive",
        b"/grpc.health.v1.Health/Watch",
    ),
    *(b"", b"/", b"x", b"/" * 100, b"/a/b/c", b"*", b"/inference.GRPCInferenceService/"),
)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    nbytes = len(payload) if length is None else length
    return struct.pack(">I", nbytes)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    """A header block of literals, each shorter than 127 bytes."""
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


@st.composite
def _header_block(draw: st.DrawFn) -> bytes:
    pairs = [
        (b":method", draw(st.sampled_from([b"POST", b"POST", b"POST", b"GET", b"", b"post"]))),
        (b":scheme", draw(st.sampled_from([b"http", b"http", b"https", b"\0"]))),
        (b":path", draw(st.sampled_from([*_PATHS[:4], *_PATHS]))),
        (b":authority", b"x"),
        (b"te", b"trailers"),
        (
            b"content-type",
            draw(st.sampled_from([b"application/grpc", b"application/grpc", b"application/grpc+x", b""])),
        ),
    ]
    more = [
        *((b"grpc-timeout", value) for value in (b"1S", b"0n", b"1n", b"99999999H", b"x", b"-1S", b"999999999999S")),
        *((b"grpc-encoding", value) for value in (b"gzip", b"identity", b"nope", b"")),
        *((b"x-bin", b"!!"), (b"Upper", b"x"), (b"", b""), (b":path", b"/x"), (b":nope", b""), (b"a", b"\xff\n\0")),
        *((b"connection", b"close"), (b"content-length", b"-1"), (b"content-length", b"3"), (b"host", b"\xff")),
    ]
    pairs += draw(st.lists(st.sampled_from(more), max_size=3))
    if draw(st.integers(0, 3)) == 0:
        del pairs[draw(st.integers(0, len(pairs) - 1))]
    block: bytes = fields(*pairs)
    if draw(st.integers(0, 4)) == 0:
        block = draw(damaged(block))
    return block


@st.composite
def _message(draw: st.DrawFn) -> bytes:
    """With gRPC's five bytes before it: whether it is compressed, and how long it is."""
    payload: bytes = draw(st.sampled_from([_GOOD, _GOOD, b"", b"\xff" * 20]))
    length = draw(st.sampled_from([len(payload)] * 4 + [0, len(payload) + 1, len(payload) - 1, 2**31, 2**32 - 1]))
    flag = draw(st.sampled_from([0, 0, 0, 0, 1, 2, 255]))
    return bytes([flag]) + struct.pack(">I", max(0, length)) + payload


@st.composite
def _call(draw: st.DrawFn, stream: int) -> bytes:
    """Nearly an RPC."""
    block = draw(_header_block())
    parts = [frame(_HEADERS, draw(st.sampled_from([_END_HEADERS] * 4 + [0, 5, 0xFF])), stream, block)]
    for _ in range(draw(st.integers(0, 3))):
        data = draw(_message())
        parts.append(frame(_DATA, draw(st.sampled_from([0, _END_STREAM, _PADDED])), stream, data))
    parts.append(draw(st.sampled_from([frame(_DATA, _END_STREAM, stream), frame(_RESET, 0, stream, bytes(4)), b""])))
    return b"".join(parts)


@st.composite
def _any_frame(draw: st.DrawFn, stream: int) -> bytes:
    numbers = st.sampled_from([0, stream, stream, 1, 2, 2**31 - 1, 2**31, 2**32 - 1])
    fitting = {
        _PRIORITY: bytes(5),
        _RESET: bytes(4),
        _SETTINGS: struct.pack(">HI", draw(st.integers(0, 8)), draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1]))),
        _PING: bytes(8),
        _GOAWAY: bytes(8),
        _WINDOW: struct.pack(">I", draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1]))),
    }
    kind = draw(st.integers(0, 9) | st.integers(0, 255))
    payload = draw(GARBAGE) if draw(st.integers(0, 2)) == 0 else fitting.get(kind, b"")
    flags = draw(st.sampled_from([0, 0, _END_STREAM, _END_HEADERS, _PADDED, 0x20, 0xFF]))
    lengths = st.sampled_from([None, None, None, None, 0, len(payload) + 1, 2**14 + 1, 2**24 - 1])
    return frame(kind, flags, draw(numbers), payload, draw(lengths))


@st.composite
def connections(draw: st.DrawFn) -> bytes:
    """All that one client writes."""
    data = draw(
        st.sampled_from([PREFACE] * 6 + [b"", PREFACE[:10], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", PREFACE.lower()])
    )
    if draw(st.integers(0, 8)):
        data += frame(_SETTINGS, 0, 0)
    for number in range(draw(st.integers(1, 6))):
        data += draw(st.one_of(_call(2 * number + 1), _call(2 * number + 1), _any_frame(2 * number + 1), GARBAGE))
    return draw(damaged(data)) if draw(st.integers(0, 5)) == 0 else data
