"""Requests as bytes, for tests that write to sockets themselves."""

import json
import time
from collections.abc import Callable

from tests.frontends.http.support import simple_request, tensor

BODY = json.dumps(simple_request()).encode()
SIMPLE = b"/v2/models/simple/infer"
GET = b"GET /v2 HTTP/1.1"
POST = b"POST %b HTTP/1.1" % SIMPLE


HELD = json.dumps({"inputs": [tensor("INPUT0", "INT32", [1], [7])]}).encode()


def post(body: bytes = BODY, target: bytes = SIMPLE, *headers: bytes) -> bytes:
    lines = (b"POST %b HTTP/1.1" % target, b"Host: x", b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines) + b"\r\n\r\n"


def chunked(pieces: list[bytes], *headers: bytes) -> bytes:
    start = head(b"POST %b HTTP/1.1" % SIMPLE, b"Host: x", b"Transfer-Encoding: chunked", *headers)
    return start + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
