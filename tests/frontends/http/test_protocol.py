"""The protocol engine over real sockets: framing, order, limits, and what a client may not do to others."""

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.frontends.http.support import Frontend, closed, read_response, simple_request
from tests.frontends.http.wire import BODY, GET, HELD, POST, SIMPLE, chunked, head, post, wait_until


@pytest.fixture
def connection(frontend: Frontend) -> Iterator[socket.socket]:
    with frontend.connect() as opened:
        yield opened


# --------------------------------------------------------------------------------------------------------------- good


def test_keep_alive(connection: socket.socket) -> None:
    for _ in range(3):
        connection.sendall(post())
        status, headers, body = read_response(connection)
        assert status == 200
        assert headers == {"content-type": "application/json", "content-length": str(len(body))}


@pytest.mark.parametrize("step", [1, 7, 100])
def test_bytes_dribble(connection: socket.socket, step: int) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent = post()
    for start in range(0, len(sent), step):
        connection.sendall(sent[start : start + step])
    assert read_response(connection)[0] == 200


def test_pipelining_in_order(connection: socket.socket) -> None:
    requests = 200
    sent = b"".join(post(json.dumps(simple_request(id=f"r{i}")).encode()) for i in range(requests))
    connection.sendall(sent)
    buffered = bytearray()
    for i in range(requests):
        status, _, body = read_response(connection, buffered)
        assert (status, json.loads(body)["id"]) == (200, f"r{i}")


def test_pipelining_behind_a_slow_answer(frontend: Frontend, connection: socket.socket) -> None:
    """What is pipelined waits its turn, more of it than may wait; errors keep their place."""
    requests = [post(HELD, b"/v2/models/held/infer")]
    requests += [post(json.dumps(simple_request(id=f"r{i}")).encode()) for i in range(50)]
    connection.sendall(b"".join(requests) + b"nonsense\r\n\r\n")
    wait_until(lambda: len(frontend.requester.held) == 1)
    connection.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.settimeout(10)
    frontend.do(frontend.requester.finish_held)
    buffered = bytearray()
    assert b'"data":[7]' in read_response(connection, buffered)[2]
    for i in range(50):
        assert json.loads(read_response(connection, buffered)[2])["id"] == f"r{i}"
    status, headers, _ = read_response(connection, buffered)
    assert (status, headers["connection"]) == (400, "close")
    assert closed(connection)


@pytest.mark.parametrize("nbytes", [0, 1, 65535, 65536, 65537, 1 << 20, 5_000_000])
@pytest.mark.parametrize("how", ["length", "chunked", "pipelined", "upgrade"])
def test_bodies(connection: socket.socket, nbytes: int, how: str) -> None:
    blob = bytes(i % 251 for i in range(nbytes))
    shown = {"name": "INPUT0", "shape": [nbytes], "datatype": "UINT8", "parameters": {"binary_data_size": nbytes}}
    header = json.dumps({"inputs": [shown], "parameters": {"binary_data_output": True}}).encode()
    body = header + blob
    length = b"Inference-Header-Content-Length: %d" % len(header)
    target = b"/v2/models/echo_uint8/infer"
    requests = 1
    if how == "chunked":
        pieces = [body[start : start + 30_000] for start in range(0, len(body), 30_000)]
        sent = chunked(pieces, length).replace(SIMPLE, target)
    elif how == "upgrade":
        sent = post(
            body, target, length, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA"
        )
    else:
        requests = 3 if how == "pipelined" else 1
        sent = post(body, target, length) * requests
    sent += post()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sender = threading.Thread(target=connection.sendall, args=(sent,))
    sender.start()
    buffered = bytearray()
    for _ in range(requests):
        status, headers, answer = read_response(connection, buffered)
        assert status == 200, answer
        if nbytes:
            assert answer[int(headers["inference-header-content-length"]) :] == blob
    assert read_response(connection, buffered)[0] == 200
    sender.join()


def test_expect_continue(connection: socket.socket) -> None:
    sent = post(BODY, SIMPLE, b"Expect: 100-continue")
    connection.sendall(sent[: -len(BODY)])
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(BODY)
    assert read_response(connection)[0] == 200


