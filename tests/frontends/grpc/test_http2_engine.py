"""What the engine on HTTP/2 of our own does with clients that mean no good, or nothing."""

import asyncio
import gc
import logging
import random
from typing import Any

import grpc.aio
import pytest

from conch.settings import Settings
from frontends.grpc.engines import make_engine
from frontends.grpc.engines.http2 import Http2Engine
from frontends.grpc.http2 import frames
from frontends.grpc.http2.limits import limits_of
from tests.frontends.grpc.echo import Echo
from tests.frontends.grpc.http2 import HEADERS, PREFACE, frame, headers, literal, message
from tests.frontends.grpc.peer import Limited, connected

pytestmark = pytest.mark.asyncio


async def said(limited: Limited, *data: bytes) -> dict[int, list[tuple[int, int, bytes]]]:
    """What the server answers to ``data`` until it closes the connection: flags, stream and payload by kind."""
    reader, writer = await asyncio.open_connection("127.0.0.1", limited.port)
    received = b""
    try:
        for part in data:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(10):
            while part := await reader.read(65536):
                received += part
    except ConnectionError:
        pass
    finally:
        writer.close()
    found: dict[int, list[tuple[int, int, bytes]]] = {}
    while received:
        nbytes = int.from_bytes(received[:3], "big")
        found.setdefault(received[3], []).append(
            (received[4], int.from_bytes(received[5:9], "big"), received[9 : 9 + nbytes])
        )
        received = received[9 + nbytes :]
    return found


async def goaway(limited: Limited, *data: bytes) -> tuple[int, bytes]:
    ((_, _, payload),) = (await said(limited, *data))[frames.GOAWAY]
    return int.from_bytes(payload[4:8], "big"), payload[8:]


def ping(i: int = 0) -> bytes:
    return frame(frames.PING, 0, 0, i.to_bytes(8, "big"))


def setting(key: int, value: int) -> bytes:
    return frame(frames.SETTINGS, 0, 0, key.to_bytes(2, "big") + value.to_bytes(4, "big"))


async def test_it_is_the_usual_one() -> None:
    assert isinstance(make_engine(Echo(), Settings()), Http2Engine)


