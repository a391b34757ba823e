"""generate and generate_stream with models that answer any number of times. What is expected is what Triton 2.51
answered, but for the status of ``generate`` without exactly one response (Triton's is the first response's)."""

import http.client
import json
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from conch.errors import ConchError, NotFound, NotReady
from frontends.requesting import MAX_WAITING
from tests.frontends.http.support import WINDOW, Frontend, StubStream
from tests.frontends.http.wire import wait_until

NOT_ONE = {
    "error": "generate expects model to produce exactly 1 response, use generate stream for model that generates "
    "various number of responses"
}
EVENTS = "text/event-stream; charset=utf-8"
Steps = list[tuple[int | ConchError | None, bool]]


class Client:
    """One request to ``stream``, before its answer is read."""

    def __init__(self, frontend: Frontend, kind: str, model: str = "stream", value: int = 7) -> None:
        self.frontend = frontend
        known = len(frontend.requester.streams)
        self.connection = http.client.HTTPConnection("127.0.0.1", frontend.port, timeout=10)
        body = json.dumps({"INPUT0": value, "id": "i"})
        self.connection.request("POST", f"/v2/models/{model}/{kind}", body)
        wait_until(lambda: len(frontend.requester.streams) > known)
        self.stream: StubStream = frontend.requester.streams[-1]

    def respond(self, *steps: tuple[int | ConchError | None, bool]) -> None:
        for value, final in steps:
            self.frontend.do(partial(self.stream.respond, value, final))

    def answer(self) -> tuple[int, str | None, bytes]:
        response = self.connection.getresponse()
        found = response.status, response.getheader("content-type"), response.read()
        self.connection.close()
        return found


def result(value: int) -> dict[str, Any]:
    return {"OUTPUT0": value, "id": "i", "model_name": "stream", "model_version": "1"}


@pytest.mark.parametrize(
    ("steps", "status", "answer"),
    [
        ([(1, True)], 200, result(1)),
        ([(1, False), (None, True)], 200, result(1)),
        ([(None, True)], 500, NOT_ONE),
        ([(1, False), (2, True)], 500, NOT_ONE),
        ([(1, False), (2, False)], 500, NOT_ONE),
        ([(1, False), (NotFound("gone"), True)], 500, NOT_ONE),
        ([(NotFound("gone"), True)], 404, {"error": "gone"}),
        ([(NotReady("later"), False), (None, True)], 503, {"error": "later"}),
    ],
)
def test_generate_takes_exactly_one_response(frontend: Frontend, steps: Steps, status: int, answer: Any) -> None:
    client = Client(frontend, "generate")
    client.respond(*steps)
    found = client.answer()
    assert (found[0], found[1], json.loads(found[2])) == (status, "application/json", answer)
    assert not client.stream.open and not client.stream.unread


@pytest.mark.parametrize(
    ("steps", "status", "events"),
    [
        ([(1, False), (2, False), (3, True)], 200, [result(1), result(2), result(3)]),
        ([(1, False), (None, True)], 200, [result(1)]),
        ([(None, True)], 200, []),
        ([(1, False), (NotFound("gone"), False), (2, True)], 200, [result(1), {"error": "gone"}, result(2)]),
        ([(1, False), (NotFound("gone"), True)], 200, [result(1), {"error": "gone"}]),
        ([(NotReady("later"), False), (2, False), (None, True)], 503, [{"error": "later"}, result(2)]),
    ],
)
def test_events(frontend: Frontend, steps: Steps, status: int, events: list[Any]) -> None:
    client = Client(frontend, "generate_stream")
    client.respond(*steps)
    expected = b"".join(b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode() for event in events)
    assert client.answer() == (status, EVENTS, expected)
    assert not client.stream.unread


def test_events_come_as_they_are_made(frontend: Frontend) -> None:
    client = Client(frontend, "generate_stream")
    client.respond((1, False))
    response = client.connection.getresponse()
    assert json.loads(response.readline()[6:]) == result(1) and response.readline() == b"\n"
    client.respond((2, True))
    assert json.loads(response.read()[6:]) == result(2)
    client.connection.close()


def test_many_events_in_order(frontend: Frontend) -> None:
    status, _, text = Client(frontend, "generate_stream", "count", 2000).answer()
    events = text.split(b"\n\n")
    assert status == 200 and events.pop() == b""
    assert [json.loads(event[6:])["OUTPUT0"] for event in events] == list(range(1, 2001))


def slow_reader(frontend: Frontend, nbytes: int) -> tuple[socket.socket, StubStream, Callable[[], None]]:
    """A client that reads nothing yet, its stream, and what gives it all that the window allows."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", frontend.port))
    known = len(frontend.requester.streams)
    connection.sendall(b'POST /v2/models/stream/generate_stream HTTP/1.1\r\nContent-Length: 12\r\n\r\n{"INPUT0":7}')
    wait_until(lambda: len(frontend.requester.streams) > known)
    stream = frontend.requester.streams[-1]

    def fill() -> None:
        while stream.open and stream.unread < WINDOW and stream.sent < 1000:
            stream.sent += 1
            stream.respond(0, stream.sent == 1000, nbytes)

    return connection, stream, fill


def test_a_client_that_does_not_read(frontend: Frontend) -> None:
    """What it does not read stays with the worker; once it reads, it gets all of it."""
    connection, stream, fill = slow_reader(frontend, 40_000)
    with connection:
        frontend.do(fill)
        assert stream.unread == WINDOW and stream.sent < 1000
        received = 0
        ending = b""
        while not ending.endswith(b"0\r\n\r\n"):
            chunk = connection.recv(1 << 20)
            assert chunk
            received += chunk.count(b"data: ")
            ending = (ending + chunk)[-5:]
            frontend.do(fill)
    assert stream.sent == 1000 and not stream.unread
    assert received > 900  # a mark may lie between two chunks


def test_errors_that_nobody_reads(frontend: Frontend) -> None:
    """No window holds them back, so the request ends."""
    connection, stream, fill = slow_reader(frontend, 40_000)
    with connection:
        frontend.do(fill)

        def fail() -> int:
            errors = 0
            while stream.open:
                stream.respond(NotFound("gone"))
                errors += 1
            return errors

        assert 0 < frontend.do(fail) <= MAX_WAITING + 1
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received = received[-1000:] + connection.recv(1 << 20)
    assert b'data: {"error":"gone"}' in received
    assert b"faster than the client reads" in received
    assert not stream.unread


def test_a_client_that_goes(frontend: Frontend) -> None:
    """What waited for it is given back."""
    cancelled = frontend.requester.cancelled
    connection, stream, fill = slow_reader(frontend, 40_000)
    with connection:
        frontend.do(fill)
        assert stream.unread == WINDOW
    wait_until(lambda: frontend.requester.cancelled == cancelled + 1 and not stream.unread)


def test_a_client_of_generate_that_goes(frontend: Frontend) -> None:
    client = Client(frontend, "generate")
    client.respond((1, False))
    client.connection.close()
    wait_until(lambda: not client.stream.open and not client.stream.unread)


def test_many_clients(frontend: Frontend) -> None:
    """Each gets its own."""
    clients = [Client(frontend, "generate_stream") for _ in range(10)]
    for i in range(5):
        for number, client in enumerate(clients):
            client.respond((number * 10 + i, i == 4))
    for number, client in enumerate(clients):
        lines = [line for line in client.answer()[2].split(b"\n") if line]
        assert [json.loads(line[6:])["OUTPUT0"] for line in lines] == [number * 10 + i for i in range(5)]