def test_expect_continue_waits_for_earlier_answers(frontend: Frontend, connection: socket.socket) -> None:
    sent = post(BODY, SIMPLE, b"Expect: 100-continue")
    connection.sendall(post(HELD, b"/v2/models/held/infer") + sent[: -len(BODY)])
    wait_until(lambda: len(frontend.requester.held) == 1)
    frontend.do(frontend.requester.finish_held)
    buffered = bytearray()
    assert b'"data":[7]' in read_response(connection, buffered)[2]
    while len(buffered) < 25:
        buffered += connection.recv(100)
    assert buffered == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(BODY)
    assert read_response(connection)[0] == 200


def test_expect_continue_is_refused_by_size(connection: socket.socket) -> None:
    connection.sendall(head(b"POST %b HTTP/1.1" % SIMPLE, b"Content-Length: 2000000", b"Expect: 100-continue"))
    status, headers, body = read_response(connection)
    assert (status, headers["connection"]) == (400, "close")
    assert b"request JSON size of 2000000 bytes exceeds the maximum allowed input size" in body
    assert closed(connection)


@pytest.mark.parametrize(
    ("version", "header", "kept"),
    [
        (b"1.1", b"X: y", True),
        (b"1.1", b"Connection: close", False),
        (b"1.1", b"Connection: keep-alive", True),
        (b"1.0", b"X: y", False),
        (b"1.0", b"Connection: keep-alive", True),
    ],
)
def test_versions(connection: socket.socket, version: bytes, header: bytes, kept: bool) -> None:
    sent = post(BODY, SIMPLE, header).replace(b"HTTP/1.1", b"HTTP/" + version)
    connection.sendall(sent)
    status, headers, _ = read_response(connection)
    assert status == 200
    if kept:
        assert headers.get("connection") != "close"
        connection.sendall(sent)
        assert read_response(connection)[0] == 200
    else:
        assert headers["connection"] == "close"
        assert closed(connection)


def test_head_has_no_body(connection: socket.socket) -> None:
    connection.sendall(b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    received = b""
    while received.count(b"\r\n\r\n") < 2:
        received += connection.recv(1000)
    first, second, rest = received.split(b"\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 405 ") and b"Content-Length: 30" in first
    assert second.startswith(b"HTTP/1.1 200 ") and not rest


def test_absolute_target(connection: socket.socket) -> None:
    connection.sendall(b"GET http://host:8000/v2/health/live?x=/y HTTP/1.1\r\nHost: x\r\n\r\n")
    assert read_response(connection)[0] == 200


# ---------------------------------------------------------------------------------------------------------- malformed


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (head(b"GET /v2 HTTP/9.9"), 400),
        (head(GET, b"no colon"), 400),
        (head(GET, b"X: a\x00b"), 400),
        (head(GET, b" folded: x"), 400),
        (head(GET, b"Name : x"), 400),
        (head(POST, b"Content-Length: abc"), 400),
        (head(POST, b"Content-Length: -5"), 400),
        (head(POST, b"Content-Length: +5"), 400),
        (head(POST, b"Content-Length: 5 5"), 400),
        (head(POST, b"Content-Length: 0x10"), 400),
        (head(POST, b"Content-Length: 5", b"Content-Length: 6"), 400),
        (head(POST, b"Content-Length: 5", b"Content-Length: 5"), 400),
        (head(POST, b"Content-Length: 5, 5"), 400),
        (head(POST, b"Content-Length: 99999999999999999999999"), 400),
        (head(POST, b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400),
        (head(POST, b"Transfer-Encoding: chunked", b"Content-Length: 5"), 400),
        (head(POST, b"Transfer-Encoding: gzip"), 400),
        (head(POST, b"Transfer-Encoding: chunked, identity"), 400),
        (head(POST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), 400),
        (head(POST, b"Transfer-Encoding: xchunked"), 400),
        (head(POST, b"Transfer-Encoding: chunked") + b"zz\r\n", 400),
        (head(POST, b"Transfer-Encoding: chunked") + b"-1\r\n", 400),
        (head(POST, b"Transfer-Encoding: chunked") + b"2\r\nabc\r\n", 400),
        (head(POST, b"Transfer-Encoding: chunked") + b"fffffffffffffffff\r\n", 400),
        (head(b"GET /" + b"a" * 9000 + b" HTTP/1.1"), 414),
        (b"GET /" + b"a" * 100_000, 414),
        (head(GET, b"X: " + b"a" * 9000), 431),
        (head(GET, *(b"X%d: y" % i for i in range(129))), 431),
        (head(GET, *(b"X%d: %b" % (i, b"y" * 8000) for i in range(20))), 431),
        (GET + b"\r\nX: " + b"a" * 1_000_000, 431),
        (head(POST, b"Content-Length: 10000000000"), 400),
        (head(b"POST /nowhere HTTP/1.1", b"Content-Length: 10000000000"), 404),
        (head(b"GET /v2 HTTP/1.1", b"Content-Length: 10000000000"), 400),
        (head(b"PUT /v2 HTTP/1.1", b"Content-Length: 100000"), 405),
        (head(b"CONNECT x:1 HTTP/1.1"), 404),
    ],
)
def test_malformed(frontend: Frontend, connection: socket.socket, sent: bytes, status: int) -> None:
    begin = time.monotonic()
    try:
        connection.sendall(sent)
    except (ConnectionResetError, BrokenPipeError):
        pass
    found, headers, body = read_response(connection)
    assert time.monotonic() - begin < 0.5
    assert found == status, body
    assert list(json.loads(body)) == ["error"]
    if status not in (404, 405):
        assert headers["connection"] == "close"
        assert closed(connection)
    assert frontend.infer("simple", simple_request())[0] == 200


