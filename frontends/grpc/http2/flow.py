"""Flow control of what is sent, and how often clients may do what costs more than it brings."""

from collections import deque
from collections.abc import Iterable
from typing import Final

from frontends.grpc.http2.frames import (
    DATA,
    FLOW_CONTROL_ERROR,
    MAX_31_BITS,
    ConnectionFault,
    frame_header,
)

Buffer = bytes | memoryview


def widened(window: int, increment: int) -> int:
    """A window may be negative after a change of settings, but never too large. Raises ``ConnectionFault``."""
    window += increment
    if window > MAX_31_BITS:
        raise ConnectionFault(FLOW_CONTROL_ERROR, "a window becomes too large")
    return window


class Output:
    """What one stream still has to send: frames of its own, then data as windows allow, then the end."""

    __slots__ = ("_pieces", "end", "head", "nbytes")

    def __init__(self) -> None:
        #: whole frames, sent in front and not subject to windows
        self.head = b""
        self._pieces: deque[memoryview] = deque()
        #: data not sent yet
        self.nbytes = 0
        #: whole frames that end the stream, None while there may be more data
        self.end: bytes | None = None

    def add(self, messages: Iterable[Buffer], compressed: bool) -> None:
        """gRPC messages. Small ones become one piece."""
        flag = compressed.to_bytes()
        joined: list[Buffer] = []
        for message in messages:
            nbytes = len(message)
            self.nbytes += nbytes + 5
            joined += (flag, nbytes.to_bytes(4, "big"))
            if nbytes <= _JOINED_NBYTES:
                joined.append(message)
            else:
                self._pieces += (memoryview(b"".join(joined)), memoryview(message))
                joined.clear()
        if joined:
            self._pieces.append(memoryview(b"".join(joined)))

    def take(self, number: int, nbytes: int, max_frame_nbytes: int) -> list[Buffer]:
        """The next ``nbytes`` of data (at most what there is) as frames of stream ``number``, without a copy."""
        buffers: list[Buffer] = []
        pending = self.head
        self.head = b""
        pieces = self._pieces
        self.nbytes -= nbytes
        while nbytes:
            size = min(nbytes, max_frame_nbytes)
            nbytes -= size
            pending += frame_header(size, DATA, 0, number)
            while size:
                piece = pieces[0]
                if len(piece) > size:
                    pieces[0] = piece[size:]
                    piece = piece[:size]
                else:
                    pieces.popleft()
                size -= len(piece)
                if len(piece) <= _JOINED_NBYTES:
                    pending += piece
                else:
                    buffers += (pending, piece) if pending else (piece,)
                    pending = b""
        if not self.nbytes and self.end is not None:
            pending += self.end
        if pending:
            buffers.append(pending)
        return buffers


#: smaller pieces are copied: each buffer of a write costs more than that
_JOINED_NBYTES: Final = 2048


class Allowance:
    """So many at once, and so many per second on average."""

    __slots__ = ("_burst", "_left", "_per_second")

    def __init__(self, burst: int, per_second: float) -> None:
        self._burst = burst
        self._per_second = per_second
        self._left = float(burst)

    def take(self) -> bool:
        """False when it is used up."""
        self._left -= 1
        return self._left >= 0

    def refill(self, elapsed_s: float) -> None:
        self._left = min(self._left + elapsed_s * self._per_second, self._burst)
