"""What few clients do and HTTP/2 allows."""

import asyncio
import gzip
import random
import zlib
from collections.abc import AsyncIterator, Callable

import pytest

from frontends.grpc.exchange import Call, Payload, Replies
from tests.frontends.grpc.echo import Echo
from tests.frontends.grpc.http2 import HEADERS, PREFACE, frame, headers
from tests.frontends.grpc.http2 import message as data_frame
from tests.frontends.grpc.peer import Limited, connected, message

pytestmark = pytest.mark.asyncio

MIB = 1 << 20
PAYLOAD = random.Random(0).randbytes(3 * MIB)


async def data_nbytes(reader: asyncio.StreamReader, least: int) -> int:
    """Of the frames that come, until there are ``least``."""
    nbytes = 0
    async with asyncio.timeout(10):
        while nbytes < least:
            header = await reader.readexactly(9)
            length = int.from_bytes(header[:3], "big")
            await reader.readexactly(length)
            nbytes += length if header[3] == 0 else 0
    return nbytes


@pytest.mark.parametrize("window", [1, 5, 7, 1000])
async def test_small_windows_of_the_client(window: int) -> None:
    async with Limited() as limited, limited.peer(INITIAL_WINDOW_SIZE=window) as peer:
        expected = PAYLOAD[: 300 * window]
        assert (await peer.ask("Say", expected)).payload == expected


@pytest.mark.parametrize("nbytes", [1, 3, 100])
async def test_small_frames(nbytes: int) -> None:
    async with connected() as (_, peer):
        assert (await peer.ask("Say", PAYLOAD[:1000], frame_nbytes=nbytes)).payload == PAYLOAD[:1000]


@pytest.mark.parametrize("frame_nbytes", [16384, 200_000, MIB])
async def test_large_messages(frame_nbytes: int) -> None:
    async with connected() as (_, peer):
        for _ in range(2):  # the second one finds memory that has been used
            assert (await peer.ask("Say", PAYLOAD, frame_nbytes=frame_nbytes)).payload == PAYLOAD


@pytest.mark.parametrize(("nbytes", "frame_nbytes"), [(10, 16384), (1000, 7), (3 * MIB, 16000)])
async def test_padding(nbytes: int, frame_nbytes: int) -> None:
    async with connected() as (_, peer):
        for padding in (1, 255):
            answer = await peer.ask("Say", PAYLOAD[:nbytes], frame_nbytes=frame_nbytes, padding=padding)
            assert answer.payload == PAYLOAD[:nbytes]


@pytest.mark.parametrize("step", [1, 2, 9, 10, 14, 15, 100])
async def test_bytes_that_come_in_pieces(step: int) -> None:
    """Wherever the pieces begin, with padding, priority, continuations and frames that nobody knows."""
    padded = b"\x03\0\0\0\0\x05" + PAYLOAD[:5] + bytes(3)
    request = (
        PREFACE
        + frame(1, 0x28, 1, b"\x02" + bytes(5) + HEADERS[:10] + bytes(2))
        + frame(9, 0, 1, HEADERS[10:20])
        + frame(9, 0, 1)
        + frame(9, 4, 1, HEADERS[20:])
        + frame(2, 0, 1, bytes(5))
        + frame(77, 0xFF, 1, PAYLOAD[:33])
        + frame(0, 0x9, 1, padded)
    )
    async with connected() as (limited, peer):
        reader, writer = await asyncio.open_connection("127.0.0.1", limited.port)
        for i in range(0, len(request), step):
            writer.write(request[i : i + step])
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            received = b""
            while PAYLOAD[:5] not in received:
                received += await reader.read(1000)
        writer.close()
        await writer.wait_closed()
        assert (await peer.ask("Say", b"on")).payload == b"on"


async def test_interleaved_streams() -> None:
    async with connected() as (_, peer):
        payloads = {peer.begin("Say"): PAYLOAD[i : i + 150_000] for i in range(8)}
        for position in range(0, 150_005, 5000):
            for number, payload in payloads.items():
                part = message(payload)[position : position + 5000]
                await peer.send(number, part, ends=position + 5000 >= 150_005)
        for number, payload in payloads.items():
            assert (await peer.ended(number)).payload == payload


