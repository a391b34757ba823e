"""What a connection may cost: clients that go away, that are slow, that are many; and how a server stops."""

import asyncio
import json
import socket
import struct
import time

import pytest

from frontends.http.engine import Limits
from tests.frontends.http.support import Frontend, closed, read_response, simple_request
from tests.frontends.http.wire import HELD, POST, head, post, wait_until

# ------------------------------------------------------------------------------------------------ clients that go away


def test_disconnect_cancels(frontend: Frontend) -> None:
    before = frontend.requester.cancelled
    with frontend.connect() as connection:
        connection.sendall(post(HELD, b"/v2/models/held/infer") + post())
        wait_until(lambda: len(frontend.requester.held) == 1)
        submitted = len(frontend.requester.submitted)
    wait_until(lambda: frontend.requester.cancelled == before + 1)
    frontend.do(frontend.requester.finish_held)
    assert len(frontend.requester.submitted) == submitted


def test_answer_that_crosses_the_disconnect_is_released(frontend: Frontend) -> None:
    requester = frontend.requester
    blob = struct.pack("<100000i", *range(100_000))
    shown = {"name": "INPUT0", "shape": [100_000], "datatype": "INT32", "parameters": {"binary_data_size": len(blob)}}
    header = json.dumps({"inputs": [shown], "parameters": {"binary_data_output": True}}).encode()
    sent = post(header + blob, b"/v2/models/echo_int32/infer", b"Inference-Header-Content-Length: %d" % len(header))
    borrowed = requester.borrowed
    for _ in range(10):
        with frontend.connect() as connection:
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets
    wait_until(lambda: not frontend.engine.connections and requester.borrowed == requester.released)
    assert requester.borrowed <= borrowed + 10
    assert frontend.engine.buffered_nbytes == 0


def test_upload_that_breaks_off(frontend: Frontend) -> None:
    with frontend.connect() as connection:
        header = head(POST, b"Content-Length: 900000")
        connection.sendall(header + b" " * 500_000)
        wait_until(lambda: frontend.engine.buffered_nbytes >= 500_000)
    wait_until(lambda: frontend.engine.buffered_nbytes == 0)


# -------------------------------------------------------------------------------------------------------------- limits


