"""One HTTP/1.x connection: requests to the application one after the other, answers out in order.

What a client pipelines waits in a short queue. An answer that borrows memory holds the next one up until the
transport's buffer is empty: only then nobody reads that memory any more. An answer that comes in pieces holds the next
one up until its end.
"""

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from frontends.http.exchange import REASONS, Pending, Reply, Request, Streaming, error_reply
from frontends.http.reader import BODY, DISCARD, IDLE, RETRY_AFTER
from frontends.http.uptake import Uptake

if TYPE_CHECKING:
    from frontends.http.engine import Engine

logger = logging.getLogger("conch.frontends.http.protocol")

#: reading stops while this much of the bodies of waiting requests is held
_QUEUED_NBYTES: Final = 1 << 20
#: a head and a body up to this size are joined into one write
_JOIN_NBYTES: Final = 65536

_STATUS_LINES: Final = {status: b"HTTP/1.1 %d %s\r\n" % (status, text.encode()) for status, text in REASONS.items()}
#: how the pieces of an answer are framed: not at all before it has begun
_NOT_BEGUN: Final = 0
_CHUNKED: Final = 1
_UNTIL_CLOSED: Final = 2
_HEAD_ONLY: Final = 3

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.BufferedProtocol):
    """Lives from ``connection_made`` to ``connection_lost``. The engine's sweep calls ``check``."""

    __slots__ = (
        "_continue_due",
        "_current",
        "_engine",
        "_framing",
        "_lent",
        "_pending",
        "_queue",
        "_reader",
        "_transport",
        "_writable",
        "_written_nbytes",
        "uptake",
    )

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._reader = engine.reader_class(engine, self)
        self._transport: asyncio.Transport | None = None
        #: requests that wait, and the one that is being answered
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._pending: Pending | None = None
        #: a client waits for 100 Continue, and for answers that are due before that
        self._continue_due = False
        self._writable = True
        #: the answer whose views the transport still reads
        self._lent: Reply | None = None
        #: of the answer in pieces
        self._framing = _NOT_BEGUN
        #: how much of answers has been handed to the transport
        self._written_nbytes = 0
        self.uptake = Uptake()

    # ------------------------------------------------------------------------------------------- transport events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._transport = transport
        if not self._engine.add(self):
            self._reader.refuse(error_reply(503, "too many connections; try again later", RETRY_AFTER))
            transport.close()  # without lingering, or the cap would not be one
        elif self._engine.draining:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._reader.close()
        self._reader.forget_parser()
        self._engine.discard(self)
        pending, self._pending = self._pending, None
        self._framing = _NOT_BEGUN
        if pending is not None:
            pending.cancel()
        if self._lent is not None:
            # the transport is closed after this callback; only then it has let go of the views
            self._engine.loop.call_soon(self._take_back)
        self._drop_queue()

    def eof_received(self) -> bool:
        """The client has gone, or half of it: HTTP clients that still want an answer keep their side open."""
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.received(nbytes)

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._lent is not None:
            self._take_back()
            self._finish()
        elif self._framing != _NOT_BEGUN:
            cast(Streaming, self._pending).resume()
        self._advance()

    # ---------------------------------------------------------------------------------------------- from the reader

    def take(self, request: Request) -> None:
        if self._current is None and self._writable and not self._queue and self._transport is not None:
            self._answer(request)  # the usual case
            return
        self._queue.append(request)
        if self._current is None:
            self._advance()

    def is_full(self) -> bool:
        queue = self._queue
        if not queue:
            return False
        return (
            len(queue) > self._engine.limits.pipelined or sum(len(request.body) for request in queue) > _QUEUED_NBYTES
        )

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def allow_body(self) -> None:
        self._continue_due = True
        if self._current is None:
            self._advance()

    # -------------------------------------------------------------------------------------------------- answering

    def _advance(self) -> None:
        """Takes up what waits, as far as the client reads."""
        queue, transport = self._queue, self._transport
        while queue and self._current is None and self._writable and transport is not None:
            self._answer(queue.popleft())
        if self._continue_due and self._current is None and not queue and transport is not None:
            self._continue_due = False
            if self._reader.phase == BODY:
                transport.write(_CONTINUE)
        if self._reader.paused and len(queue) <= self._engine.limits.pipelined // 2:
            self._engine.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if self._transport is not None and self._reader.paused:
            self._transport.resume_reading()
            self._reader.read_on()

    def _answer(self, request: Request) -> None:
        self._current = request
        reply: Reply | Pending
        if request.refusal is not None:
            reply = request.refusal
        else:
            try:
                reply = self._engine.application.answer(request)
            except Exception:
                logger.exception("a request could not be answered")
                reply = error_reply(500, "internal error")
            self._engine.let_go(request)
        if isinstance(reply, Pending):
            self._pending = reply
            reply.on_reply = self._answered
            if isinstance(reply, Streaming):
                reply.sink = self
        else:
            self._write(request, reply)

    def _answered(self, reply: Reply) -> None:
        request = self._current
        if self._pending is None or request is None:  # the client has gone
            if reply.release is not None:
                reply.release()
            return
        self._pending = None
        self._write(request, reply)
        if self._queue or self._reader.paused or self._continue_due:
            self._advance()

    def _write(self, request: Request, reply: Reply) -> None:
        transport = self._transport
        body, views = reply.body, reply.views
        if transport is None or transport.is_closing():
            if reply.release is not None:
                reply.release()
            self._current = None
            return
        nbytes = len(body)
        for view in views:
            nbytes += view.nbytes
        headers = self._with_connection(request, reply.headers)
        head = b"%b%bContent-Length: %d\r\n\r\n" % (_STATUS_LINES[reply.status], headers, nbytes)
        if request.method == b"HEAD":
            body, views, nbytes = b"", (), 0
        self._written_nbytes += len(head) + nbytes
        if not views:
            if len(body) <= _JOIN_NBYTES:
                transport.write(head + body)
            else:
                transport.writelines((head, body))
            if reply.release is not None:
                reply.release()
            self._finish()
            return
        # from now on "resume_writing" means that the transport's buffer is empty
        transport.set_write_buffer_limits(high=0)
        self._lent = reply
        transport.writelines((head + body, *views))
        if self._writable and transport.get_write_buffer_size() == 0:
            self._take_back()
            self._finish()

    def _with_connection(self, request: Request, headers: bytes) -> bytes:
        if not request.keep_alive or (self._engine.parting and not self._queue and self._reader.phase == IDLE):
            request.keep_alive = False
            return headers + b"Connection: close\r\n"
        if b"connection" in request.fields:
            return headers + b"Connection: keep-alive\r\n"
        return headers

    def _take_back(self) -> None:
        """Nobody reads the views of the answer any more."""
        reply, self._lent = self._lent, None
        if reply is not None and reply.release is not None:
            reply.release()
        if self._transport is not None:
            self._transport.set_write_buffer_limits()

    def _finish(self) -> None:
        """The current request's answer is handed to the transport and nothing of it is borrowed any more."""
        request = self._current
        self._current = None
        self._reader.since = self._engine.now
        transport = self._transport
        if transport is None or request is None or request.keep_alive:
            return
        if request.refusal is not None:
            # closed at once, a refused client that still sends would get a reset instead of the answer
            if transport.can_write_eof():
                transport.write_eof()
        else:
            transport.close()
            self._reader.close()
            self._drop_queue()

    def _drop_queue(self) -> None:
        for request in self._queue:
            self._engine.let_go(request)
        self._queue.clear()

    # --------------------------------------------------------------------------------------------- answers in pieces

    def begin(self, status: int, headers: bytes) -> None:
        request, transport = self._current, self._transport
        if self._pending is None or request is None or transport is None or transport.is_closing():
            return
        if request.method == b"HEAD":
            self._framing = _HEAD_ONLY
        elif request.takes_chunks:
            self._framing = _CHUNKED
        else:
            self._framing = _UNTIL_CLOSED
            request.keep_alive = False
        headers = self._with_connection(request, headers)
        if request.takes_chunks:
            headers += b"Transfer-Encoding: chunked\r\n"
        transport.write(b"%b%b\r\n" % (_STATUS_LINES[status], headers))

    def write(self, chunk: bytes) -> bool:
        if self._framing == _CHUNKED:
            self._write_piece(b"%x\r\n%b\r\n" % (len(chunk), chunk) if chunk else b"")
        elif self._framing == _UNTIL_CLOSED:
            self._write_piece(chunk)
        return self._writable

    def _write_piece(self, piece: bytes) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._written_nbytes += len(piece)
            transport.write(piece)

    def end(self) -> None:
        if self._framing == _NOT_BEGUN:
            return
        if self._framing == _CHUNKED:
            self._write_piece(b"0\r\n\r\n")
        self._framing = _NOT_BEGUN
        self._pending = None
        if self._engine.draining and self._current is not None:
            self._current.keep_alive = False
        self._finish()
        self._advance()

    # ---------------------------------------------------------------------------------------------- time and closing

    def close_if_idle(self) -> None:
        """Otherwise after the last request that there is now."""
        if self._transport is not None and self._is_idle():
            self._transport.close()
        elif self._queue:
            self._queue[-1].keep_alive = False

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _is_idle(self) -> bool:
        return self._reader.phase == IDLE and self._current is None and not self._queue

    def check(self, now: float) -> None:
        """Enforces the time limits. Called by the sweep."""
        transport, limits = self._transport, self._engine.limits
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if not self.uptake.look(now, self._written_nbytes, unsent, limits):
            logger.debug("a client does not read its answer: disconnected")
            transport.abort()
            return
        elapsed = now - self._reader.since
        if self._is_idle():
            if elapsed > limits.idle_seconds:
                transport.close()
        elif self._reader.phase == DISCARD:
            if self._current is None and unsent == 0 and elapsed > limits.linger_seconds:
                transport.abort()
        else:
            self._reader.check(now)
