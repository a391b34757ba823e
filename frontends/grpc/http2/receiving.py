"""The receiving half of a connection: bytes in, frames and pieces of messages out.

The payload of a DATA frame is taken as it comes, and for large messages the kernel writes it straight into the
message's own memory. Other frames are handed on once they are complete.
"""

from typing import TYPE_CHECKING, Final

from frontends.grpc.http2 import frames
from frontends.grpc.http2.flow import Allowance
from frontends.grpc.http2.frames import (
    CONTINUATION,
    DATA,
    END_STREAM,
    HEADER_NBYTES,
    MAX_31_BITS,
    PADDED,
    WINDOW_UPDATE,
    ConnectionFault,
    header_block,
    unpack_header,
)
from frontends.grpc.http2.messages import PREFIX_NBYTES
from frontends.grpc.http2.rpc import Rpc

if TYPE_CHECKING:
    from frontends.grpc.http2.connection import Connection

#: frames other than DATA are short; this bounds what is kept of one that is not complete
_MAX_CONTROL_NBYTES: Final = 65536
#: the rest of a frame is received directly if it is at least this long
_DIRECT_REST_NBYTES: Final = 16384
#: so much is received on a connection before its window is opened again
_WINDOW_REST_NBYTES: Final = 1 << 29
#: what comes at once, up to this size, is copied as a whole: faster than many views
_COPIED_NBYTES: Final = 16384

# what follows in the stream of bytes
_PREFACE: Final = 0
_FIRST_SETTINGS: Final = 1
_FRAMES: Final = 2
#: nothing that would be looked at
_NOTHING: Final = 3