def test_time_limits() -> None:
    limits = Limits(
        head_seconds=0.2,
        body_grace_seconds=0.2,
        body_nbytes_per_second=100_000,
        idle_seconds=0.3,
        linger_seconds=0.2,
        write_seconds=0.3,
    )
    with Frontend(limits) as frontend:
        with frontend.connect() as connection:  # headers too slow
            connection.sendall(b"GET /v2 HTT")
            assert read_response(connection)[0] == 408
            assert closed(connection)
        with frontend.connect() as connection:  # body too slow, small and large
            connection.sendall(head(POST, b"Content-Length: 500") + b"{")
            assert read_response(connection)[0] == 408
        with frontend.connect() as connection:
            connection.sendall(head(POST, b"Content-Length: 500000") + b"{" * 100)
            assert read_response(connection)[0] == 408
            assert closed(connection)
        with frontend.connect() as connection:  # idle, from the start and after a request
            assert closed(connection)
        with frontend.connect() as connection:
            connection.sendall(post())
            assert read_response(connection)[0] == 200
            assert closed(connection)
        # in flight is not idle
        with frontend.connect() as connection:
            connection.sendall(post(HELD, b"/v2/models/held/infer"))
            wait_until(lambda: len(frontend.requester.held) == 1)
            connection.settimeout(1.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            frontend.do(frontend.requester.finish_held)
            assert read_response(connection)[0] == 200
        wait_until(lambda: not frontend.engine.connections)


def test_reader_that_stops_is_cut_off_and_gives_the_memory_back() -> None:
    with Frontend(Limits(write_seconds=0.3)) as frontend, frontend.connect() as connection:
        requester = frontend.requester
        nbytes = 32 << 20
        shown = {"name": "INPUT0", "shape": [nbytes], "datatype": "UINT8", "parameters": {"binary_data_size": nbytes}}
        header = json.dumps({"inputs": [shown], "parameters": {"binary_data_output": True}}).encode()
        length = b"Inference-Header-Content-Length: %d" % len(header)
        connection.sendall(post(header + bytes(nbytes), b"/v2/models/echo_uint8/infer", length))
        wait_until(lambda: requester.borrowed == 1)
        assert requester.released == 0
        wait_until(lambda: requester.released == 1)
        wait_until(lambda: not frontend.engine.connections)


def test_too_many_connections() -> None:
    with Frontend(Limits(connections=2)) as frontend:
        with frontend.connect() as first, frontend.connect() as second:
            for connection in (first, second):
                connection.sendall(post())
                assert read_response(connection)[0] == 200
            with frontend.connect() as third:
                status, headers, _ = read_response(third)
                assert (status, headers["retry-after"]) == (503, "1")
                assert closed(third)
            first.sendall(post())
            assert read_response(first)[0] == 200
        wait_until(lambda: not frontend.engine.connections)
        assert frontend.infer("simple", simple_request())[0] == 200


def test_bodies_over_the_budget() -> None:
    with Frontend(Limits(buffered_nbytes=1_000_000)) as frontend:
        upload = head(POST, b"Content-Length: 900000", b"Inference-Header-Content-Length: 10") + b" " * 800_000
        with frontend.connect() as first, frontend.connect() as second:
            first.sendall(upload)
            wait_until(lambda: frontend.engine.buffered_nbytes >= 800_000)
            second.sendall(upload)
            status, headers, _ = read_response(second)
            assert (status, headers["retry-after"]) == (503, "1")
            first.sendall(b" " * 100_000)
            assert read_response(first)[0] == 500
        wait_until(lambda: frontend.engine.buffered_nbytes == 0)


def test_body_over_the_hard_limit() -> None:
    with Frontend(Limits(body_nbytes=1_000_000)) as frontend, frontend.connect() as connection:
        connection.sendall(head(POST, b"Content-Length: 1000001", b"Inference-Header-Content-Length: 10"))
        status, _, body = read_response(connection)
        assert status == 413
        assert b"exceeds the maximum of 1000000 bytes" in body


# --------------------------------------------------------------------------------------------------------------- drain


def test_drain() -> None:
    with Frontend() as frontend, frontend.connect() as idle, frontend.connect() as busy, frontend.connect() as half:
        idle.sendall(post())
        assert read_response(idle)[0] == 200
        busy.sendall(post(HELD, b"/v2/models/held/infer"))
        wait_until(lambda: len(frontend.requester.held) == 1)
        half.sendall(post()[:-5])
        wait_until(lambda: len(frontend.engine.connections) == 3)
        drained = asyncio.run_coroutine_threadsafe(frontend.engine.drain(5), frontend.loop)
        assert closed(idle)
        with pytest.raises(ConnectionRefusedError):
            frontend.connect()
        half.sendall(post()[-5:])
        status, headers, _ = read_response(half)
        assert (status, headers["connection"]) == (200, "close")
        frontend.do(frontend.requester.finish_held)
        status, headers, _ = read_response(busy)
        assert (status, headers["connection"]) == (200, "close")
        assert closed(busy)
        assert drained.result(5) is True


def test_clients_are_asked_to_part() -> None:
    """By their next answers; what they have pipelined is answered first."""
    with Frontend() as frontend, frontend.connect() as idle, frontend.connect() as pipelining:
        idle.sendall(post())
        assert "connection" not in read_response(idle)[1]
        pipelining.sendall(post(HELD, b"/v2/models/held/infer") + post())
        wait_until(lambda: len(frontend.requester.held) == 1)
        frontend.do(frontend.engine.part)
        frontend.do(frontend.requester.finish_held)
        buffered = bytearray()
        assert "connection" not in read_response(pipelining, buffered)[1]
        status, headers, _ = read_response(pipelining, buffered)
        assert (status, headers["connection"]) == (200, "close")
        assert closed(pipelining)
        idle.sendall(post())
        assert read_response(idle)[1]["connection"] == "close"
        assert closed(idle)
        with frontend.connect() as another:
            another.sendall(post())
            assert read_response(another)[0] == 200


def test_drain_answers_what_was_sent_before() -> None:
    """Although nobody has read it yet, nor accepted the connection."""
    with Frontend() as frontend, frontend.connect() as idle, frontend.connect() as pipelining:
        for connection in (idle, pipelining):
            connection.sendall(post())
            assert read_response(connection)[0] == 200
        pipelining.sendall(post(HELD, b"/v2/models/held/infer") + post() + post())
        wait_until(lambda: len(frontend.requester.held) == 1)
        new: list[socket.socket] = []

        async def send_and_drain() -> bool:
            for _ in range(3):
                new.append(frontend.connect())
            for connection in (idle, *new):
                connection.sendall(post())
            return await frontend.engine.drain(10)

        drained = asyncio.run_coroutine_threadsafe(send_and_drain(), frontend.loop)
        wait_until(lambda: frontend.engine.draining)
        for connection in (idle, *new):
            status, headers, _ = read_response(connection)
            assert (status, headers["connection"]) == (200, "close")
            assert closed(connection)
            connection.close()
        frontend.do(frontend.requester.finish_held)
        buffered = bytearray()
        assert [read_response(pipelining, buffered)[0] for _ in range(3)] == [200, 200, 200]
        assert closed(pipelining)
        assert drained.result(10) is True


def test_drain_gives_up() -> None:
    with Frontend() as frontend, frontend.connect() as busy:
        busy.sendall(post(HELD, b"/v2/models/held/infer"))
        wait_until(lambda: len(frontend.requester.held) == 1)
        drained = asyncio.run_coroutine_threadsafe(frontend.engine.drain(0.2), frontend.loop)
        assert drained.result(5) is False
        assert closed(busy)
        assert frontend.requester.cancelled == 1


def test_half_open_connections_disturb_nobody() -> None:
    """As many as the machine's usual limit on descriptors allows; half of them drip."""
    with Frontend() as frontend:
        half_open = [frontend.connect() for _ in range(300)]
        for i, connection in enumerate(half_open):
            connection.sendall(post()[: 20 + i % 100])
        seconds = []
        with frontend.connect() as connection:
            for i in range(100):
                half_open[i % 150].sendall(b"x")
                begin = time.monotonic()
                connection.sendall(post())
                assert read_response(connection)[0] == 200
                seconds.append(time.monotonic() - begin)
        assert sorted(seconds)[90] < 0.5
        for connection in half_open:
            connection.close()
        wait_until(lambda: not frontend.engine.connections)
