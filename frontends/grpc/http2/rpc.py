"""One RPC on its stream: what both kinds have in common."""

import asyncio
import time
from typing import TYPE_CHECKING, Final

from frontends.grpc.errors import INTERNAL
from frontends.grpc.exchange import Failure
from frontends.grpc.http2.flow import Output
from frontends.grpc.http2.frames import CANCEL, MAX_31_BITS, NO_ERROR
from frontends.grpc.http2.headers import RequestHead, failure_trailers
from frontends.grpc.http2.messages import Message, MessageReader, Refused, compressed, inflated
from frontends.grpc.http2.sending import trailers

if TYPE_CHECKING:
    from frontends.grpc.http2.connection import Connection

DEADLINE_EXCEEDED: Final = 4
BUG: Final = Failure(INTERNAL, "internal error")
_EXPIRED: Final = Failure(DEADLINE_EXCEEDED, "Deadline Exceeded")
CUT_SHORT: Final = Failure(INTERNAL, "the request ends in the middle of a message")
#: of one frame at most, its length included; and room for some
PADDING_NBYTES: Final = 256
_PADDINGS_NBYTES: Final = 4096
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
        return (missing + PADDING_NBYTES, missing + _PADDINGS_NBYTES) if missing else (0, 0)

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
