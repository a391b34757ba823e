"""One HTTP/2 connection: its RPCs, and what is said about the connection itself."""

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from frontends.grpc.errors import UNAVAILABLE, UNIMPLEMENTED
from frontends.grpc.exchange import Failure
from frontends.grpc.http2 import frames
from frontends.grpc.http2.flow import Allowance
from frontends.grpc.http2.frames import ConnectionFault
from frontends.grpc.http2.headers import (
    MAX_LIST_NBYTES,
    HeaderDecoder,
    RequestHead,
    failure_trailers,
    http_response,
)
from frontends.grpc.http2.receiving import Receiver
from frontends.grpc.http2.rpc import Rpc
from frontends.grpc.http2.sending import Sender, trailers
from frontends.grpc.http2.streams import StreamRpc
from frontends.grpc.http2.unary import UnaryRpc
from frontends.grpc.http2.upkeep import Upkeep

if TYPE_CHECKING:
    from frontends.grpc.engines.http2 import Http2Engine

logger = logging.getLogger("conch.frontends.grpc.http2.connection")

#: what clients may put into one frame; HTTP/2 knows no larger ones
_FRAME_NBYTES: Final = (1 << 24) - 1
_UNKNOWN_METHOD: Final = Failure(UNIMPLEMENTED, "Method not found!")
_STOPPED: Final = Failure(UNAVAILABLE, "the server has stopped")


