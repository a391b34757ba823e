"""An engine that serves an application which does little, for what is the engine's own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from conch.settings import Settings
from frontends.grpc.engines import make_engine
from frontends.grpc.exchange import Call, Engine, Failure, Payload, Pending, Replies, Reply
from frontends.listening import bind

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
TIMEOUT_S = 20.0


class Held(Pending):
    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    def cancel(self) -> None:
        self.cancelled.set()

    def answer(self, reply: Reply) -> None:
        self.finish(lambda outcome: outcome, reply)


class Echo:
    """Implements ``frontends.grpc.exchange.Application``."""

    methods = ("/test.Echo/Say", "/test.Echo/Zeros", "/test.Echo/Fail", "/test.Echo/Crash", "/test.Echo/Hold")
    streams = ("/test.Echo/Talk",)

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.held: asyncio.Queue[Held] = asyncio.Queue()

    def answer(self, call: Call) -> Reply | Pending:
        payload = bytes(call.payload)
        self.calls.append(call._replace(payload=payload[:100]))
        match call.method.rpartition("/")[2]:
            case "Zeros":
                return bytes(int(payload))
            case "Fail":
                return Failure(3, payload.decode())
            case "Crash":
                raise ZeroDivisionError
            case "Hold":
                held = Held()
                self.held.put_nowait(held)
                return held
        return payload

    async def stream(self, call: Call, requests: AsyncIterator[Payload]) -> AsyncIterator[Replies]:
        async for request in requests:
            yield [bytes(request)]


class Serving:
    """``async with Serving("http2") as serving``: an engine and one client of it, both on the test's loop."""

    def __init__(self, engine: str, **settings: Any) -> None:
        self.settings = Settings(grpc_engine=engine, **settings)  # type: ignore[arg-type]
        self.application = Echo()
        self.engine: Engine
        self.port = 0
        self.channel: grpc.aio.Channel

    async def __aenter__(self) -> "Serving":
        self.engine = make_engine(self.application, self.settings)
        listener = bind("127.0.0.1", 0, False)
        self.port = listener.getsockname()[1]
        await self.engine.listen(listener)
        self.channel = self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.engine.close(0)

    def connect(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            f"127.0.0.1:{self.port}", options=[*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
        )

    def begin(self, name: str, payload: bytes = b"", **options: Any) -> Any:
        return self.channel.unary_unary(f"/test.Echo/{name}")(payload, **{"timeout": TIMEOUT_S, **options})

    async def ask(self, name: str, payload: bytes = b"", **options: Any) -> bytes | tuple[str, str]:
        """The response, or the code's name and the text."""
        try:
            answer: bytes = await self.begin(name, payload, **options)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return answer

    async def raw(self, data: bytes) -> bytes:
        """What the server says to ``data`` until it closes the connection, or says nothing more for a while."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        answer = b""
        try:
            writer.write(data)
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.2):
                    while received := await reader.read(65536):
                        answer += received
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return answer