async def test_settings_that_change_during_a_reply() -> None:
    """The window becomes negative, and a new setting or an update makes up for it."""
    async with Limited() as limited:
        reader, writer = await asyncio.open_connection("127.0.0.1", limited.port)
        writer.write(PREFACE + frame(4, 0, 0, b"\0\4" + (1000).to_bytes(4, "big")))
        writer.write(frame(1, 4, 1, headers("Zeros")) + data_frame(1, b"5000"))
        assert await data_nbytes(reader, 1000) == 1000
        for window in (10, 3000, 100):
            writer.write(frame(4, 0, 0, b"\0\4" + window.to_bytes(4, "big")))
        assert await data_nbytes(reader, 2000) == 2000
        writer.write(frame(8, 0, 1, (2901).to_bytes(4, "big")))
        assert await data_nbytes(reader, 1) == 1
        writer.write(frame(4, 0, 0, b"\0\4" + (6000).to_bytes(4, "big")))
        assert await data_nbytes(reader, 2004) == 2004
        writer.close()
        await writer.wait_closed()


async def test_a_small_window_of_the_connection_is_shared() -> None:
    async with connected() as (_, peer):
        peer.stingy = True
        numbers = [peer.begin("Zeros") for _ in range(4)]
        for number in numbers:
            await peer.send(number, message(b"40000"))
        await peer.until(lambda: sum(len(answer.data) for answer in peer.answers.values()) == 65535)
        peer.connection.increment_flow_control_window(200_000)
        peer.flush()
        for number in numbers:
            assert (await peer.ended(number)).payload == bytes(40_000)


async def test_a_reset_during_a_reply() -> None:
    async with connected() as (_, peer):
        peer.stingy = True
        number = peer.begin("Zeros")
        await peer.send(number, message(b"1000000"))
        await peer.until(lambda: len(peer.answers[number].data) == 65535)
        peer.connection.reset_stream(number, 8)
        peer.connection.increment_flow_control_window(65535)
        peer.stingy = False
        assert (await peer.ask("Say", b"on")).payload == b"on"


async def test_no_window_is_granted_for_what_is_too_large() -> None:
    async with connected(message_nbytes=MIB) as (limited, peer):
        number = peer.begin("Say")
        await peer.send(number, (MIB + 1).to_bytes(5, "big"), ends=False)
        answer = await peer.ended(number)
        assert answer.status == "8"
        assert answer.trailers == {}
        assert f"larger than max ({MIB + 1} vs. {MIB})" in answer.headers["grpc-message"]
        assert limited.application.calls == []
        assert (await peer.ask("Say", PAYLOAD[:MIB])).payload == PAYLOAD[:MIB]


async def test_the_window_is_hardly_more_than_the_message() -> None:
    async with connected() as (limited, peer):
        number = peer.begin("Say")
        await peer.send(number, message(PAYLOAD)[:5], ends=False)
        stream = peer.connection._get_stream_by_id(number)
        await peer.until(lambda: stream.outbound_flow_control_window > limited.engine.limits.window_nbytes)
        assert len(PAYLOAD) < stream.outbound_flow_control_window < len(PAYLOAD) + 10_000
        peer.connection.reset_stream(number)
        peer.flush()
        assert (await peer.ask("Say", b"on")).payload == b"on"


