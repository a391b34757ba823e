"""S15: what is refused before it is read, and floods of frames. Clients that are slow are in
``tests/scenarios/faults/test_slow_clients.py``, and how they are cut off in the tests of the two engines."""

import socket
import time

import pytest

from tests.frontends.grpc.http2 import frame
from tests.scenarios.faults.limits import processor_s
from tests.scenarios.harness import Server
from tests.security import wire
from tests.security.conftest import SIMPLE, Witness, check_answers, simple_body
from tests.security.wire import POST_PATHS, answer, head

GROWN_NBYTES = 8 << 20
#: it takes a millisecond on an idle machine
ANSWERED_WITHIN_S = 5.0


def test_what_is_declared_too_large_is_not_read(server: Server, witness: Witness) -> None:
    """Nothing of it is sent, and the answer comes all the same."""
    for path in POST_PATHS:
        for nbytes in (10_000_000_000, 2**31, 2**63, 10**18 - 1, 10**19, 10**30):
            for more in ((), ("Expect: 100-continue",), ("Inference-Header-Content-Length: 10",)):
                begun = time.monotonic()
                status, text = answer(server, head(path, f"Content-Length: {nbytes}", *more))
                assert status in (400, 413), (path, nbytes, more, status, text)
                assert time.monotonic() - begun < ANSWERED_WITHIN_S
    witness.check(GROWN_NBYTES)


def test_nobody_is_asked_for_a_body_that_is_refused(server: Server, witness: Witness) -> None:
    """``100 Continue`` comes after the checks."""
    for path, status in (("/v2/nope", 404), ("/v2/health/live", 405), ("/v2/models/simple/infer", 400)):
        sent = head(path, "Content-Length: 3000000000", "Expect: 100-continue")
        assert answer(server, sent)[0] == status, path
    body = simple_body()
    expecting = head(SIMPLE, f"Content-Length: {len(body)}", "Expect: 100-continue")
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as connection:
        connection.sendall(expecting)
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")
    witness.check(GROWN_NBYTES)


def test_a_grpc_message_that_is_declared_too_large(server: Server, witness: Witness) -> None:
    """No window is opened for it."""
    for nbytes in (2**31, 2**32 - 1):
        for path in (wire.INFER, wire.STREAM_INFER):
            sent = wire.begin(1, path) + frame(wire.DATA, 0, 1, b"\0" + nbytes.to_bytes(4, "big") + bytes(100))
            told = wire.talk_http2(server, sent, lambda told: 1 in told.ended)
            assert told.gone is None and 1 in told.ended
            assert b"larger than max" in told.headers[1] or b"8" in told.headers[1]
    witness.check(GROWN_NBYTES)


def test_rapid_reset(server: Server, witness: Witness) -> None:
    """10,000 calls that are cancelled at once: the connection is ended before, and the processor idle afterwards."""
    pid = witness.pids["grpc"]
    calls = b"".join(wire.begin(i) + frame(wire.RST_STREAM, 0, i, (8).to_bytes(4, "big")) for i in range(1, 20_001, 2))
    told = wire.talk_http2(server, calls)
    assert told.gone == 11, told  # ENHANCE_YOUR_CALM
    check_answers(server)
    deadline = time.monotonic() + 15
    while True:
        before, begun = processor_s(pid), time.monotonic()
        time.sleep(0.5)
        share = (processor_s(pid) - before) / (time.monotonic() - begun)
        if share < 0.1:
            break
        assert time.monotonic() < deadline, f"the frontend is busy: {share:.0%}"
    witness.check(GROWN_NBYTES)


@pytest.mark.parametrize(
    ("name", "flood"),
    [
        ("pings", frame(wire.PING, 0, 0, bytes(8)) * 100_000),
        ("settings", wire.setting(4, 65535) * 100_000),
        ("window updates of nothing", wire.window_update(0, 1) * 100_000),
        ("empty data", wire.begin(1) + frame(wire.DATA, 0, 1) * 100_000),
        ("priorities", frame(2, 0, 1, bytes(5)) * 100_000),
        (
            "headers without an end",
            frame(wire.HEADERS, 0, 1, wire.call_headers()) + frame(9, 0, 1, bytes(100)) * 10_000,
        ),
    ],
)
def test_floods_of_frames(server: Server, witness: Witness, name: str, flood: bytes) -> None:
    """The default limits end the connection, or the frames cost nothing."""
    done = wire.begin(3) + frame(wire.DATA, wire.END_STREAM, 3, wire.prefixed(b""))
    told = wire.talk_http2(server, flood + done, lambda told: 3 in told.ended)
    assert told.gone is not None or name.startswith("window updates"), told
    witness.check(GROWN_NBYTES)
