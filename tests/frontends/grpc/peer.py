"""An independent client of HTTP/2, the ``h2`` package, for what is odd and legal, and an engine with other limits."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from h2.settings import Settings as H2Settings

from conch.settings import Settings
from frontends.grpc.engines.http2 import Http2Engine
from frontends.grpc.http2.limits import limits_of
from frontends.listening import bind
from tests.frontends.grpc.echo import Echo

TIMEOUT_S = 10.0


def message(payload: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(payload).to_bytes(4, "big") + payload


class Answer:
    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.data = b""
        self.ended = False
        self.reset: int | None = None

    @property
    def payload(self) -> bytes:
        assert self.status == "0", self.trailers
        assert self.data[:1] == b"\0"
        assert int.from_bytes(self.data[1:5], "big") == len(self.data) - 5
        return self.data[5:]

    @property
    def status(self) -> str:
        """gRPC's."""
        return self.trailers.get("grpc-status", self.headers.get("grpc-status", ""))


class Peer:
    """Reads only while it waits for something. Windows open by themselves unless ``stingy``."""

    def __init__(self, port: int, **settings: int) -> None:
        self.connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        if settings:
            values = {SettingCodes[name]: value for name, value in settings.items()}
            self.connection.local_settings = H2Settings(client=True, initial_values=values)
        self.port = port
        self.stingy = False
        self.answers: dict[int, Answer] = defaultdict(Answer)
        #: code and text of the GOAWAY, if there was one
        self.gone: tuple[int, bytes] | None = None
        self.closed = False
        self.pings = 0
        self.answers_pings = True
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> "Peer":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.connection.initiate_connection()
        self.flush()
        await self.until(lambda: self.connection.max_outbound_frame_size > 16384)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def flush(self) -> None:
        self._writer.write(self.connection.data_to_send())

    def raw(self, data: bytes) -> None:
        self._writer.write(data)

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():
                data = await self._reader.read(65536)
                if not data:
                    self.closed = True
                    assert condition(), "the server has closed the connection"
                    return
                for event in self.connection.receive_data(data):
                    self._take(event)
                if self.answers_pings or not self.pings:
                    self.flush()

    async def until_closed(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self.until(lambda: self.closed)

    def _take(self, event: Event) -> None:
        match event:
            case ResponseReceived():
                self.answers[event.stream_id].headers = dict(event.headers)  # type: ignore[arg-type]
            case TrailersReceived():
                self.answers[event.stream_id].trailers = dict(event.headers)  # type: ignore[arg-type]
            case DataReceived():
                self.answers[event.stream_id].data += event.data
                if not self.stingy and event.flow_controlled_length:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamEnded():
                self.answers[event.stream_id].ended = True
            case StreamReset():
                self.answers[event.stream_id].reset = int(event.error_code)
            case ConnectionTerminated():
                self.gone = (int(event.error_code or 0), event.additional_data or b"")
            case PingReceived():
                self.pings += 1

    # ---------------------------------------------------------------------------------------------------------- calls

    def begin(self, name: str, *more: tuple[str, str], ends: bool = False, **changed: str) -> int:
        """Sends the headers of a call and returns the stream's number."""
        number = self.connection.get_next_available_stream_id()
        pseudo = {"method": "POST", "scheme": "http", "path": f"/test.Echo/{name}", "authority": "test"}
        headers = {"content-type": "application/grpc", "te": "trailers"}
        for key, value in changed.items():
            (pseudo if key in pseudo else headers)[key.replace("_", "-")] = value
        fields = [*((":" + key, value) for key, value in pseudo.items()), *headers.items(), *more]
        self.connection.send_headers(number, fields, end_stream=ends)
        self.flush()
        return number

    async def send(
        self, number: int, data: bytes, ends: bool = True, frame_nbytes: int = 16384, padding: int = 0
    ) -> None:
        """As windows allow, in frames of at most ``frame_nbytes``."""
        extra = {"pad_length": padding} if padding else {}
        overhead = padding + 1 if padding else 0
        position = 0
        while position < len(data) or (ends and not data):
            await self.until(lambda: self.connection.local_flow_control_window(number) > overhead)
            size = min(frame_nbytes, self.connection.local_flow_control_window(number) - overhead)
            part = data[position : position + size]
            position += size
            self.connection.send_data(number, part, end_stream=ends and position >= len(data), **extra)
            self.flush()
            await self._writer.drain()
            if not data:
                return

    async def ended(self, number: int) -> Answer:
        answer = self.answers[number]
        await self.until(lambda: answer.ended or answer.reset is not None)
        return answer

    async def ask(self, name: str, payload: bytes = b"", **sending: Any) -> Answer:
        number = self.begin(name)
        await self.send(number, message(payload), **sending)
        return await self.ended(number)


class Limited:
    """``async with Limited(streams=1) as limited``: an engine with other limits."""

    def __init__(self, application: Any = None, settings: Settings | None = None, **limits: Any) -> None:
        self.application = application or Echo()
        settings = settings or Settings()
        self.engine = Http2Engine(self.application, settings, msgspec.structs.replace(limits_of(settings), **limits))
        self.port = 0

    async def __aenter__(self) -> "Limited":
        listener = bind("127.0.0.1", 0, False)
        self.port = listener.getsockname()[1]
        await self.engine.listen(listener)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.engine.close(0)
        if kind is None:
            assert self.engine.budget.held_nbytes == 0

    def peer(self, **settings: int) -> Peer:
        return Peer(self.port, **settings)


@contextlib.asynccontextmanager
async def connected(**limits: Any) -> AsyncIterator[tuple[Limited, Peer]]:
    async with Limited(**limits) as limited, limited.peer() as peer:
        yield limited, peer
