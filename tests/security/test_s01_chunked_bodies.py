"""S1: bodies in hundreds of thousands of pieces. They cost their sender more than the server, on every route."""

import json
import time

import pytest

from tests.frontends.grpc.http2 import frame
from tests.scenarios.harness import Server
from tests.security.conftest import SIMPLE, Witness, simple_body
from tests.security.wire import (
    DATA,
    END_STREAM,
    POST_PATHS,
    STREAM_INFER,
    answer,
    begin,
    chunked,
    head,
    prefixed,
    talk_http2,
)

GROWN_NBYTES = 8 << 20
#: it takes a tenth of that on an idle machine
ANSWERED_WITHIN_S = 5.0
MANY = 500_000
MOST_CHUNKS = 65_536
TOO_MANY = b"Chunked request body exceeds maximum of 65536 non-empty chunks"
CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.timeout(120)
def test_half_a_million_chunks_on_every_route(server: Server, witness: Witness) -> None:
    body = b"1\r\n \r\n" * MANY + b"0\r\n\r\n"
    for path in POST_PATHS:
        begun = time.monotonic()
        status, text = answer(server, head(path, CHUNKED) + body)
        assert time.monotonic() - begun < ANSWERED_WITHIN_S, path
        assert status in (400, 413) and TOO_MANY in text, (path, status, text)
    witness.check(GROWN_NBYTES)


@pytest.mark.timeout(60)
def test_as_many_chunks_as_are_allowed(server: Server, witness: Witness) -> None:
    body = simple_body()
    padded = body + b" " * (MOST_CHUNKS - len(body))
    status, text = answer(server, head(SIMPLE, CHUNKED) + chunked(padded[i : i + 1] for i in range(MOST_CHUNKS)))
    assert status == 200, text
    assert json.loads(text)["outputs"][0]["data"] == [2 * i for i in range(16)]
    status, text = answer(server, head(SIMPLE, CHUNKED) + chunked(bytes([b]) for b in padded + b" "))
    assert (status, TOO_MANY in text) == (400, True)
    witness.check(GROWN_NBYTES)


OVERHEADS = {
    "extensions": b"1;a=b;c=d\r\n \r\n" * 300_000,
    "one long extension": b"1;" + b"a" * 3_000_000,
    "zeros before the size": b"0" * 3_000_000 + b"1\r\n \r\n",
    "many trailers": b"0\r\n" + b"a: b\r\n" * 500_000,
    "one long trailer": b"0\r\na: " + b"b" * 3_000_000,
    "sizes that overflow": b"ffffffffffffffff1\r\n",
    "a negative size": b"-1\r\n",
    "a size of 4 EiB": b"3fffffffffffffff\r\n" + b" " * 1_000_000,
}


@pytest.mark.timeout(60)
def test_chunks_that_are_mostly_something_else(server: Server, witness: Witness) -> None:
    for name, body in OVERHEADS.items():
        if name == "a size of 4 EiB":
            body += b" " * (65 << 20)  # there is no end to it, but a limit
        begun = time.monotonic()
        status, text = answer(server, head(SIMPLE, CHUNKED) + body)
        assert time.monotonic() - begun < ANSWERED_WITHIN_S, name
        assert status in (400, 413, 431), (name, status, text)
    # the largest one was held up to the limit, and its memory is kept no longer than the connection
    witness.check(GROWN_NBYTES)


@pytest.mark.timeout(60)
def test_a_grpc_message_in_frames_of_one_byte(server: Server, witness: Witness) -> None:
    """As much as the window of a stream has room for, on both kinds of calls: refused or answered, never kept."""
    message = prefixed(bytes(200_000))
    frames = b"".join(frame(DATA, 0, 1, message[i : i + 1]) for i in range(len(message))) + frame(DATA, END_STREAM, 1)
    for call in (begin(1), begin(1, STREAM_INFER)):
        begun = time.monotonic()
        told = talk_http2(server, call + frames, lambda told: 1 in told.ended)
        assert time.monotonic() - begun < ANSWERED_WITHIN_S
        assert told.gone is not None or 1 in told.ended
    witness.check(GROWN_NBYTES)
