"""The sending half of a connection: replies within the client's windows, and no more than the client reads."""

import asyncio
import struct
from typing import Final, Protocol

from frontends.grpc.http2.flow import Buffer, Output, widened
from frontends.grpc.http2.frames import (
    DATA,
    DEFAULT_FRAME_NBYTES,
    DEFAULT_WINDOW_NBYTES,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    frame,
    rst_stream,
)
from frontends.grpc.http2.headers import OK_TRAILERS, RESPONSES
from frontends.grpc.http2.limits import Limits

#: replies up to this size go out in one piece
_SMALL_NBYTES: Final = DEFAULT_FRAME_NBYTES
#: of one stream, before others get their turn
_TURN_NBYTES: Final = 4 << 20

_HEADERS: Final = RESPONSES[""]
#: frames of the headers, and of the data as far as the message itself: flag 0 and its length
_pack_head: Final = struct.Struct(f">HBBBI{len(_HEADERS)}sHBBBIBI").pack
_pack_trailers: Final = struct.Struct(f">HBBBI{len(OK_TRAILERS)}s").pack


class Sending(Protocol):
    """A stream, as far as it is sent."""

    number: int
    window: int
    closed: bool
    headers_sent: bool
    output: Output | None

    def written(self) -> None:
        """All of ``output`` is on its way."""
        ...


def response_headers(number: int, encoding: str) -> bytes:
    return frame(HEADERS, END_HEADERS, number, RESPONSES[encoding])


def trailers(number: int, block: bytes) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, number, block)


class Sender:
    """``sent_data`` is set whenever a reply goes out; keepalive's business."""

    __slots__ = (
        "_blocked",
        "_handed_nbytes",
        "_limits",
        "_mark",
        "_transport",
        "initial_window",
        "max_frame_nbytes",
        "_unread_frames",
        "sent_data",
        "window",
        "writable",
    )

    def __init__(self, transport: asyncio.Transport, limits: Limits) -> None:
        self._transport = transport
        self._limits = limits
        self.window = DEFAULT_WINDOW_NBYTES
        #: of new streams, and the largest frame, as the client wants them
        self.initial_window = DEFAULT_WINDOW_NBYTES
        self.max_frame_nbytes = DEFAULT_FRAME_NBYTES
        self.writable = True
        self.sent_data = False
        #: frames for the connection's own sake since the client has stopped to read
        self._unread_frames = 0
        #: streams with output that has to wait, in order of their turns, and since when
        self._blocked: dict[Sending, float] = {}
        self._handed_nbytes = 0
        #: how much the client had read, up to a constant, and when
        self._mark: tuple[int, float] | None = None

    @property
    def idle(self) -> bool:
        return not self._blocked

    def control(self, data: bytes) -> None:
        """Frames of the connection itself."""
        if not self.writable:
            self._unread_frames += 1
            if self._unread_frames > self._limits.unread_frames:
                self._transport.abort()
                return
        self._transport.write(data)

    def reply_at_once(self, number: int, window: int, reply: bytes) -> bool:
        """The usual unary reply: all of it, in one write. False if that cannot be."""
        nbytes = len(reply) + 5
        if nbytes > window or nbytes > self.window or nbytes > _SMALL_NBYTES or not self.writable:
            return False
        self.window -= nbytes
        self.sent_data = True
        self._transport.write(
            b"".join(
                (
                    _pack_head(
                        *(0, len(_HEADERS), HEADERS, END_HEADERS, number, _HEADERS),
                        *(nbytes >> 8, nbytes & 0xFF, DATA, 0, number, 0, nbytes - 5),
                    ),
                    reply,
                    _pack_trailers(0, len(OK_TRAILERS), HEADERS, END_HEADERS | END_STREAM, number, OK_TRAILERS),
                )
            )
        )
        return True

    def send(self, stream: Sending, now: float) -> None:
        """Sends ``stream.output``, now or as the client allows."""
        if stream in self._blocked:
            return  # it waits already
        self._blocked[stream] = now
        self._try(stream, now)

    def reset(self, number: int, code: int) -> None:
        self.control(rst_stream(number, code))

    def forget(self, stream: Sending) -> None:
        self._blocked.pop(stream, None)

    # ----------------------------------------------------------------------------------------------------- what opens

    def widen(self, increment: int, now: float) -> None:
        """Raises ``ConnectionFault``."""
        self.window = widened(self.window, increment)
        if self._blocked:
            self.go_on(now)

    def widen_stream(self, stream: Sending, increment: int, now: float) -> None:
        """Raises ``ConnectionFault``."""
        stream.window = widened(stream.window, increment)
        if stream in self._blocked:
            self._try(stream, now)

    def resume(self, now: float) -> None:
        self.writable = True
        self._unread_frames = 0
        self._mark = None
        self.go_on(now)

    def go_on(self, now: float) -> None:
        """Sends what waits, stream by stream in turns."""
        moved = True
        while moved and self._blocked and self.writable:
            moved = False
            for stream in list(self._blocked):
                if self.writable and stream in self._blocked:
                    moved = self._send_some(stream, now) or moved

    def _try(self, stream: Sending, now: float) -> None:
        if self.writable and self._send_some(stream, now) and stream in self._blocked:
            self.go_on(now)

    def _send_some(self, stream: Sending, now: float) -> bool:
        output = stream.output
        assert output is not None
        nbytes = max(0, min(output.nbytes, stream.window, self.window, _TURN_NBYTES))
        if not nbytes and output.nbytes and not output.head:
            return False
        buffers: list[Buffer] = output.take(stream.number, nbytes, self.max_frame_nbytes)
        self.window -= nbytes
        stream.window -= nbytes
        if nbytes:
            self.sent_data = True
            self._handed_nbytes += nbytes
        done = not output.nbytes
        if done:
            del self._blocked[stream]
        elif nbytes:
            # the others come first now
            del self._blocked[stream]
            self._blocked[stream] = now
        if len(buffers) == 1:
            self._transport.write(buffers[0])
        elif buffers:
            self._transport.writelines(buffers)
        if done:
            stream.written()
        return bool(nbytes)

    # ----------------------------------------------------------------------------------------------------------- time

    def is_stuck(self, now: float) -> bool:
        """The client does not read what it asked for."""
        unsent = self._transport.get_write_buffer_size()
        taken = self._handed_nbytes - unsent
        if not unsent:
            self._mark = None
        elif self._mark is None or taken >= self._mark[0] + self._limits.write_nbytes:
            self._mark = (taken, now)
        else:
            return now - self._mark[1] > self._limits.write_seconds
        return False

    def stalled(self, now: float) -> list[Sending]:
        """Streams that wait for a window too long."""
        if not self.writable:
            return []
        return [stream for stream, since in self._blocked.items() if now - since > self._limits.stalled_seconds]