class Receiver:
    """``last``: the largest number of a stream so far. All methods raise ``ConnectionFault``."""

    __slots__ = (
        "_connection",
        "_engine",
        "_ends",
        "_header_only",
        "_headers",
        "_left",
        "_padding",
        "_received_nbytes",
        "_rpc",
        "_state",
        "_tail",
        "_target",
        "heard",
        "idle_frames",
        "last",
        "rpcs",
    )

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._engine = connection.engine
        limits = connection.engine.limits
        self.idle_frames = Allowance(limits.idle_frames, limits.idle_frames_per_second)
        self.rpcs: dict[int, Rpc] = {}
        self.last = 0
        #: something has come; whoever looks sets it back
        self.heard = False
        self._state = _PREFACE
        #: of the connection's window, since it was opened last
        self._received_nbytes = 0
        #: the beginning of a frame
        self._tail = b""
        #: of the frame whose payload is coming: bytes of data and of padding still to come, its RPC, and whether it is
        #: the last one of that
        self._left = 0
        self._padding = 0
        self._rpc: Rpc | None = None
        self._ends = False
        #: where the next bytes go, if they are all of one large message
        self._target: memoryview | None = None
        #: the next bytes are a frame's header, and more would have to be copied
        self._header_only = False
        #: headers that CONTINUATION frames complete: number of the stream, flags, block so far
        self._headers: tuple[int, int, bytes] | None = None

    @property
    def greeted(self) -> bool:
        """The client has said that it speaks HTTP/2."""
        return self._state not in (_PREFACE, _FIRST_SETTINGS)

    @property
    def stopped(self) -> bool:
        return self._state == _NOTHING

    @property
    def unfinished_headers(self) -> int:
        """The number of the stream whose headers have begun and not ended, or 0."""
        if self._headers is not None:
            return self._headers[0]
        if len(self._tail) < HEADER_NBYTES or self._state != _FRAMES:
            return 0
        _, _, kind, _, number = unpack_header(self._tail, 0)
        return number & MAX_31_BITS if kind == frames.HEADERS else 0

    def stop(self) -> None:
        """What still comes is dropped."""
        self._state = _NOTHING
        self._target = self._rpc = None
        self._tail = b""
        self._headers = None

    def forget(self, rpc: Rpc) -> None:
        del self.rpcs[rpc.number]
        if rpc is self._rpc:
            self._rpc = self._target = None

    def buffer(self) -> memoryview:
        """Where the next bytes are to be written."""
        if self._target is not None:
            return self._target
        return self._engine.header_buffer if self._header_only else self._engine.receive_buffer

    def received(self, nbytes: int) -> None:
        """So many bytes have been written to ``buffer``."""
        self.heard = True
        if self._target is not None:
            self._left -= nbytes
            assert self._rpc is not None
            self._rpc.received_directly(nbytes)
            self._go_on_with_data()
        elif self._state != _NOTHING:
            data = self._engine.receive_buffer[:nbytes]
            self._header_only = False
            self._feed(bytes(data) if nbytes <= _COPIED_NBYTES else data)

    def _feed(self, data: bytes | memoryview) -> None:
        if self._tail:
            data = self._tail + data
            self._tail = b""
        position, end = 0, len(data)
        if self._state == _PREFACE:
            position = self._preface(data)
        elif self._left or self._padding:
            position = self._payload(data, 0, end)
        while end - position >= HEADER_NBYTES and self._state != _NOTHING:
            high, low, kind, flags, number = unpack_header(data, position)
            nbytes = high << 8 | low
            start = position + HEADER_NBYTES
            stop = start + nbytes
            number &= MAX_31_BITS
            if kind == DATA:
                rpc = self.rpcs.get(number)
                if (
                    flags == END_STREAM
                    and stop <= end
                    and rpc is not None
                    and rpc.reader is None
                    and PREFIX_NBYTES <= nbytes <= rpc.receive_window
                    and not data[start]
                    and int.from_bytes(data[start + 1 : start + PREFIX_NBYTES], "big") == nbytes - PREFIX_NBYTES
                    and not rpc.remote_ended
                    and self._headers is None
                    and nbytes <= self._engine.limits.message_nbytes
                ):
                    # the usual case: one frame is the whole request
                    self._count(nbytes)
                    position = stop
                    rpc.whole(bytes(data[start + PREFIX_NBYTES : stop]))
                    continue
                padded = bool(flags & PADDED and nbytes)
                if padded and start == end:
                    break
                self._check(kind, flags, number, nbytes)
                self._begin_data(rpc, number, flags, nbytes, data[start] if padded else 0)
                position = self._payload(data, start + padded, end)
                continue
            if (
                kind == WINDOW_UPDATE
                and nbytes == 4
                and stop <= end
                and self._headers is None
                and self._state == _FRAMES
            ):
                # as usual as data: clients send two of them with each request
                position = stop
                self._connection.window_update(number, int.from_bytes(data[start:stop], "big") & MAX_31_BITS)
                continue
            self._check(kind, flags, number, nbytes)
            if kind > CONTINUATION:
                self._rpc, self._left, self._padding = None, nbytes, 0
                position = self._payload(data, start, end)
                continue
            if stop > end:
                break
            position = stop
            self._whole_frame(kind, flags, number, bytes(data[start:stop]))
        if position < end and self._state != _NOTHING:
            self._tail = bytes(data[position:])

    def _preface(self, data: bytes | memoryview) -> int:
        expected = frames.PREFACE
        if bytes(data[: len(expected)]) != expected[: len(data)]:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "the client does not speak HTTP/2")
        if len(data) < len(expected):
            self._tail = bytes(data)
            return len(data)
        self._state = _FIRST_SETTINGS
        return len(expected)

    def _check(self, kind: int, flags: int, number: int, nbytes: int) -> None:
        """What a frame's header tells by itself."""
        if self._state == _FIRST_SETTINGS:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "the first frame must be settings")
            self._state = _FRAMES
        if self._headers is not None:
            if kind != frames.CONTINUATION or number != self._headers[0]:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "headers are not complete")
        elif kind == frames.CONTINUATION:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a continuation of nothing")
        if kind <= frames.RST_STREAM or kind == frames.CONTINUATION:
            if not number:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "a stream's frame without a stream")
        elif number and kind in (frames.SETTINGS, frames.PING, frames.GOAWAY):
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a connection's frame with a stream")
        if frames.HEADERS <= kind <= frames.CONTINUATION and nbytes > _MAX_CONTROL_NBYTES:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "too large a frame")
        if kind > frames.HEADERS and kind != WINDOW_UPDATE:
            self._count_idle_frame()

    def _count_idle_frame(self) -> None:
        if not self.idle_frames.take():
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too many frames without content")

    def _whole_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            block = header_block(payload, flags)
            if flags & frames.END_HEADERS:
                self._connection.headers(number, flags, block)
            else:
                self._headers = (number, flags, block)
        elif kind == frames.CONTINUATION:
            assert self._headers is not None
            number, first_flags, block = self._headers
            block += payload
            if len(block) > self._engine.limits.header_block_nbytes:
                raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "headers are too large")
            if flags & frames.END_HEADERS:
                self._headers = None
                self._connection.headers(number, first_flags, block)
            else:
                self._headers = (number, first_flags, block)
        else:
            self._connection.control(kind, flags, number, payload)

    # ---------------------------------------------------------------------------------------------------------- DATA

    def _count(self, nbytes: int) -> None:
        """So much of the connection's window is used."""
        self._received_nbytes += nbytes
        if self._received_nbytes >= _WINDOW_REST_NBYTES:
            self._connection.sender.control(frames.window_update(0, self._received_nbytes))
            self._received_nbytes = 0

    def _begin_data(self, rpc: Rpc | None, number: int, flags: int, nbytes: int, padding: int) -> None:
        if number > self.last or not number & 1:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "data of no stream")
        self._count(nbytes)
        left = nbytes
        if flags & frames.PADDED:
            left -= 1 + padding
            if left < 0:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "more padding than payload")
        if not left and not flags & frames.END_STREAM:
            self._count_idle_frame()
        if rpc is not None:
            rpc.receive_window -= nbytes
            if rpc.receive_window < 0:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "more data than the window has room for")
            if rpc.remote_ended:
                raise ConnectionFault(frames.STREAM_CLOSED, "data after the end of a stream")
        self._rpc, self._left, self._padding, self._ends = rpc, left, padding, bool(flags & frames.END_STREAM)

    def _payload(self, data: bytes | memoryview, start: int, end: int) -> int:
        """Takes what is there of a frame's payload. Returns where it ends."""
        if self._left:
            stop = min(start + self._left, end)
            self._left -= stop - start
            if self._rpc is not None:
                self._rpc.received(data, start, stop)
            start = stop
        if not self._left:
            skipped = min(self._padding, end - start)
            self._padding -= skipped
            start += skipped
        self._go_on_with_data()
        return start

    def _go_on_with_data(self) -> None:
        """Decides where the rest of the frame goes, or ends it."""
        self._target = None
        rpc = self._rpc
        if rpc is None:
            return
        reader = rpc.reader
        if self._left:
            if self._left >= _DIRECT_REST_NBYTES and reader is not None:
                self._target = reader.room(self._left)
        elif not self._padding:
            self._rpc = None
            if self._ends:
                rpc.end()
            else:
                self._header_only = reader is not None and reader.missing > _DIRECT_REST_NBYTES