async def test_what_is_received_is_limited_over_all_streams() -> None:
    async with connected(buffered_nbytes=MIB) as (limited, peer):
        numbers = [peer.begin("Say") for _ in range(3)]
        for number, nbytes in zip(numbers, (MIB // 2, MIB // 2, 10_000), strict=True):
            await peer.send(number, message(PAYLOAD[:MIB])[:nbytes], ends=False)
        assert (await peer.ended(numbers[2])).status == "8"
        for number in numbers[:2]:
            peer.connection.reset_stream(number)
        peer.flush()
        assert (await peer.ask("Say", PAYLOAD[:1000])).payload == PAYLOAD[:1000]
        assert limited.engine.budget.held_nbytes == 0


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", COMPRESSORS)
@pytest.mark.parametrize("nbytes", [0, 1000, 3 * MIB])
async def test_compressed_messages(encoding: str, nbytes: int) -> None:
    async with connected() as (_, peer):
        number = peer.begin("Say", grpc_encoding=encoding)
        await peer.send(number, message(COMPRESSORS[encoding](PAYLOAD[:nbytes]), 1))
        assert (await peer.ended(number)).payload == PAYLOAD[:nbytes]


@pytest.mark.parametrize("encoding", COMPRESSORS)
async def test_bombs(encoding: str) -> None:
    async with connected(message_nbytes=MIB) as (limited, peer):
        for name in ("Say", "Talk"):
            number = peer.begin(name, grpc_encoding=encoding)
            await peer.send(number, message(COMPRESSORS[encoding](bytes(100 * MIB)), 1))
            answer = await peer.ended(number)
            assert answer.status == "8"
            assert f" vs. {MIB})" in answer.headers["grpc-message"]
        assert limited.application.calls == []


@pytest.mark.parametrize(
    ("encoding", "flag", "data", "status"),
    [
        ("gzip", 1, b"nonsense", "13"),
        ("gzip", 1, gzip.compress(PAYLOAD)[:-100], "13"),
        ("gzip", 1, b"", "13"),
        ("identity", 1, b"x", "13"),
        ("snappy", 0, b"x", "12"),
    ],
)
async def test_messages_that_cannot_be_inflated(encoding: str, flag: int, data: bytes, status: str) -> None:
    async with connected() as (_, peer):
        number = peer.begin("Say", grpc_encoding=encoding)
        if encoding != "snappy":
            await peer.send(number, message(data, flag))
        answer = await peer.ended(number)
        assert answer.status == status
        assert answer.headers["grpc-accept-encoding"] == "identity, deflate, gzip"


async def test_statuses_of_http() -> None:
    async with connected() as (_, peer):
        for changed, status in (({"method": "GET"}, "405"), ({"content-type": "text/html"}, "415")):
            answer = await peer.ended(peer.begin("Say", ends=True, **changed))
            assert answer.headers[":status"] == status


async def test_a_deadline_that_only_the_server_watches() -> None:
    async with connected() as (limited, peer):
        for name in ("Hold", "Talk"):
            number = peer.begin(name, grpc_timeout="60m")
            await peer.send(number, message(b""), ends=name == "Hold")
            answer = await peer.ended(number)
            assert (answer.status, answer.trailers or answer.headers)[0] == "4"
        await limited.application.held.get_nowait().cancelled.wait()
        assert (await peer.ended(peer.begin("Say", grpc_timeout="60m"))).status == "4"
        answer = await peer.ended(peer.begin("Say", grpc_timeout="soon"))
        assert answer.status == "13"


async def test_metadata() -> None:
    async with connected() as (limited, peer):
        number = peer.begin("Say", ("a", "1"), ("b-bin", "AP/+,YQ"), ("a", "2"), ("c", "ä"))
        await peer.send(number, message(b"x"))
        assert (await peer.ended(number)).payload == b"x"
        expected = (("a", "1"), ("b-bin", b"\0\xff\xfe"), ("b-bin", b"a"), ("a", "2"), ("c", "ä"))
        assert limited.application.calls[0].metadata == expected
        assert (await peer.ended(peer.begin("Say", ("d-bin", "***")))).status == "13"
        assert (await peer.ended(peer.begin("Say", ("e", "x" * 20_000)))).status == "8"
        assert (await peer.ask("Say", b"on")).payload == b"on"


class Reluctant(Echo):
    """Reads a stream when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Semaphore(0)

    async def stream(self, call: Call, requests: AsyncIterator[Payload]) -> AsyncIterator[Replies]:
        await self.go.acquire()
        async for request in requests:
            yield [bytes(request)]
            await self.go.acquire()


async def test_a_stream_that_is_not_read_gets_no_window() -> None:
    application = Reluctant()
    async with Limited(application, window_nbytes=100_000) as limited, limited.peer() as peer:
        number = peer.begin("Talk")
        parts = [message(PAYLOAD[:60_000])] * 4
        await peer.send(number, b"".join(parts)[:100_000], ends=False)
        assert (await peer.ask("Say", b"on")).payload == b"on"  # whatever comes, has come
        assert peer.connection.local_flow_control_window(number) == 0
        application.go.release()
        await peer.until(lambda: peer.connection.local_flow_control_window(number) > 0)
        for _ in parts:
            application.go.release()
        await peer.send(number, b"".join(parts)[100_000:])
        assert (await peer.ended(number)).data == b"".join(parts)


async def test_many_small_messages_on_a_stream() -> None:
    async with connected() as (_, peer):
        number = peer.begin("Talk")
        data = b"".join(message(PAYLOAD[i : i + i % 300]) for i in range(2000))
        await peer.send(number, data, frame_nbytes=1000)
        assert (await peer.ended(number)).data == data


async def test_trailers_of_a_request() -> None:
    async with connected() as (_, peer):
        number = peer.begin("Say")
        await peer.send(number, message(b"x"), ends=False)
        peer.connection.send_headers(number, [("some", "trailer")], end_stream=True)
        peer.flush()
        assert (await peer.ended(number)).payload == b"x"


async def test_more_streams_than_allowed() -> None:
    async with connected(streams=2) as (limited, peer):
        numbers = [peer.begin("Hold") for _ in range(2)]
        peer.raw(frame(1, 4, 5, HEADERS) + data_frame(5, b"x"))
        for number in numbers:
            await peer.send(number, message(b""))
            (await limited.application.held.get()).answer(b"done")
            assert (await peer.ended(number)).payload == b"done"