class Connection(asyncio.BufferedProtocol):
    """Lives from ``connection_made`` to ``connection_lost``. The engine's sweep calls ``check``."""

    def __init__(self, engine: "Http2Engine") -> None:
        self.engine = engine
        self.sender: Sender
        self.transport: asyncio.Transport | None = None
        self._since = engine.now
        self._decoder = HeaderDecoder()
        self.receiver = Receiver(self)
        self._rpcs = self.receiver.rpcs
        self._upkeep = Upkeep(self)
        self._cancelled = Allowance(engine.limits.cancelled, engine.limits.cancelled_per_second)
        #: streams up to this number are served: those before the last GOAWAY
        self._served = frames.MAX_31_BITS

    @property
    def is_leaving(self) -> bool:
        """The client knows that new calls have no place here."""
        return self._served != frames.MAX_31_BITS

    # --------------------------------------------------------------------------------------------- transport's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self.transport = transport
        limits = self.engine.limits
        self.sender = Sender(transport, limits)
        if not self.engine.add(self):
            # without a word: after SETTINGS and GOAWAY, gRPC's clients connect again at once, and again
            transport.abort()
            return
        settings = {
            frames.MAX_CONCURRENT_STREAMS: limits.streams,
            frames.INITIAL_WINDOW_SIZE: limits.window_nbytes,
            frames.MAX_FRAME_SIZE: _FRAME_NBYTES,
            frames.MAX_HEADER_LIST_SIZE: MAX_LIST_NBYTES,
        }
        more = frames.MAX_31_BITS - frames.DEFAULT_WINDOW_NBYTES
        transport.write(frames.settings(settings) + frames.window_update(0, more))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.receiver.stop()
        self.engine.discard(self)
        for rpc in list(self._rpcs.values()):
            rpc.cancel()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.sender.writable = False

    def resume_writing(self) -> None:
        self.sender.resume(self.engine.now)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.receiver.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        try:
            self.receiver.received(nbytes)
        except ConnectionFault as fault:
            logger.debug("a client breaks the protocol: %s", fault.text)
            self.end(fault.code, fault.text)
        except Exception:
            logger.exception("a connection failed")
            self.end(frames.INTERNAL_ERROR, "")

    # -------------------------------------------------------------------------------------------- from the receiver

    def headers(self, number: int, flags: int, block: bytes) -> None:
        """The beginning or the end of a request. Raises ``ConnectionFault``."""
        head = self._decoder.decode(block)
        receiver = self.receiver
        ends = bool(flags & frames.END_STREAM)
        if number <= receiver.last:
            self._trailers(number, head, ends)
            return
        if not number & 1:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if head.malformed or head.trailers:
            receiver.last = number
            self._reset(number, frames.PROTOCOL_ERROR)
            return
        if number > self._served:
            return  # the client knows, and asks elsewhere
        receiver.last = number
        if len(self._rpcs) >= self.engine.limits.streams:
            self._reset(number, frames.REFUSED_STREAM)
            return
        unary = self.engine.methods.get(head.method)
        if unary is None or head.http_status != 200 or head.failure is not None:
            self._refuse(number, head, ends)
            return
        rpc: Rpc
        if unary:
            rpc = self._rpcs[number] = UnaryRpc(self, number, head, self.sender.initial_window)
        else:
            rpc = self._rpcs[number] = stream = StreamRpc(self, number, head, self.sender.initial_window)
            stream.begin()
        if ends:
            rpc.end()

    def control(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Any other frame but DATA. Raises ``ConnectionFault``."""
        if kind == frames.RST_STREAM:
            if len(payload) != 4:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a reset of a wrong size")
            rpc = self._rpc(number)
            if rpc is not None:
                if not self._cancelled.take():
                    raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too many cancelled calls")
                rpc.cancel()
        elif kind == frames.PING:
            self._upkeep.ping(flags, payload)
        elif kind == frames.SETTINGS:
            self._settings(flags, payload)
        elif kind == frames.GOAWAY:
            self._served = min(self._served, self.receiver.last)
            self._close_if_done()
        elif kind == frames.WINDOW_UPDATE:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a window update of a wrong size")
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "clients promise nothing")
        elif len(payload) != 5:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a priority of a wrong size")

    def window_update(self, number: int, increment: int) -> None:
        """Raises ``ConnectionFault``."""
        if not number:
            if not increment:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "a window update of nothing")
            self.sender.widen(increment, self.engine.now)
            return
        rpc = self._rpc(number)
        if rpc is None:
            return
        if increment:
            self.sender.widen_stream(rpc, increment, self.engine.now)
        else:
            rpc.cancel()
            self._reset(number, frames.PROTOCOL_ERROR)

    def _rpc(self, number: int) -> Rpc | None:
        """None for one that has ended."""
        if number > self.receiver.last:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a frame of no stream")
        return self._rpcs.get(number)

    def _trailers(self, number: int, head: RequestHead, ends: bool) -> None:
        rpc = self._rpcs.get(number)
        if head.trailers and (rpc is None or (ends and not rpc.remote_ended)):
            if rpc is not None:
                rpc.end()
        elif rpc is None:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "a stream's number is used again")
        else:
            rpc.cancel()
            self._reset(number, frames.PROTOCOL_ERROR)

    def _refuse(self, number: int, head: RequestHead, ends: bool) -> None:
        if head.http_status != 200:
            block = http_response(head.http_status)
        else:
            block = failure_trailers(head.failure or _UNKNOWN_METHOD, False)
        self.sender.control(trailers(number, block))
        if not ends:
            self.sender.reset(number, frames.NO_ERROR)

    def _reset(self, number: int, code: int) -> None:
        if not self._cancelled.take():
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too many calls that cannot be served")
        self.sender.reset(number, code)

    def _settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            return
        sender = self.sender
        change = 0
        for key, value in frames.parse_settings(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                change += value - sender.initial_window
                sender.initial_window = value
            elif key == frames.MAX_FRAME_SIZE:
                sender.max_frame_nbytes = value
        sender.control(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if change:
            for rpc in list(self._rpcs.values()):
                sender.widen_stream(rpc, change, self.engine.now)

    # ------------------------------------------------------------------------------------------------- from the RPCs

    def grant(self, rpc: Rpc, increment: int) -> None:
        """Lets the client send so much more of a message."""
        rpc.receive_window += increment
        self.sender.control(frames.window_update(rpc.number, increment))

    def waits(self, rpc: Rpc) -> None:
        """For its answer: its deadline counts."""
        if rpc.deadline is not None:
            self.engine.watch(rpc)

    def closed(self, rpc: Rpc) -> None:
        self.receiver.forget(rpc)
        self.sender.forget(rpc)
        if rpc.deadline is not None:
            self.engine.unwatch(rpc)
        if self.is_leaving:
            self._close_if_done()

    # ---------------------------------------------------------------------------------------------- time and closing

    def end(self, code: int, text: str) -> None:
        """The client has broken the protocol. It gets to know, and nothing else."""
        self.receiver.stop()
        for rpc in list(self._rpcs.values()):
            rpc.cancel()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frames.goaway(self.receiver.last, code, text))
            self._leave()

    def finish(self) -> None:
        """Nothing but replies that there are already."""
        if self.transport is None:
            return
        if self.receiver.stopped:
            return
        for rpc in list(self._rpcs.values()):
            if rpc.output is None or rpc.output.end is None:
                rpc.fail(_STOPPED)
        self.last_goaway()

    def part(self) -> None:
        """The client is to begin its next calls on another connection."""
        if self.transport is not None and self.receiver.greeted and not self.receiver.stopped and not self.is_leaving:
            self._upkeep.drain(self.engine.loop.time(), "the server is about to stop")

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def last_goaway(self) -> None:
        """Streams that the client has begun are served, and no others."""
        self._served = self.receiver.last
        self.sender.control(frames.goaway(self._served, frames.NO_ERROR))
        self._close_if_done()

    def _close_if_done(self) -> None:
        if not self._rpcs and not self.receiver.stopped:
            self.receiver.stop()
            # not at once: the transport may be in the middle of a write
            self.engine.loop.call_soon(self._leave)

    def _leave(self) -> None:
        """Everything has been said."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._since = self.engine.now
        if transport.can_write_eof():
            # closed at once, a client that still sends would get a reset, and might not read what came before that
            transport.write_eof()
        else:
            transport.close()

    def check(self, now: float, elapsed_s: float) -> None:
        """Enforces the time limits. Called by the sweep."""
        transport, limits, receiver = self.transport, self.engine.limits, self.receiver
        if transport is None:
            return
        if self.sender.is_stuck(now):
            logger.debug("a client does not read its answers: disconnected")
            transport.abort()
        elif receiver.stopped:
            if now - self._since > limits.linger_seconds and not transport.get_write_buffer_size():
                transport.abort()
        elif not receiver.greeted:
            if now - self._since > limits.preface_seconds:
                transport.abort()
        else:
            self._cancelled.refill(elapsed_s)
            receiver.idle_frames.refill(elapsed_s)
            self._upkeep.check(now)