OPEN = PREFACE + frame(1, 4, 1, HEADERS)
FAULTS = {
    "HTTP/1": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", frames.PROTOCOL_ERROR),
    "no settings": (PREFACE[:24] + ping(), frames.PROTOCOL_ERROR),
    "settings of 5 bytes": (PREFACE + frame(4, 0, 0, bytes(5)), frames.FRAME_SIZE_ERROR),
    "settings of a stream": (PREFACE + frame(4, 0, 1), frames.PROTOCOL_ERROR),
    "acknowledgement with settings": (PREFACE + frame(4, 1, 0, bytes(6)), frames.FRAME_SIZE_ERROR),
    "push": (PREFACE + setting(2, 2), frames.PROTOCOL_ERROR),
    "window": (PREFACE + setting(4, 1 << 31), frames.FLOW_CONTROL_ERROR),
    "frame size": (PREFACE + setting(5, 100), frames.PROTOCOL_ERROR),
    "ping of 7 bytes": (PREFACE + frame(6, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
    "promise": (PREFACE + frame(5, 4, 1, bytes(10)), frames.PROTOCOL_ERROR),
    "reset of nothing": (PREFACE + frame(3, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
    "reset of 3 bytes": (OPEN + frame(3, 0, 1, bytes(3)), frames.FRAME_SIZE_ERROR),
    "priority of 4 bytes": (OPEN + frame(2, 0, 1, bytes(4)), frames.FRAME_SIZE_ERROR),
    "update of nothing": (PREFACE + frame(8, 0, 1, b"\0\0\0\1"), frames.PROTOCOL_ERROR),
    "update by 0": (PREFACE + frame(8, 0, 0, bytes(4)), frames.PROTOCOL_ERROR),
    "update of 3 bytes": (PREFACE + frame(8, 0, 0, bytes(3)), frames.FRAME_SIZE_ERROR),
    "too many updates": (PREFACE + frame(8, 0, 0, b"\x7f\xff\xff\xff"), frames.FLOW_CONTROL_ERROR),
    "too many updates of a stream": (OPEN + frame(8, 0, 1, b"\x7f\xff\xff\xff"), frames.FLOW_CONTROL_ERROR),
    "window and update": (
        OPEN + frame(8, 0, 1, b"\0\xff\xff\xff") + setting(4, (1 << 31) - 1),
        frames.FLOW_CONTROL_ERROR,
    ),
    "data of stream 0": (PREFACE + frame(0, 0, 0, b"x"), frames.PROTOCOL_ERROR),
    "headers of stream 0": (PREFACE + frame(1, 4, 0, HEADERS), frames.PROTOCOL_ERROR),
    "even stream": (PREFACE + frame(1, 4, 2, HEADERS), frames.PROTOCOL_ERROR),
    "number used again": (OPEN + message(1, b"x") + frame(1, 4, 1, HEADERS), frames.PROTOCOL_ERROR),
    "smaller number": (PREFACE + frame(1, 4, 5, HEADERS) + frame(1, 4, 3, HEADERS), frames.PROTOCOL_ERROR),
    "data after the end": (
        PREFACE + frame(1, 4, 1, headers("Hold")) + message(1, b"") + frame(0, 0, 1, b"x"),
        frames.STREAM_CLOSED,
    ),
    "padding only": (OPEN + frame(0, 8, 1, b"\x05abcd"), frames.PROTOCOL_ERROR),
    "padding of headers": (PREFACE + frame(1, 0xC, 1, b"\xff" + HEADERS), frames.PROTOCOL_ERROR),
    "no continuation": (PREFACE + frame(1, 0, 1, HEADERS) + ping(), frames.PROTOCOL_ERROR),
    "no continuation, but data": (PREFACE + frame(1, 0, 1, HEADERS) + message(1, b"x"), frames.PROTOCOL_ERROR),
    "another's continuation": (PREFACE + frame(1, 0, 1, HEADERS) + frame(9, 4, 3), frames.PROTOCOL_ERROR),
    "unreadable headers": (PREFACE + frame(1, 4, 1, b"\xff" * 6), frames.COMPRESSION_ERROR),
    "very large headers": (
        PREFACE + frame(1, 4, 1, b"\x40\x01a\x7f\xe1\x1e" + bytes(4000) + b"\xbe" * 60),
        frames.COMPRESSION_ERROR,
    ),
    "large frame": (PREFACE + b"\x01\x00\x01\x01\x04\0\0\0\1", frames.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_faults_end_their_connection_only(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data, code = FAULTS[name]
    async with connected() as (limited, peer):
        found, text = await goaway(limited, data)
        assert found == code, text
        assert (await peer.ask("Say", b"on")).payload == b"on"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_data_beyond_the_window() -> None:
    async with Limited(window_nbytes=1000) as limited:
        data = frame(0, 0, 1, b"\0\0\xff\0\0" + bytes(1000))
        assert (await goaway(limited, OPEN + data))[0] == frames.FLOW_CONTROL_ERROR


STREAM_FAULTS = {
    "no path": HEADERS[:2],
    "upper case": HEADERS + literal(b"Upper", b"x"),
    "a line end": HEADERS + literal(b"a", b"x\ny"),
    "path twice": literal(b":path", b"/") + HEADERS,
    "a pseudo-header at the end": HEADERS + literal(b":authority", b"x"),
    "an unknown pseudo-header": literal(b":x", b"x") + HEADERS,
    "a connection's header": HEADERS + literal(b"connection", b"close"),
    "only trailers": literal(b"a", b"x"),
}


@pytest.mark.parametrize("name", STREAM_FAULTS)
async def test_faults_of_one_stream(name: str) -> None:
    async with connected() as (_, peer):
        number = peer.connection.get_next_available_stream_id()
        peer.begin("Say")
        peer.raw(frame(1, 4, number + 2, STREAM_FAULTS[name]))
        peer.connection._begin_new_stream(number + 2, 1)  # type: ignore[no-untyped-call, unused-ignore, arg-type]
        peer.connection.streams[number + 2].state_machine.state = peer.connection.streams[number].state_machine.state
        assert (await peer.ended(number + 2)).reset == frames.PROTOCOL_ERROR
        assert (await peer.ask("Say", b"on")).payload == b"on"


FLOODS = {
    "pings": ping() * 10,
    "settings": setting(4, 1000) * 100,
    "acknowledgements": frame(4, 1, 0) * 100,
    "empty data": frame(1, 4, 1, HEADERS) + frame(0, 0, 1) * 100,
    "priorities": frame(2, 0, 1, bytes(5)) * 100,
    "unknown frames": frame(99, 0, 1) * 100,
    "continuations": frame(1, 0, 1, HEADERS) + frame(9, 0, 1) * 100,
    "large continuations": frame(1, 0, 1, HEADERS) + frame(9, 0, 1, bytes(16384)) * 5,
    "resets": b"".join(frame(1, 4, i, headers("Hold")) + frame(3, 0, i, bytes(4)) for i in range(1, 201, 2)),
    "resets after requests": b"".join(
        frame(1, 4, i, headers("Hold")) + message(i, b"") + frame(3, 0, i, bytes(4)) for i in range(1, 201, 2)
    ),
    "calls that are refused": b"".join(frame(1, 4, i, HEADERS) for i in range(1, 301, 2)),
    "malformed calls": b"".join(frame(1, 4, i, HEADERS[:2]) for i in range(1, 201, 2)),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_floods(name: str) -> None:
    async with connected(idle_frames=50, idle_frames_per_second=1, cancelled=50, streams=60) as (limited, peer):
        assert (await goaway(limited, PREFACE, FLOODS[name]))[0] == frames.ENHANCE_YOUR_CALM
        assert (await peer.ask("Say", b"on")).payload == b"on"
        while not limited.application.held.empty():
            await limited.application.held.get_nowait().cancelled.wait()


async def test_many_calls_are_no_flood() -> None:
    """Clients send a window update or two with each."""
    async with connected(idle_frames=5, idle_frames_per_second=0.001, cancelled=5) as (_, peer):
        for _ in range(50):
            assert (await peer.ask("Say", bytes(10))).payload == bytes(10)
            peer.raw(frame(8, 0, 0, b"\0\0\0\1"))


async def test_pings() -> None:
    """As gRPC counts them: not those that come after data."""
    async with connected() as (_, peer):
        for _ in range(10):
            assert (await peer.ask("Say", b"on")).payload == b"on"
            peer.connection.ping(b"12345678")
            peer.flush()
        for _ in range(3):
            peer.connection.ping(b"12345678")
        peer.flush()
        await peer.until_closed()
        assert peer.gone == (frames.ENHANCE_YOUR_CALM, b"too_many_pings")


async def test_any_number_of_pings() -> None:
    settings = Settings(grpc_http2_max_ping_strikes=0)
    async with Limited(settings=settings) as limited, limited.peer() as peer:
        for _ in range(20):
            peer.connection.ping(b"12345678")
        assert (await peer.ask("Say", b"on")).payload == b"on"


async def test_clients_are_pinged() -> None:
    settings = Settings(grpc_keepalive_time=1, grpc_keepalive_timeout=1, grpc_keepalive_permit_without_calls=True)
    async with Limited(settings=settings) as limited, limited.peer() as peer, limited.peer() as dead:
        dead.answers_pings = False
        await peer.until(lambda: peer.pings)
        assert (await peer.ask("Say", b"on")).payload == b"on"
        await dead.until_closed()
        assert dead.pings == 1
        assert (await peer.ask("Say", b"on")).payload == b"on"


@pytest.mark.parametrize("limits", [{"age_seconds": 0.1}, {"age_grace_seconds": 0.01}])
async def test_connections_end_when_their_calls_have(limits: dict[str, Any]) -> None:
    """Old ones, and those whose clients were asked to part, whose calls have more time than those of old ones."""
    async with Limited(keepalive_timeout_seconds=0.1, **limits) as limited:
        asking = asyncio.create_task(said(limited, PREFACE + frame(1, 4, 1, headers("Hold")) + message(1, b"")))
        held = await limited.application.held.get()
        (connection,) = limited.engine.connections
        if "age_seconds" not in limits:
            limited.engine.part()
            limited.engine.part()
        async with asyncio.timeout(10):
            while not connection.is_leaving:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        held.answer(b"done")
        found = await asking
        assert [payload for _, _, payload in found[frames.DATA]] == [b"\0\0\0\0\4done"]
        last = [int.from_bytes(payload[:4], "big") for _, _, payload in found[frames.GOAWAY]]
        assert last == [frames.MAX_31_BITS, 1]


async def test_old_connections_end_anyway() -> None:
    async with Limited(age_seconds=0.1, age_grace_seconds=0.1) as limited:
        found = await said(limited, PREFACE + frame(1, 4, 1, headers("Hold")) + message(1, b""))
        assert frames.DATA not in found
        await limited.application.held.get_nowait().cancelled.wait()


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        ({"preface_seconds": 0.1}, b""),
        ({"preface_seconds": 0.1}, b"PRI * HTT"),
        ({"preface_seconds": 0.1}, PREFACE[:24]),
        ({"idle_seconds": 0.1, "keepalive_timeout_seconds": 0.1}, PREFACE),
        ({"linger_seconds": 0.1}, b"nonsense"),
    ],
)
async def test_connections_that_do_nothing(limits: dict[str, Any], data: bytes) -> None:
    async with Limited(**limits) as limited:
        await said(limited, data)


DRIPPING = frame(1, 0, 3, HEADERS[:5])


@pytest.mark.parametrize("begun", [DRIPPING, frame(1, 4, 3, HEADERS)[:-1]])
async def test_headers_that_come_too_slowly(begun: bytes) -> None:
    async with Limited(header_seconds=0.1) as limited:
        reader, writer = await asyncio.open_connection("127.0.0.1", limited.port)
        told = asyncio.create_task(reader.read())
        writer.write(PREFACE + frame(1, 4, 1, HEADERS) + message(1, b"") + begun)
        async with asyncio.timeout(10):
            while not told.done():
                await asyncio.sleep(0.02)
                if begun is DRIPPING:
                    writer.write(frame(9, 0, 3, b"\0"))
        writer.close()
        assert b"headers arrive too slowly" in told.result()


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\0\5xxx"])
@pytest.mark.parametrize("name", ["Say", "Talk"])
async def test_requests_that_come_too_slowly(name: str, data: bytes) -> None:
    async with connected(message_grace_seconds=0.1) as (_, peer):
        number = peer.begin(name)
        await peer.send(number, data or b"\0", ends=False)
        answer = await peer.ended(number)
        assert (answer.status, answer.headers["grpc-message"]) == ("14", "the request arrives too slowly")


async def test_readers_that_do_not_read() -> None:
    async with connected(write_seconds=0.1) as (limited, peer):
        _, writer = await asyncio.open_connection("127.0.0.1", limited.port, limit=1)
        writer.write(PREFACE + setting(4, (1 << 31) - 1) + frame(8, 0, 0, b"\x6f\xff\xff\xff"))
        writer.write(frame(1, 4, 1, headers("Zeros")) + message(1, b"100000000"))
        while limited.application.calls == []:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        async with asyncio.timeout(10):
            while len(limited.engine.connections) > 1:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        writer.close()
        assert (await peer.ask("Say", b"on")).payload == b"on"


async def test_streams_without_a_window() -> None:
    async with Limited(stalled_seconds=0.1) as limited, limited.peer(INITIAL_WINDOW_SIZE=0) as peer:
        number = peer.begin("Say")
        await peer.send(number, b"\0\0\0\0\1x")
        assert (await peer.ended(number)).reset == frames.CANCEL


async def test_clients_that_never_read_what_they_ask_for() -> None:
    """Nothing piles up."""
    async with connected(unread_frames=100, ping_strikes=0) as (limited, peer):
        _, writer = await asyncio.open_connection("127.0.0.1", limited.port, limit=1)
        writer.write(PREFACE + setting(4, (1 << 31) - 1) + frame(8, 0, 0, b"\x6f\xff\xff\xff"))
        writer.write(frame(1, 4, 1, headers("Zeros")) + message(1, b"100000000"))
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(10):
                while True:
                    writer.write(ping())
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()
        assert (await peer.ask("Say", b"on")).payload == b"on"


async def test_more_connections_than_allowed() -> None:
    async with connected(connections=1) as (limited, peer):
        assert frames.SETTINGS not in await said(limited, PREFACE)
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{limited.port}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Echo/Say")(b"on", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await channel.close()
        assert (await peer.ask("Say", b"on")).payload == b"on"


async def test_random_bytes() -> None:
    """Whatever comes after a good beginning costs no more than the connection, and nothing stays."""
    chance = random.Random(2)
    kinds = [0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 200]
    async with connected(idle_frames=100_000) as (limited, peer):
        for _ in range(300):
            _, writer = await asyncio.open_connection("127.0.0.1", limited.port)
            writer.write(OPEN)
            for _ in range(chance.randint(1, 30)):
                payload = chance.choice(
                    [
                        b"",
                        HEADERS,
                        chance.randbytes(chance.randrange(40)),
                        b"\0\0\1\0\0" + bytes(70_000),
                        b"\0\0\0\0\1x",
                    ]
                )
                number = chance.choice([0, 1, 1, 1, 3, 5, 7, 2, 1 << 30])
                writer.write(frame(chance.choice(kinds), chance.choice([0, 1, 4, 5, 8, 0xFF]), number, payload))
            writer.close()
        assert (await peer.ask("Say", b"on")).payload == b"on"
        async with asyncio.timeout(10):
            while len(limited.engine.connections) > 1:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)


async def test_connections_leave_no_garbage() -> None:
    """Nothing of a connection waits for the collector of cycles."""
    async with connected() as (_, peer):
        await peer.ask("Say", b"x")
    gc.collect()
    async with Limited() as limited:
        async with limited.peer() as peer:
            await peer.ask("Say", bytes(100_000))
            number = peer.begin("Talk")
            await peer.send(number, b"\0\0\0\0\0")
            await peer.ended(number)
        while limited.engine.connections:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)
        del peer
        gc.disable()
        try:
            assert not [found for found in gc.get_objects() if type(found).__name__ in ("UnaryRpc", "StreamRpc")]
        finally:
            gc.enable()


async def test_limits_of_settings() -> None:
    limits = limits_of(Settings(frontend_arena_nbytes=1 << 20, max_inflight=7, grpc_max_connection_age=1500))
    assert (limits.message_nbytes, limits.streams, limits.age_seconds) == (1 << 20, 7, 1.5)
    assert limits_of(Settings(frontend_arena_nbytes=1 << 40)).message_nbytes == (1 << 31) - 1
    assert limits.ping_interval(0) == 7200
