"""One RPC on its stream: what both kinds have in common, and the unary kind."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from frontends.grpc.errors import INTERNAL, UNIMPLEMENTED
from frontends.grpc.exchange import Call, Failure, Payload, Pending, Reply
from frontends.grpc.http2.flow import Output
from frontends.grpc.http2.frames import CANCEL, MAX_31_BITS, NO_ERROR
from frontends.grpc.http2.headers import OK_TRAILERS, RequestHead, failure_trailers
from frontends.grpc.http2.messages import Message, MessageReader, Refused, compressed, inflated
from frontends.grpc.http2.sending import response_headers, trailers

if TYPE_CHECKING:
    from frontends.grpc.http2.connection import Connection

logger = logging.getLogger("conch.frontends.grpc.http2.rpc")

DEADLINE_EXCEEDED: Final = 4
BUG: Final = Failure(INTERNAL, "internal error")
_EXPIRED: Final = Failure(DEADLINE_EXCEEDED, "Deadline Exceeded")
CUT_SHORT: Final = Failure(INTERNAL, "the request ends in the middle of a message")
#: a thread inflates larger messages, and compresses larger replies
INFLATED_HERE_NBYTES: Final = 4096
COMPRESSED_HERE_NBYTES: Final = 65536


class Rpc:
    """From its headers until its status is sent or the client has gone. ``window`` and ``receive_window``: what may
    still be sent and received."""

    __slots__ = (
        "__weakref__",
        "closed",
        "connection",
        "deadline",
        "head",
        "headers_sent",
        "number",
        "output",
        "reader",
        "receive_window",
        "remote_ended",
        "since",
        "window",
    )

    def __init__(self, connection: "Connection", number: int, head: RequestHead, window: int) -> None:
        self.connection = connection
        self.number = number
        self.head = head
        self.window = window
        engine = connection.engine
        self.receive_window = engine.limits.window_nbytes
        self.deadline = None if head.timeout_s is None else time.monotonic() + head.timeout_s
        #: when the message that is being received began
        self.since = engine.now
        self.reader: MessageReader | None = None
        self.output: Output | None = None
        self.headers_sent = False
        self.remote_ended = False
        self.closed = False

    # -------------------------------------------------------------------------------------------------- what comes in

    def received(self, data: bytes | memoryview, start: int, stop: int) -> None:
        """A piece of the stream's data."""
        reader = self.reader
        if reader is None:
            engine = self.connection.engine
            reader = self.reader = MessageReader(engine.budget, engine.buffers, engine.limits.message_nbytes)
        try:
            while start < stop and not self.closed:
                if not reader.begun:
                    self.since = self.connection.engine.now
                start = reader.feed(data, start, stop)
                if reader.complete:
                    self.message(reader.take())
        except Refused as refused:
            self.fail(refused.failure)
        else:
            self.grant()

    def received_directly(self, nbytes: int) -> None:
        """``nbytes`` have been written to the reader's room."""
        reader = self.reader
        assert reader is not None
        try:
            reader.received(nbytes)
            if reader.complete:
                self.message(reader.take())
        except Refused as refused:
            self.fail(refused.failure)

    def whole(self, payload: bytes) -> None:
        """The only message, in one piece, and the end."""
        raise NotImplementedError

    def message(self, message: Message) -> None:
        raise NotImplementedError

    def end(self) -> None:
        """The client sends nothing more."""
        raise NotImplementedError

    def wanted(self) -> tuple[int, int]:
        """How much the client must be able to send at least, and how much it then gets."""
        missing = self.reader.missing if self.reader is not None else 0
        return missing, missing

    def grant(self) -> None:
        if self.remote_ended or self.closed:
            return
        least, full = self.wanted()
        if self.receive_window < least:
            self.connection.grant(self, min(full, MAX_31_BITS) - self.receive_window)

    def is_slow(self, now: float) -> bool:
        """The client could send a message, but hardly does."""
        if self.remote_ended or self.receive_window <= 0 or not self.in_message:
            return False
        limits = self.connection.engine.limits
        filled = self.reader.filled if self.reader is not None else 0
        return filled < (now - self.since - limits.message_grace_seconds) * limits.message_nbytes_per_second

    @property
    def in_message(self) -> bool:
        return self.reader is not None and self.reader.begun

    # ------------------------------------------------------------------------------------------------- what goes out

    def written(self) -> None:
        """All of ``output`` is on its way."""
        self.close()

    def fail(self, failure: Failure) -> None:
        """Ends the RPC with this status, whatever it is doing."""
        if self.closed:
            return
        sender, output = self.connection.sender, self.output
        self.stop()
        if output is not None and (output.nbytes or output.end is not None):
            self.close(CANCEL)  # in the middle of a message no status can follow
        else:
            sender.control(trailers(self.number, failure_trailers(failure, self.headers_sent)))
            self.close()

    def expire(self) -> None:
        self.fail(_EXPIRED)

    def cancel(self) -> None:
        """The client has gone, or has reset the stream."""
        if not self.closed:
            self.stop()
            self.close(None)

    def stop(self) -> None:
        """The application's work on it is in vain."""
        raise NotImplementedError

    def close(self, code: int | None = NO_ERROR) -> None:
        """``code``: what a client is told that still sends, None for a client that has gone."""
        self.closed = True
        if self.reader is not None:
            self.reader.drop()
            self.reader = None
        if code is not None and (code or not self.remote_ended):
            self.connection.sender.reset(self.number, code)
        self.output = None
        self.connection.closed(self)

    # ------------------------------------------------------------------------------------------------- compression

    @property
    def encoding(self) -> str:
        """What replies are compressed with."""
        wanted = self.connection.engine.encoding
        return wanted if wanted in self.head.accepted else ""

    def inflating(self, message: Message) -> "Message | asyncio.Future[Message]":
        """Raises ``Refused``."""
        engine = self.connection.engine
        arguments = (message, self.head.encoding, engine.budget, engine.limits.message_nbytes)
        if len(message.payload) <= INFLATED_HERE_NBYTES:
            return inflated(*arguments)
        return engine.loop.run_in_executor(engine.threads, inflated, *arguments)

    def compressing(self, reply: bytes, encoding: str) -> "bytes | asyncio.Future[bytes]":
        engine = self.connection.engine
        if len(reply) <= COMPRESSED_HERE_NBYTES:
            return compressed(reply, encoding)
        return engine.loop.run_in_executor(engine.threads, compressed, reply, encoding)


class UnaryRpc(Rpc):
    """One message, one reply."""

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
        output.add(reply, bool(encoding))
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
