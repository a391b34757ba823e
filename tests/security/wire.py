"""Bytes as no well-behaved client sends them, to a whole server: HTTP/1.1 and HTTP/2."""

import contextlib
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from frontends.http.routes import ROUTES
from tests.frontends.grpc.http2 import PREFACE, frame, literal
from tests.scenarios.harness import Server

TIMEOUT_S = 20.0
#: one path for each route that takes a POST; the models' names are those of ``tests.security.conftest``
POST_PATHS = (
    "/v2/models/simple/infer",
    "/v2/models/texts/versions/1/infer",
    "/v2/models/texts/generate",
    "/v2/models/texts/generate_stream",
    "/v2/repository/index",
    "/v2/repository/models/nope/load",
    "/v2/repository/models/nope/unload",
    "/v2/systemsharedmemory/region/nope/register",
    "/v2/systemsharedmemory/region/nope/unregister",
    "/v2/cudasharedmemory/region/nope/register",
    "/v2/cudasharedmemory/region/nope/unregister",
    "/v2/trace/setting",
    "/v2/models/simple/trace/setting",
    "/v2/logging",
)
for route in ROUTES:  # whoever adds a route adds it here
    assert b"POST" not in route.methods or any(route.pattern.fullmatch(path.encode()) for path in POST_PATHS), route


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


def chunked(pieces: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def talk(port: int, sent: bytes, until: Callable[[bytearray], bool]) -> bytes:
    """What is answered to ``sent``, read while it is sent, until ``until`` is true of it or the connection is closed.
    Raises ``TimeoutError``."""
    deadline = time.monotonic() + TIMEOUT_S
    received, rest = bytearray(), memoryview(sent)
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S) as connection:
        connection.setblocking(False)
        with selectors.DefaultSelector() as selector, contextlib.suppress(ConnectionError):
            selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while not until(received):
                for _, events in selector.select(1):
                    if events & selectors.EVENT_READ:
                        data = connection.recv(1 << 20)
                        if not data:
                            return bytes(received)
                        received += data
                    if events & selectors.EVENT_WRITE:
                        rest = rest[connection.send(rest[: 1 << 20]) :]
                        if not rest:
                            selector.modify(connection, selectors.EVENT_READ)
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{len(rest)} bytes are not sent, received {bytes(received[-200:])!r}")
    return bytes(received)


def answer(server: Server, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the HTTP answer to ``sent``, and 0 if the connection is closed without one."""
    received = talk(server.http_port, sent, _is_answer)
    begin, _, body = received.partition(b"\r\n\r\n")
    return (int(begin.split(b" ")[1]), body) if begin else (0, b"")


def _is_answer(received: bytearray) -> bool:
    begin, end, body = bytes(received).partition(b"\r\n\r\n")
    if not end:
        return False
    lines = begin.lower().split(b"\r\n")
    lengths = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
    return len(body) >= lengths[0] if lengths else body.endswith(b"0\r\n\r\n")


# --------------------------------------------------------------------------------------------------------------- HTTP/2

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
HEADERS, DATA, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 1, 0, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS = 1, 4


def call_headers(path: str = INFER, *more: tuple[bytes, bytes]) -> bytes:
    fields = ((b":path", path.encode()), (b":authority", b"x"), (b"content-type", b"application/grpc"), *more)
    return b"\x83\x86" + b"".join(literal(*pair) for pair in (*fields, (b"te", b"trailers")))


def begin(stream: int, path: str = INFER, *more: tuple[bytes, bytes]) -> bytes:
    """The headers of a call."""
    return frame(HEADERS, END_HEADERS, stream, call_headers(path, *more))


def prefixed(payload: bytes, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(payload)) + payload


def setting(key: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", key, value))


def window_update(stream: int, nbytes: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", nbytes))


@dataclass
class Told:
    """What a server has said on one HTTP/2 connection. ``ended``: streams that are over, whether well or not;
    ``headers``: all header blocks of a stream, as they are encoded; ``data``: nbytes of each stream."""

    gone: int | None = None
    ended: set[int] = field(default_factory=set)
    headers: dict[int, bytes] = field(default_factory=dict)
    data: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, received: bytes | bytearray) -> "Told":
        told = cls()
        position = 0
        while len(received) - position >= 9:
            nbytes = int.from_bytes(received[position : position + 3], "big")
            kind, flags, stream = struct.unpack_from(">BBI", received, position + 3)
            payload = bytes(received[position + 9 : position + 9 + nbytes])
            position += 9 + nbytes
            if len(payload) < nbytes:
                break
            if kind == GOAWAY:
                told.gone = int.from_bytes(payload[4:8], "big")
            elif kind == HEADERS:
                told.headers[stream] = told.headers.get(stream, b"") + payload
            elif kind == DATA:
                told.data[stream] = told.data.get(stream, 0) + nbytes
            if kind == RST_STREAM or (kind in (HEADERS, DATA) and flags & END_STREAM):
                told.ended.add(stream)
        return told


def talk_http2(server: Server, sent: bytes, until: Callable[[Told], bool] = lambda told: False) -> Told:
    """What the gRPC port says to ``sent`` after the preface, until it closes the connection."""
    received = talk(
        server.grpc_port, PREFACE + sent, lambda data: (told := Told.of(data)).gone is not None or until(told)
    )
    return Told.of(received)
