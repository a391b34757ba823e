"""gRPC's messages: put together from what comes in whatever pieces, inflated and compressed, within limits."""

import zlib
from typing import Final, NamedTuple

from frontends.grpc.errors import INTERNAL, RESOURCE_EXHAUSTED
from frontends.grpc.exchange import Failure, Payload
from frontends.grpc.http2.limits import Budget
from frontends.http.buffers import BodyBuffers

#: messages of more than this are received straight into memory of their own
DIRECT_NBYTES: Final = 65536
#: flag and length
PREFIX_NBYTES: Final = 5
#: window bits
_FORMATS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
#: tensors hardly get smaller with a higher level, only slower
_LEVEL: Final = 1
_INFLATED_AT_ONCE_NBYTES: Final = 1 << 20

_BUSY: Final = Failure(RESOURCE_EXHAUSTED, "too many request bytes are being received; try again")


class Refused(Exception):
    """A message that is not taken; the call ends."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Message(NamedTuple):
    payload: Payload
    compressed: bool
    #: of the budget; whoever has the message gives it back
    held_nbytes: int


def too_large(nbytes: int, limit: int) -> Refused:
    return Refused(Failure(RESOURCE_EXHAUSTED, f"SERVER: Received message larger than max ({nbytes} vs. {limit})"))


class MessageReader:
    """Of one stream. ``feed`` until ``complete``, then ``take``."""

    __slots__ = ("_budget", "_buffer", "_buffers", "_compressed", "_max_nbytes", "_prefix", "filled", "missing")

    def __init__(self, budget: Budget, buffers: BodyBuffers, max_nbytes: int) -> None:
        self._budget = budget
        self._buffers = buffers
        self._max_nbytes = max_nbytes
        self._prefix = b""
        self._buffer: memoryview | bytearray | None = None
        self._compressed = False
        #: bytes of the message received so far, and still to come once its length is known
        self.filled = 0
        self.missing = 0

    @property
    def complete(self) -> bool:
        return self._buffer is not None and not self.missing

    @property
    def begun(self) -> bool:
        return self._buffer is not None or bool(self._prefix)

    def feed(self, data: bytes | memoryview, start: int, stop: int) -> int:
        """Takes ``data[start:stop]`` up to the end of the message and returns where that is. Raises ``Refused``."""
        if self._buffer is None:
            taken = min(PREFIX_NBYTES - len(self._prefix), stop - start)
            self._prefix += bytes(data[start : start + taken])
            start += taken
            if len(self._prefix) < PREFIX_NBYTES:
                return start
            self._begin()
        assert self._buffer is not None
        taken = min(self.missing, stop - start)
        if taken:
            filled = self.filled
            self._buffer[filled : filled + taken] = data[start : start + taken]
            self.received(taken)
        return start + taken

    def room(self, nbytes: int) -> memoryview | None:
        """Where the stream's next bytes, at most ``nbytes``, can be written to if the message is large. ``received``
        follows."""
        if not self.missing or not isinstance(self._buffer, memoryview):
            return None
        return self._buffer[self.filled : self.filled + min(nbytes, self.missing)]

    def received(self, nbytes: int) -> None:
        """Raises ``Refused``."""
        if not self._budget.take(nbytes):
            raise Refused(_BUSY)
        self.filled += nbytes
        self.missing -= nbytes

    def take(self) -> Message:
        """The complete message; the next one can follow."""
        buffer = self._buffer
        assert buffer is not None
        payload = buffer if isinstance(buffer, memoryview) else bytes(buffer)
        message = Message(payload, self._compressed, self.filled)
        self._buffer = None
        self._prefix = b""
        self.filled = 0
        return message

    def drop(self) -> None:
        """Forgets what there is of a message."""
        self._budget.give_back(self.filled)
        self._buffer = None
        self._prefix = b""
        self.filled = self.missing = 0

    def _begin(self) -> None:
        flag, nbytes = self._prefix[0], int.from_bytes(self._prefix[1:], "big")
        if flag > 1:
            raise Refused(Failure(INTERNAL, f"a message begins with the unknown flag {flag}"))
        if nbytes > self._max_nbytes:
            raise too_large(nbytes, self._max_nbytes)
        self._compressed = bool(flag)
        try:
            self._buffer = self._buffers.take(nbytes) if nbytes > DIRECT_NBYTES else bytearray(nbytes)
        except MemoryError:
            raise Refused(_BUSY) from None
        self.missing = nbytes


def inflated(message: Message, encoding: str, budget: Budget, max_nbytes: int) -> Message:
    """``message`` without its compression; what it held is given back. ``encoding``: what the call's headers said.
    Runs in threads as well. Raises ``Refused``."""
    held = 0
    try:
        if not encoding:
            raise Refused(Failure(INTERNAL, "a message is compressed, but grpc-encoding does not say how"))
        decoder = zlib.decompressobj(_FORMATS[encoding])
        parts: list[bytes] = []
        rest: Payload = message.payload
        while not decoder.eof:
            try:
                part = decoder.decompress(rest, _INFLATED_AT_ONCE_NBYTES)
            except zlib.error:
                raise Refused(Failure(INTERNAL, f"a message is not valid {encoding} data")) from None
            rest = decoder.unconsumed_tail
            if not part and not rest and not decoder.eof:
                raise Refused(Failure(INTERNAL, f"a message is not complete {encoding} data"))
            if held + len(part) > max_nbytes:
                raise too_large(held + len(part), max_nbytes)
            if not budget.take(len(part)):
                raise Refused(_BUSY)
            held += len(part)
            parts.append(part)
        payload = parts[0] if len(parts) == 1 else b"".join(parts)
    except BaseException:
        budget.give_back(held)
        raise
    finally:
        budget.give_back(message.held_nbytes)
    return Message(payload, False, held)


def compressed(payload: bytes, encoding: str) -> bytes:
    encoder = zlib.compressobj(_LEVEL, wbits=_FORMATS[encoding])
    return encoder.compress(payload) + encoder.flush()
