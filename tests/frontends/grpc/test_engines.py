"""What both engines do with HTTP/2 and gRPC, whatever the application."""

import asyncio
import random
import time

import grpc
import pytest

from conch.errors import InvalidArgument, Unavailable
from frontends.grpc.engines import make_engine
from frontends.listening import bind
from tests.frontends.grpc.echo import Echo, Serving
from tests.frontends.grpc.http2 import HEADERS, PREFACE, frame, headers, literal, message
from tests.frontends.grpc.support import EngineName

pytestmark = pytest.mark.asyncio

MIB = 1 << 20


@pytest.fixture
def reads_any_path(engine: EngineName) -> None:
    if engine == "aio":
        pytest.skip("grpc.aio's server ends when the name of a method is no UTF-8")


@pytest.mark.parametrize("nbytes", [0, 1, 16384, 65536, 16 * MIB])
async def test_payloads(engine: EngineName, nbytes: int) -> None:
    async with Serving(engine) as serving:
        payload = random.Random(0).randbytes(nbytes)
        assert await serving.ask("Say", payload) == payload


async def test_a_large_answer(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        assert await serving.ask("Zeros", str(64 * MIB).encode()) == bytes(64 * MIB)


async def test_too_large_a_request(engine: EngineName) -> None:
    async with Serving(engine, frontend_arena_nbytes=MIB) as serving:
        assert await serving.ask("Say", bytes(MIB)) == bytes(MIB)
        refused = await serving.ask("Say", bytes(MIB + 1))
        assert refused[0] == "RESOURCE_EXHAUSTED"
        assert "larger than max (1048577 vs. 1048576)" in str(refused[1])
        assert [len(call.payload) for call in serving.application.calls] == [100]


@pytest.mark.parametrize("nbytes", [1, 100_000])
async def test_requests_with_gzip(engine: EngineName, nbytes: int) -> None:
    async with Serving(engine) as serving:
        assert await serving.ask("Say", bytes(nbytes), compression=grpc.Compression.Gzip) == bytes(nbytes)


@pytest.mark.parametrize(
    "text", ["plain", "two\nlines", "Übermäßig 漢字 %41 100%", "\x00\x01", "x" * 6000], ids=["plain", *"lupx"]
)
async def test_texts_of_failures(engine: EngineName, text: str) -> None:
    async with Serving(engine) as serving:
        assert await serving.ask("Fail", text.encode()) == ("INVALID_ARGUMENT", text)


async def test_a_bug_in_the_application(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        assert await serving.ask("Crash") == ("INTERNAL", "internal error")
        assert await serving.ask("Say", b"on") == b"on"


async def test_unknown_methods(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        assert await serving.ask("Nothing") == ("UNIMPLEMENTED", "Method not found!")


async def test_metadata_reaches_the_application(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        metadata = (("a", "b"), ("a", "c"), ("some-bin", b"\x00\xff\xfe"), ("triton_grpc_error", "true"))
        await serving.ask("Say", metadata=metadata)
        (call,) = serving.application.calls
        assert set(metadata) <= set(call.metadata)
        assert [value for key, value in call.metadata if key == "a"] == ["b", "c"]


async def test_the_deadline_reaches_the_application(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        await serving.ask("Say", timeout=7)
        await serving.ask("Say", timeout=None)
        first, second = serving.application.calls
        assert first.deadline is not None
        assert 5 < first.deadline - time.monotonic() <= 7.1
        assert second.deadline is None


async def test_an_answer_that_comes_later(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        call = serving.begin("Hold")
        (await serving.application.held.get()).answer(b"later")
        assert await call == b"later"


async def test_a_client_that_cancels(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        call = serving.begin("Hold")
        held = await serving.application.held.get()
        call.cancel()
        await held.cancelled.wait()
        held.answer(b"nobody reads this")
        assert await serving.ask("Say", b"on") == b"on"


async def test_a_deadline_that_passes(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        assert (await serving.ask("Hold", timeout=0.1))[0] == "DEADLINE_EXCEEDED"
        await (await serving.application.held.get()).cancelled.wait()


async def test_a_client_that_vanishes(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
        writer.write(PREFACE + frame(1, 4, 1, headers("Hold")) + message(1, b""))
        held = await serving.application.held.get()
        writer.transport.abort()
        await held.cancelled.wait()


async def test_many_calls_on_one_connection(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        calls = [serving.begin("Hold") for _ in range(200)]
        held = [await serving.application.held.get() for _ in calls]
        for pending in reversed(held):
            pending.answer(b"done")
        assert await asyncio.gather(*calls) == [b"done"] * 200


async def test_many_connections(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        channels = [serving.connect() for _ in range(50)]
        answers = await asyncio.gather(*(channel.unary_unary("/test.Echo/Say")(b"x") for channel in channels))
        assert answers == [b"x"] * 50
        await asyncio.gather(*(channel.close() for channel in channels))


async def test_streams(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        parts = [bytes([i]) * 300_000 for i in range(20)]
        talk = serving.channel.stream_stream("/test.Echo/Talk")
        calls = [talk(iter(parts)) for _ in range(5)]
        assert [[part async for part in call] for call in calls] == [parts] * 5


async def test_replies_are_written_before_the_port_closes(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        call = serving.begin("Hold")
        (await serving.application.held.get()).answer(bytes(32 * MIB))
        await serving.engine.close(10)
        assert await call == bytes(32 * MIB)


async def test_closing_cuts_off_what_is_on_its_way(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        call = serving.begin("Hold")
        held = await serving.application.held.get()
        await serving.engine.close(0)
        await held.cancelled.wait()
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_an_engine_that_never_listened(engine: EngineName) -> None:
    serving = Serving(engine)
    await make_engine(serving.application, serving.settings).close(0)


async def test_a_port_in_use(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        with pytest.raises(Unavailable, match="already in use"):
            bind("127.0.0.1", serving.port, False)


@pytest.mark.parametrize("flag", ["grpc_use_ssl", "grpc_use_ssl_mutual"])
async def test_tls_without_a_certificate(engine: EngineName, flag: str) -> None:
    with pytest.raises(InvalidArgument, match="--grpc-"):
        make_engine(Echo(), Serving(engine, **{flag: True}).settings)


_MALFORMED = {
    "not HTTP/2": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a huge frame": PREFACE + b"\xff\xff\xff\x01\x04\0\0\0\1" + bytes(1000),
    "continuation of nothing": PREFACE + frame(9, 4, 1),
    "data of no stream": PREFACE + frame(0, 0, 1, b"x"),
    "even stream": PREFACE + frame(1, 5, 2, HEADERS),
    "unreadable headers": PREFACE + frame(1, 5, 1, b"\xff" * 6),
    "no path": PREFACE + frame(1, 5, 1, b"\x83\x86"),
    "no message": PREFACE + frame(1, 5, 1, HEADERS),
    "two messages": PREFACE + frame(1, 4, 1, HEADERS) + frame(0, 1, 1, b"\0\0\0\0\1x\0\0\0\0\1y"),
    "half a message": PREFACE + frame(1, 4, 1, HEADERS) + frame(0, 1, 1, b"\0\0\0\0\7x"),
    "4 GiB announced": PREFACE + frame(1, 4, 1, HEADERS) + frame(0, 0, 1, b"\0\xff\xff\xff\xffx"),
    "a flag that there is not": PREFACE + frame(1, 4, 1, HEADERS) + frame(0, 1, 1, b"\7\0\0\0\1x"),
    "no gzip": PREFACE + frame(1, 4, 1, HEADERS + literal(b"grpc-encoding", b"gzip")) + frame(0, 1, 1, b"\1\0\0\0\1x"),
    "no time": PREFACE + frame(1, 4, 1, HEADERS + literal(b"grpc-timeout", b"soon")) + message(1, b"x"),
    "no UTF-8": PREFACE + frame(1, 4, 1, HEADERS + literal(b"a", b"\xff\xfe")) + message(1, b"x"),
    "no base64": PREFACE + frame(1, 4, 1, HEADERS + literal(b"a-bin", b"***")) + message(1, b"x"),
}


@pytest.mark.parametrize("data", _MALFORMED.values(), ids=_MALFORMED)
async def test_malformed_connections_hurt_nobody_else(engine: EngineName, data: bytes) -> None:
    async with Serving(engine) as serving:
        await serving.raw(data)
        assert await serving.ask("Say", b"on") == b"on"


@pytest.mark.usefixtures("reads_any_path")
async def test_random_changes_hurt_nobody_else(engine: EngineName) -> None:
    good = PREFACE + b"".join(frame(1, 4, i, HEADERS) + message(i, b"x") for i in (1, 3))
    chance = random.Random(1)
    async with Serving(engine) as serving:
        for _ in range(200):
            data = bytearray(good)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(24, len(data))] = chance.randrange(256)
            _, writer = await asyncio.open_connection("127.0.0.1", serving.port)
            writer.write(data)
            writer.close()
        assert await serving.ask("Say", b"on") == b"on"


@pytest.mark.usefixtures("reads_any_path")
async def test_methods_that_are_no_text_hurt_nobody_else(engine: EngineName) -> None:
    async with Serving(engine) as serving:
        for path in (b"/\xf2est.Echo/Say", b"/test.Echo/S\xff", b"\xff", b"", b"/", b"/x\x00y"):
            call = PREFACE + frame(
                1, 4, 1, HEADERS.replace(literal(b":path", b"/test.Echo/Say"), literal(b":path", path))
            )
            await serving.raw(call + message(1, b"x"))
        assert await serving.ask("Say", b"on") == b"on"
        assert await serving.ask("Nothing") == ("UNIMPLEMENTED", "Method not found!")
        assert [part async for part in serving.channel.stream_stream("/test.Echo/Talk")(iter([b"on"]))] == [b"on"]
