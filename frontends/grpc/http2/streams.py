"""RPCs with a stream in both directions."""

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from frontends.grpc.exchange import Call, Failure, Payload
from frontends.grpc.http2.flow import Output
from frontends.grpc.http2.frames import NO_ERROR
from frontends.grpc.http2.headers import OK_TRAILERS, RequestHead, failure_trailers
from frontends.grpc.http2.messages import Message, Refused
from frontends.grpc.http2.rpc import BUG, CUT_SHORT, PADDING_NBYTES, Rpc
from frontends.grpc.http2.sending import response_headers, trailers

if TYPE_CHECKING:
    from frontends.grpc.http2.connection import Connection

logger = logging.getLogger("conch.frontends.grpc.http2.streams")


class StreamRpc(Rpc):
    """Is also the iterator of messages that the application reads. While it does not, the client gets no window."""

    __slots__ = ("_inbox", "_more", "_task", "_taken")

    def __init__(self, connection: "Connection", number: int, head: RequestHead, window: int) -> None:
        super().__init__(connection, number, head, window)
        self._inbox: deque[Message] = deque()
        #: who waits for the next message, and for room to write
        self._more: asyncio.Future[None] | None = None
        self._taken: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        engine = self.connection.engine
        self._task = engine.loop.create_task(self._run())
        engine.tasks.add(self._task)
        self._task.add_done_callback(engine.tasks.discard)
        self.connection.waits(self)

    # -------------------------------------------------------------------------------------------------- what comes in

    def message(self, message: Message) -> None:
        self._inbox.append(message)
        _wake(self._more)

    def whole(self, payload: bytes) -> None:
        self.remote_ended = True
        self.message(Message(payload, False, 0))

    def end(self) -> None:
        self.remote_ended = True
        if self.in_message:
            self.fail(CUT_SHORT)
        else:
            _wake(self._more)

    def wanted(self) -> tuple[int, int]:
        if self._inbox:
            return 0, 0
        missing = self.reader.missing if self.reader is not None else 0
        window = self.connection.engine.limits.window_nbytes
        return max(missing, window // 2) + PADDING_NBYTES, max(missing, window) + PADDING_NBYTES

    def __aiter__(self) -> "StreamRpc":
        return self

    async def __anext__(self) -> Payload:
        while not self._inbox:
            if self.remote_ended or self.closed:
                raise StopAsyncIteration
            self._more = self.connection.engine.loop.create_future()
            try:
                await self._more
            finally:
                self._more = None
        message = self._inbox.popleft()
        if not self._inbox and self.in_message:
            self.since = self.connection.engine.now
        self.grant()
        if message.compressed:
            try:
                message = await self._inflated(message)
            except Refused as refused:
                self.fail(refused.failure)
                raise StopAsyncIteration from None
        self.connection.engine.budget.give_back(message.held_nbytes)
        return message.payload

    async def _inflated(self, message: Message) -> Message:
        found = self.inflating(message)
        if isinstance(found, Message):
            return found
        try:
            return await asyncio.shield(found)
        except Refused:
            del found  # the failure's traceback leads here: they would hold each other, and with them what was inflated
            raise
        except asyncio.CancelledError:
            budget = self.connection.engine.budget
            found.add_done_callback(
                lambda done: None if done.exception() else budget.give_back(done.result().held_nbytes)
            )
            raise

    # --------------------------------------------------------------------------------------------------- what goes out

    async def _run(self) -> None:
        head, failure = self.head, None
        replies = self.connection.engine.application.stream(Call(head.method, b"", head.metadata, self.deadline), self)
        try:
            async for messages in replies:
                if self.closed:
                    break
                if isinstance(messages, Failure):
                    failure = messages
                    break
                await self._write(messages)
        except Exception:
            logger.exception("a stream failed")
            failure = BUG
        finally:
            self._task = None
            await replies.aclose()  # type: ignore[attr-defined]
        if self.closed:
            return
        if failure is not None:
            self.fail(failure)
            return
        output = self.output = self.output or Output()
        if self.headers_sent:
            output.end = trailers(self.number, OK_TRAILERS)
        else:
            output.end = trailers(self.number, failure_trailers(Failure(0, ""), False))
        self.connection.sender.send(self, self.connection.engine.now)

    async def _write(self, messages: list[bytes]) -> None:
        """Returns when all of them are on their way: no others wait for the client."""
        encoding = self.encoding if self.connection.engine.encoding else ""
        if encoding:
            messages = [await self._compressed(message, encoding) for message in messages]
        output = self.output = self.output or Output()
        if not self.headers_sent:
            self.headers_sent = True
            output.head = response_headers(self.number, encoding)
        output.add(messages, bool(encoding))
        self.connection.sender.send(self, self.connection.engine.now)
        while output.nbytes and not self.closed:
            self._taken = self.connection.engine.loop.create_future()
            try:
                await self._taken
            finally:
                self._taken = None

    async def _compressed(self, message: bytes, encoding: str) -> bytes:
        smaller = self.compressing(message, encoding)
        return smaller if isinstance(smaller, bytes) else await smaller

    def written(self) -> None:
        if self.output is not None and self.output.end is not None:
            self.close()
        else:
            _wake(self._taken)

    def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def close(self, code: int | None = NO_ERROR) -> None:
        for message in self._inbox:
            self.connection.engine.budget.give_back(message.held_nbytes)
        self._inbox.clear()
        super().close(code)
        _wake(self._more)
        _wake(self._taken)


def _wake(future: "asyncio.Future[None] | None") -> None:
    if future is not None and not future.done():
        future.set_result(None)
