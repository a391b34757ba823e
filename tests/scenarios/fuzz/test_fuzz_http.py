"""Damaged HTTP requests to a whole server: whatever comes is answered, or the connection closed, and nothing else
happens."""

import http.client
import re
import socket
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scenarios.fuzz.http_requests import (
    INFERENCES,
    LOADS,
    OTHERS,
    WIRE,
    Sent,
    changed_cases,
    documents,
    huge_shapes,
    raw_binary,
)
from tests.scenarios.fuzz.running import IS_LONG, Bound, fuzzed
from tests.scenarios.fuzz.watch import LOAD_ERRORS, REGION_ERRORS, Finding, Watch, check_http, show

pytestmark = pytest.mark.timeout(0 if IS_LONG else 60)

#: a good request from another client after so many
OTHERS_EVERY = 5
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3}) [^\r]*\r\n")


def ask(connection: http.client.HTTPConnection, sent: Sent) -> tuple[int, bytes]:
    """Raises ``Finding`` when there is no answer."""
    try:
        connection.putrequest(sent.method, sent.path, skip_accept_encoding=True)
        for name, value in sent.headers:
            connection.putheader(name, value.encode("utf-8", "replace"))
        connection.putheader("Content-Length", str(len(sent.body)))
        connection.endheaders(sent.body)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise Finding(f"no answer: {error!r}") from error


class Exchange:
    """Sends examples to a server, and keeps account of the answers."""

    def __init__(self, watch: Watch, *allowed: str) -> None:
        self.watch = watch
        self.answers = Counter[int]()
        self._allowed = allowed
        self._bound = Bound()
        self._connection = http.client.HTTPConnection("127.0.0.1", watch.server.http_port, timeout=10)

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()
        show(self.watch, self.answers)

    def send(self, sent: Sent) -> None:
        if self._bound.over:
            return
        status, body = ask(self._connection, sent)
        self._looked_at(status)
        check_http(status, body, *self._allowed)

    def send_bytes(self, data: bytes, ends: bool) -> None:
        """On a connection of their own. ``ends``: it is half closed then, and every answer is read; otherwise it stays
        open while others ask."""
        if self._bound.over:
            return
        with socket.create_connection(("127.0.0.1", self.watch.server.http_port), timeout=10) as connection:
            received = written(connection, data, ends)
            found = list(_STATUS_LINE.finditer(received))
            self._looked_at(int(found[0][1]) if found else 0)
        ends_of_answers = [*(match.start() for match in found[1:]), len(received)]
        for match, end in zip(found, ends_of_answers, strict=False):
            check_http(int(match[1]), received[match.end() : end], *self._allowed)

    def _looked_at(self, status: int) -> None:
        self.answers[status] += 1
        self.watch.lives()
        if self.answers.total() % OTHERS_EVERY == 0:
            self.watch.answers_others()


def written(connection: socket.socket, data: bytes, ends: bool) -> bytes:
    """What comes back."""
    received = b""
    try:
        connection.sendall(data)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        else:
            connection.settimeout(0.01)
        while chunk := connection.recv(65536):
            received += chunk
    except TimeoutError as error:
        if ends:
            raise Finding(f"neither answered nor closed, after {received!r}") from error
    except (ConnectionResetError, BrokenPipeError):
        pass
    return received


def test_inference_documents(watch: Watch) -> None:
    with Exchange(watch, *REGION_ERRORS) as exchange:
        fuzzed(1000)(given(documents(INFERENCES))(exchange.send))()
    watch.settled()


def test_other_documents(watch: Watch) -> None:
    with Exchange(watch, *REGION_ERRORS, *LOAD_ERRORS) as exchange:
        fuzzed()(given(documents(OTHERS))(exchange.send))()
    watch.settled()


def test_loads(watch: Watch) -> None:
    with Exchange(watch, *LOAD_ERRORS) as exchange:
        fuzzed(60)(given(documents(LOADS))(exchange.send))()
    watch.settled()


def test_raw_binary(watch: Watch) -> None:
    with Exchange(watch) as exchange:
        fuzzed()(given(raw_binary())(exchange.send))()
    watch.settled()


def test_huge_shapes(watch: Watch) -> None:
    with Exchange(watch) as exchange:
        fuzzed()(given(huge_shapes())(exchange.send))()
    watch.settled()


def test_cases_of_the_comparison_with_triton(watch: Watch) -> None:
    with Exchange(watch, *REGION_ERRORS) as exchange:
        fuzzed(500)(given(changed_cases())(exchange.send))()
    watch.settled()


def test_bytes(watch: Watch) -> None:
    with Exchange(watch, *REGION_ERRORS, *LOAD_ERRORS) as exchange:
        fuzzed(500)(given(WIRE, st.booleans())(exchange.send_bytes))()
    watch.settled()