def test_smuggled_request_is_not_answered(connection: socket.socket) -> None:
    inner = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    connection.sendall(
        head(POST, b"Content-Length: %d" % len(inner), b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + inner
    )
    buffered = bytearray()
    assert read_response(connection, buffered)[0] == 400
    assert closed(connection) and not buffered


def test_many_chunks(frontend: Frontend) -> None:
    """Triton's limit, and what is sent beyond costs nothing."""
    sent = head(POST, b"Transfer-Encoding: chunked") + b"1\r\n \r\n" * 500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with frontend.connect() as connection:
        begin = time.monotonic()
        try:
            connection.sendall(sent)
        except (ConnectionResetError, BrokenPipeError):
            pass
        status, _, body = read_response(connection)
        assert status == 400
        assert json.loads(body)["error"].startswith("Chunked request body exceeds maximum of 65536 non-empty chunks")
        assert time.monotonic() - begin < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
    with frontend.connect() as connection:
        connection.sendall(chunked([BODY[i : i + 1] for i in range(len(BODY))] + [b" "] * (65536 - len(BODY))))
        assert read_response(connection)[0] == 200


@pytest.mark.parametrize("what", ["extension", "trailers"])
def test_endless_chunk_parts(connection: socket.socket, what: str) -> None:
    start = head(POST, b"Transfer-Encoding: chunked")
    part = (
        b"1;" + b"a" * 500_000 if what == "extension" else b"0\r\n" + b"".join(b"T%d: x\r\n" % i for i in range(30_000))
    )
    try:
        connection.sendall(start + part)
    except (ConnectionResetError, BrokenPipeError):
        pass
    assert read_response(connection)[0] == 400


def test_chunked_body_over_the_limit(connection: socket.socket) -> None:
    try:
        connection.sendall(chunked([b" " * 60_000] * 30))
    except (ConnectionResetError, BrokenPipeError):
        pass
    status, _, body = read_response(connection)
    assert status == 400
    assert b"exceeds the maximum allowed input size of 1048576 bytes" in body


def test_refused_client_that_goes_on_sending_gets_its_answer(connection: socket.socket) -> None:
    connection.sendall(head(POST, b"Content-Length: 50000000"))
    for _ in range(50):
        connection.sendall(b" " * 1_000_000)
    assert read_response(connection)[0] == 400
