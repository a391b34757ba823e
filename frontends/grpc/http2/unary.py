"""RPCs of one message and one reply."""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from frontends.grpc.errors import UNIMPLEMENTED
from frontends.grpc.exchange import Call, Failure, Payload, Pending, Reply
from frontends.grpc.http2.flow import Output
from frontends.grpc.http2.frames import NO_ERROR
from frontends.grpc.http2.headers import OK_TRAILERS, RequestHead
from frontends.grpc.http2.messages import Message, Refused
from frontends.grpc.http2.rpc import BUG, CUT_SHORT, Rpc
from frontends.grpc.http2.sending import response_headers, trailers

if TYPE_CHECKING:
    from frontends.grpc.http2.connection import Connection

logger = logging.getLogger("conch.frontends.grpc.http2.unary")


class UnaryRpc(Rpc):
    """Its request counts once the client has ended it."""

    __slots__ = ("_message", "_pending")

    def __init__(self, connection: "Connection", number: int, head: RequestHead, window: int) -> None:
        super().__init__(connection, number, head, window)
        self._message: Message | None = None
        self._pending: Pending | None = None

    @property
    def in_message(self) -> bool:
        return True

    def message(self, message: Message) -> None:
        if self._message is None:
            self._message = message
        else:
            self.connection.engine.budget.give_back(message.held_nbytes)
            self.fail(Failure(UNIMPLEMENTED, "the method takes one message, not several"))

    def end(self) -> None:
        self.remote_ended = True
        message = self._message
        if self.reader is not None and self.reader.begun:
            self.fail(CUT_SHORT)
        elif message is None:
            self.fail(Failure(UNIMPLEMENTED, "the method takes one message, not none"))
        else:
            self._message = None
            if message.compressed:
                self._inflate(message)
            else:
                self.answer(message.payload, message.held_nbytes)

    def whole(self, payload: bytes) -> None:
        self.remote_ended = True
        self.answer(payload, 0)

    def answer(self, payload: Payload, held_nbytes: int) -> None:
        """The whole request is there."""
        head, engine = self.head, self.connection.engine
        reply: Reply | Pending
        try:
            reply = engine.application.answer(Call(head.method, payload, head.metadata, self.deadline))
        except Exception:
            logger.exception("a request failed")
            reply = BUG
        if held_nbytes:
            engine.budget.give_back(held_nbytes)
        if isinstance(reply, Pending):
            self._pending = reply
            reply.on_reply = self.reply
            self.connection.waits(self)
        else:
            self.reply(reply)

    def reply(self, reply: Reply) -> None:
        if self.closed:
            return
        self._pending = None
        if isinstance(reply, Failure):
            self.fail(reply)
            return
        encoding = self.encoding if self.connection.engine.encoding else ""
        if encoding:
            smaller = self.compressing(reply, encoding)
            if isinstance(smaller, bytes):
                self._send(smaller, encoding)
            else:
                smaller.add_done_callback(lambda future: self._done(future, lambda done: self._send(done, encoding)))
        elif self.connection.sender.reply_at_once(self.number, self.window, reply):
            self.close()
        else:
            self._send(reply, "")

    def _send(self, reply: bytes, encoding: str) -> None:
        output = self.output = Output()
        output.head = response_headers(self.number, encoding)
        self.headers_sent = True
        output.add([reply], bool(encoding))
        output.end = trailers(self.number, OK_TRAILERS)
        self.connection.sender.send(self, self.connection.engine.now)

    def stop(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()

    def close(self, code: int | None = NO_ERROR) -> None:
        if self._message is not None:
            self.connection.engine.budget.give_back(self._message.held_nbytes)
            self._message = None
        super().close(code)

    def _inflate(self, message: Message) -> None:
        try:
            found = self.inflating(message)
        except Refused as refused:
            self.fail(refused.failure)
            return
        if isinstance(found, Message):
            self.answer(found.payload, found.held_nbytes)
        else:
            found.add_done_callback(lambda future: self._done(future, self._inflated))

    def _inflated(self, message: Message) -> None:
        if self.closed:
            self.connection.engine.budget.give_back(message.held_nbytes)
        else:
            self.answer(message.payload, message.held_nbytes)

    def _done(self, future: "asyncio.Future[Any]", then: Callable[[Any], None]) -> None:
        """A thread has done its part. Nobody cancels it: what a message holds would be lost."""
        error = future.exception()
        if error is None:
            if not self.closed or then == self._inflated:
                then(future.result())
        elif isinstance(error, Refused):
            self.fail(error.failure)
        else:
            logger.error("a message could not be compressed or inflated", exc_info=error)
            self.fail(BUG)
