"""Answers in pieces, by an application that makes them when the test says so."""

import http.client
import socket
import time
from functools import partial

import pytest

from frontends.http.engine import Limits
from frontends.http.exchange import Pending, Reply, Request, Streaming
from tests.frontends.http.support import Frontend, closed, read_response
from tests.frontends.http.wire import wait_until

PIECE = b"0123456789abcdef" * 1024


class Stream(Streaming):
    def __init__(self) -> None:
        self.cancelled = False
        self.resumed = 0
        self.to_write = 0

    def cancel(self) -> None:
        self.cancelled = True

    def begin(self) -> None:
        self.sink.begin(200, b"Content-Type: text/plain\r\n")

    def resume(self) -> None:
        self.resumed += 1
        self.write_on()

    def write_on(self) -> None:
        """Writes as much of what there is to write as the client takes; then that is the end."""
        while self.to_write:
            self.to_write -= 1
            if not self.sink.write(PIECE):
                return
        self.sink.end()


class Streams:
    """``/stream`` is a stream; everything else is answered at once."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    def refuse(self, request: Request, nbytes: int) -> Reply | None:
        return None

    def answer(self, request: Request) -> Reply | Pending:
        if request.target != b"/stream":
            return Reply(200, b"", request.target)
        self.streams.append(Stream())
        return self.streams[-1]


def get(target: bytes = b"/stream", version: bytes = b"1.1", *headers: bytes, method: bytes = b"GET") -> bytes:
    return b"\r\n".join((b"%b %b HTTP/%b" % (method, target, version), b"Host: x", *headers, b"", b""))


def receive(connection: socket.socket, ending: bytes) -> bytes:
    received = bytearray()
    while not received.endswith(ending):
        chunk = connection.recv(65536)
        assert chunk, received
        received += chunk
    return bytes(received)


def begun(frontend: Frontend, streams: Streams) -> Stream:
    wait_until(lambda: bool(streams.streams))
    stream = streams.streams.pop()
    frontend.do(stream.begin)
    return stream


def test_pieces_come_as_they_are_made() -> None:
    """Nothing waits for the end; an empty piece does not end it; what is pipelined waits its turn."""
    streams = Streams()
    with Frontend(application=streams) as frontend, frontend.connect() as connection:
        connection.sendall(get() + get(b"/after"))
        stream = begun(frontend, streams)
        head = receive(connection, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"Transfer-Encoding: chunked\r\n" in head and b"Content-Length" not in head
        for piece in (b"one", b"", b"three"):
            assert frontend.do(partial(stream.sink.write, piece))
            assert not piece or receive(connection, piece + b"\r\n")
        frontend.do(stream.sink.end)
        rest = bytearray(receive(connection, b"/after"))
        assert rest.startswith(b"0\r\n\r\nHTTP/1.1 200")
        connection.sendall(get(b"/again"))
        assert read_response(connection)[2] == b"/again"
        assert not stream.cancelled


def test_a_client_library_reads_it() -> None:
    streams = Streams()
    with Frontend(application=streams) as frontend:
        connection = http.client.HTTPConnection("127.0.0.1", frontend.port, timeout=10)
        connection.request("GET", "/stream")
        stream = begun(frontend, streams)
        stream.to_write = 100
        frontend.do(stream.write_on)
        assert connection.getresponse().read() == PIECE * 100
        connection.close()


@pytest.mark.parametrize("headers", [(), (b"Connection: keep-alive",)])
def test_http_1_0(headers: tuple[bytes, ...]) -> None:
    streams = Streams()
    with Frontend(application=streams) as frontend, frontend.connect() as connection:
        connection.sendall(get(b"/stream", b"1.0", *headers))
        stream = begun(frontend, streams)
        frontend.do(lambda: stream.sink.write(b"one"))
        frontend.do(lambda: stream.sink.write(b"two"))
        frontend.do(stream.sink.end)
        head, _, body = receive(connection, b"two").partition(b"\r\n\r\n")
        assert b"Transfer-Encoding" not in head and b"Connection: close" in head
        assert body == b"onetwo"
        assert closed(connection)


def test_head() -> None:
    streams = Streams()
    with Frontend(application=streams) as frontend, frontend.connect() as connection:
        connection.sendall(get(method=b"HEAD") + get(b"/after"))
        stream = begun(frontend, streams)
        stream.to_write = 3
        frontend.do(stream.write_on)
        received = receive(connection, b"/after")
        assert received.count(b"HTTP/1.1 200 OK") == 2
        assert PIECE not in received


def test_connection_close() -> None:
    streams = Streams()
    with Frontend(application=streams) as frontend, frontend.connect() as connection:
        connection.sendall(get(b"/stream", b"1.1", b"Connection: close"))
        stream = begun(frontend, streams)
        frontend.do(stream.write_on)
        assert b"Connection: close" in receive(connection, b"0\r\n\r\n")
        assert closed(connection)


def test_memory_is_bounded_while_the_client_does_not_read() -> None:
    streams = Streams()
    with Frontend(application=streams) as frontend, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", frontend.port))
        connection.sendall(get())
        stream = begun(frontend, streams)
        stream.to_write = pieces = 600
        frontend.do(stream.write_on)
        assert 0 < stream.to_write < pieces and not stream.resumed
        received = receive(connection, b"0\r\n\r\n")
        assert received.count(PIECE) == pieces
        assert stream.resumed  # how often is for the kernel's buffers to say


def test_a_client_that_goes_cancels() -> None:
    """Also when it goes before the first piece; what is written then is nobody's."""
    streams = Streams()
    with Frontend(application=streams) as frontend:
        for begins in (True, False):
            with frontend.connect() as connection:
                connection.sendall(get())
                wait_until(lambda: bool(streams.streams))
                stream = streams.streams.pop()
                if begins:
                    frontend.do(stream.begin)
            wait_until(lambda: stream.cancelled)  # noqa: B023 - called before the next one
            frontend.do(stream.begin)
            stream.to_write = 3
            frontend.do(stream.write_on)
            wait_until(lambda: not frontend.engine.connections)


def test_a_client_that_does_not_read_is_disconnected() -> None:
    """But not one that reads slowly, however much there always is to send."""
    limits = Limits(write_seconds=1.5, write_nbytes=20 << 10)
    streams = Streams()
    with Frontend(limits, streams) as frontend, socket.socket() as reading, frontend.connect() as idle:
        # with a small window the kernel's timers would decide how fast this is
        reading.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        reading.settimeout(10)
        reading.connect(("127.0.0.1", frontend.port))
        for connection in (reading, idle):
            connection.sendall(get())
            stream = begun(frontend, streams)
            stream.to_write = 100_000
            frontend.do(stream.write_on)
        while not stream.cancelled:
            assert reading.recv(1 << 20)
            time.sleep(0.01)
        assert len(frontend.engine.connections) == 1


def test_draining_waits_for_the_end() -> None:
    streams = Streams()
    with Frontend(application=streams) as frontend, frontend.connect() as connection:
        connection.sendall(get())
        stream = begun(frontend, streams)
        frontend.do(lambda: frontend.loop.create_task(frontend.engine.drain(10)))
        frontend.do(lambda: stream.sink.write(b"last"))
        assert frontend.engine.connections
        frontend.do(stream.sink.end)
        receive(connection, b"last\r\n0\r\n\r\n")
        assert closed(connection)
