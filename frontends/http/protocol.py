"""One HTTP/1.x connection: bytes in, requests to the application one after the other, answers out in order.

Reading has a phase, which decides what time limit holds:

    IDLE ──first byte──► HEAD ──headers complete──► BODY ──complete──► IDLE
      └──────────── anything wrong ────────────► DISCARD: the refusal is sent after the answers that are due before
                                                  it, input is dropped, the connection is closed

Requests are answered one at a time; those that a client pipelines wait in a short queue. A body whose length is known
and more than ``DIRECT_NBYTES`` is received by the kernel straight into its own buffer, past the parser.
"""

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from frontends.http.exchange import REASONS, Pending, Reply, Request, error_reply

if TYPE_CHECKING:
    from frontends.http.engine import Engine

logger = logging.getLogger("conch.frontends.http.protocol")

#: bodies up to this size come through the parser
DIRECT_NBYTES: Final = 65536
#: the parser gets this much at a time, so that one read cannot make thousands of pipelined requests
_SLICE_NBYTES: Final = 16384
#: reading stops while this much of the bodies of waiting requests is held
_QUEUED_NBYTES: Final = 1 << 20
#: a head and a body up to this size are joined into one write
_JOIN_NBYTES: Final = 65536
#: what a chunked body may have beside its data: per chunk (size line with extensions), and in all (trailers)
_CHUNK_OVERHEAD_NBYTES: Final = 64
_CHUNKED_OVERHEAD_NBYTES: Final = 65536

IDLE: Final = 0
HEAD: Final = 1
BODY: Final = 2
DISCARD: Final = 3

_STATUS_LINES: Final = {status: b"HTTP/1.1 %d %s\r\n" % (status, text.encode()) for status, text in REASONS.items()}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_RETRY_AFTER: Final = b"Retry-After: 1\r\n"


class _Refused(Exception):
    """Leaves a parser callback with the reply to a request that is not read any further."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


class Connection(asyncio.BufferedProtocol):
    """Lives from ``connection_made`` to ``connection_lost``. The engine's sweep calls ``check``."""

    __slots__ = (
        "_body",
        "_chunked",
        "_chunks",
        "_continue_due",
        "_current",
        "_drain_mark",
        "_engine",
        "_fields",
        "_in_chunk",
        "_parser",
        "_pending",
        "_phase",
        "_queue",
        "_reading",
        "_received",
        "_release",
        "_request",
        "_rest",
        "_since",
        "_target",
        "_transport",
        "_unparsed",
        "_wire_nbytes",
        "_writable",
    )

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._transport: asyncio.Transport | None = None
        self._parser: HttpRequestParser | None = None
        self._phase = IDLE
        self._since = engine.now
        # the request being read
        self._target = b""
        self._fields: dict[bytes, bytes] = {}
        self._request: Request | None = None
        self._body: bytes | bytearray | memoryview = b""
        self._rest: memoryview | None = None
        self._received = 0
        self._chunked = False
        self._chunks = 0
        self._in_chunk = False
        self._wire_nbytes = 0
        # requests read, and the one being answered
        self._queue: deque[Request] = deque()
        self._current: Request | None = None
        self._pending: Pending | None = None
        self._continue_due = False
        # reading stopped by a full queue, and what had been received by then
        self._reading = True
        self._unparsed: memoryview | None = None
        # writing
        self._writable = True
        self._release: Reply | None = None
        self._drain_mark: tuple[int, float] | None = None

    # ------------------------------------------------------------------------------------------- transport events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        self._transport = transport
        self._parser = HttpRequestParser(self)
        if not self._engine.add(self):
            self._refuse(error_reply(503, "too many connections", _RETRY_AFTER))
            transport.close()  # without lingering, or the cap would not be one
        elif self._engine.draining:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._parser = None
        self._rest = None
        self._engine.discard(self)
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.future.cancel()
        if self._release is not None:
            # the transport is closed after this callback; only then it has let go of the views
            self._engine.loop.call_soon(self._released)
        if self._request is not None:
            self._give_back(self._request)
        self._body = b""
        self._drop_queue()

    def eof_received(self) -> bool:
        """The client has gone, or half of it: HTTP clients that still want an answer keep their side open."""
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        rest = self._rest
        return self._engine.receive_buffer if rest is None else rest

    def buffer_updated(self, nbytes: int) -> None:
        if self._phase == DISCARD:
            return
        if self._rest is not None:
            self._received_directly(nbytes)
        else:
            self._feed(self._engine.receive_buffer[:nbytes])

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        if self._release is not None:
            self._released()
            self._finish()
        self._advance()

    # ---------------------------------------------------------------------------------------------------- reading

    def _feed(self, data: memoryview) -> None:
        start = 0
        while start < len(data):
            if len(self._queue) > self._engine.limits.pipelined or self._queued_too_much():
                self._stop_reading(data[start:])
                return
            if self._rest is not None:
                taken = min(len(self._rest), len(data) - start)
                self._rest[:taken] = data[start : start + taken]
                start += taken
                self._received_directly(taken)
                continue
            piece = data[start : start + _SLICE_NBYTES]
            start += len(piece)
            try:
                assert self._parser is not None
                self._parser.feed_data(piece)
            except HttpParserUpgrade as upgrade:
                # we offer no upgrade: what follows is the body, if any, and then the next request
                start += upgrade.args[0] - len(piece)
                self._parser = HttpRequestParser(self)
            except HttpParserCallbackError as error:
                cause = error.__context__
                if not isinstance(cause, _Refused):
                    logger.error("a parser callback failed", exc_info=cause)
                    cause = _Refused(error_reply(500, "internal error"))
                self._refuse(cause.reply)
            except HttpParserError as error:
                if self._phase == DISCARD:
                    return  # bytes after the last request of this connection
                logger.debug("malformed request: %s", error)
                self._refuse(error_reply(400, "malformed HTTP request"))
            else:
                self._check_slice(len(piece))
            if self._phase == DISCARD or self._transport is None:
                return

    def _check_slice(self, nbytes: int) -> None:
        """Limits on what the parser or the body's buffer pile up, checked once per slice."""
        if self._phase == HEAD:
            self._wire_nbytes += nbytes
            if self._wire_nbytes > self._engine.limits.head_nbytes:
                self._refuse(error_reply(431, "request headers are too large"))
        elif self._phase == BODY and self._chunked:
            self._wire_nbytes += nbytes
            overhead = self._wire_nbytes - self._received
            if overhead > _CHUNKED_OVERHEAD_NBYTES + self._chunks * _CHUNK_OVERHEAD_NBYTES:
                self._refuse(error_reply(400, "malformed chunked request body"))
            elif self._received > DIRECT_NBYTES:
                self._check_growth()

    def _check_growth(self) -> None:
        request = self._request
        assert request is not None
        reply = self._over_limit(request, self._received)
        if reply is None:
            reply = self._buffered(request, self._received - request.buffered_nbytes)
        if reply is not None:
            self._refuse(reply)

    def _over_limit(self, request: Request, nbytes: int) -> Reply | None:
        reply = self._engine.application.refuse(request, nbytes)
        limit = self._engine.limits.body_nbytes
        if reply is None and nbytes > limit:
            reply = error_reply(413, f"request body of {nbytes} bytes exceeds the maximum of {limit} bytes")
        return reply

    def _buffered(self, request: Request, nbytes: int) -> Reply | None:
        """Counts ``nbytes`` more of the body against the budget."""
        engine = self._engine
        request.buffered_nbytes += nbytes
        engine.buffered_nbytes += nbytes
        if engine.buffered_nbytes > engine.limits.buffered_nbytes:
            return error_reply(503, "too many request bytes are being received", _RETRY_AFTER)
        return None

    def _give_back(self, request: Request) -> None:
        """The engine does not need the request's body any more."""
        request.body = b""
        self._engine.buffered_nbytes -= request.buffered_nbytes
        request.buffered_nbytes = 0

    def on_message_begin(self) -> None:
        self._phase = HEAD
        self._since = self._engine.now
        self._wire_nbytes = 0
        self._target = b""
        self._fields = {}

    def on_url(self, url: bytes) -> None:
        self._target = target = self._target + url
        if len(target) > self._engine.limits.line_nbytes:
            raise _Refused(error_reply(414, "request target is too long"))

    def on_header(self, name: bytes, value: bytes) -> None:
        limits = self._engine.limits
        if len(name) + len(value) > limits.line_nbytes:
            raise _Refused(error_reply(431, "a request header is too large"))
        if self._phase == BODY:
            return  # a trailer: not kept; _check_slice bounds them
        fields = self._fields
        fields[name.lower()] = value
        if len(fields) > limits.header_count:
            raise _Refused(error_reply(431, "too many request headers"))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        fields = self._fields
        request = Request(parser.get_method(), self._target, fields, parser.should_keep_alive())
        self._request = request
        self._phase = BODY
        self._since = self._engine.now
        self._body = b""
        self._received = 0
        self._chunked = False
        length = fields.get(b"content-length")
        if length is not None:
            if not length.isdigit() or len(length) > 18:
                raise _Refused(error_reply(400, "malformed Content-Length"))
            request.content_length = nbytes = int(length)
            if nbytes > DIRECT_NBYTES or b"upgrade" in fields:
                self._admit(request, nbytes)
                self._receive_directly(nbytes)
            elif b"expect" in fields:
                self._admit(request, nbytes)
        elif b"transfer-encoding" in fields:
            if b"upgrade" in fields:
                raise _Refused(error_reply(400, "a chunked request cannot be upgraded"))
            self._chunked = True
            self._chunks = 0
            self._in_chunk = False
            self._wire_nbytes = 0
            self._admit(request, 0)

    def _admit(self, request: Request, nbytes: int) -> None:
        reply = self._over_limit(request, nbytes)
        if reply is not None:
            raise _Refused(reply)
        expect = request.fields.get(b"expect")
        if expect is not None and expect.lower() == b"100-continue":
            if self._current is None and not self._queue and self._transport is not None:
                self._transport.write(_CONTINUE)
            else:
                self._continue_due = True  # after the answers that are due before it

    def _receive_directly(self, nbytes: int) -> None:
        if nbytes == 0:
            return
        try:
            self._body = self._rest = self._engine.buffers.take(nbytes)
        except MemoryError:
            raise _Refused(error_reply(503, "out of memory", _RETRY_AFTER)) from None

    def _received_directly(self, nbytes: int) -> None:
        request, rest = self._request, self._rest
        assert request is not None and rest is not None
        self._received += nbytes
        reply = self._buffered(request, nbytes)
        if reply is not None:
            self._refuse(reply)
        elif nbytes < len(rest):
            self._rest = rest[nbytes:]
        else:
            self._rest = None
            self._parser = HttpRequestParser(self)
            self.on_message_complete()

    def on_chunk_header(self) -> None:
        self._in_chunk = True

    def on_body(self, body: bytes) -> None:
        rest = self._rest
        if rest is not None:
            rest[: len(body)] = body
            self._rest = rest[len(body) :]
            self._received += len(body)
            assert self._request is not None
            reply = self._buffered(self._request, len(body))
            if reply is not None:
                raise _Refused(reply)
            return
        if self._in_chunk:
            self._in_chunk = False
            self._chunks += 1
            limit = self._engine.limits.chunks
            if self._chunks > limit:
                text = f"Chunked request body exceeds maximum of {limit} non-empty chunks. "
                raise _Refused(error_reply(400, text + "Send fewer or larger HTTP chunks."))
        self._received += len(body)
        if not self._body:
            self._body = body
        elif type(self._body) is bytearray:
            self._body += body
        else:
            self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self) -> None:
        if self._rest is not None:
            if len(self._rest) > 0:
                return  # an upgrade, for the parser: the body is still to come
            self._rest = None
        request = self._request
        assert request is not None
        self._request = None
        request.body = self._body
        self._body = b""
        self._phase = IDLE
        self._since = self._engine.now
        if self._current is None and self._writable and not self._queue:
            self._answer(request)
        else:
            self._queue.append(request)

    def _drop_queue(self) -> None:
        for request in self._queue:
            self._give_back(request)
        self._queue.clear()

    def _queued_too_much(self) -> bool:
        return bool(self._queue) and sum(len(request.body) for request in self._queue) > _QUEUED_NBYTES

    def _stop_reading(self, unparsed: memoryview) -> None:
        assert self._transport is not None
        self._unparsed = memoryview(bytes(unparsed))
        self._reading = False
        self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._reading or self._transport is None or self._phase == DISCARD:
            return
        unparsed, self._unparsed = self._unparsed, None
        self._reading = True
        self._since = self._engine.now
        self._transport.resume_reading()
        if unparsed is not None:
            self._feed(unparsed)

    def _refuse(self, reply: Reply) -> None:
        """Answers ``reply`` after what is due before it, and reads no more."""
        request = self._request or Request(b"", b"", {}, False)
        self._request = None
        self._give_back(request)
        request.keep_alive = False
        request.refusal = reply
        self._body = b""
        self._rest = None
        self._phase = DISCARD
        self._since = self._engine.now
        self._queue.append(request)
        self._advance()

    # -------------------------------------------------------------------------------------------------- answering

    def _advance(self) -> None:
        """Takes up what waits, as far as the client reads."""
        queue = self._queue
        while queue and self._current is None and self._writable and self._transport is not None:
            self._answer(queue.popleft())
        if self._continue_due and self._current is None and not queue and self._transport is not None:
            self._continue_due = False
            if self._phase == BODY:
                self._transport.write(_CONTINUE)
        if not self._reading and len(queue) <= self._engine.limits.pipelined // 2:
            self._engine.loop.call_soon(self._read_on)

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
            self._give_back(request)
        if type(reply) is Pending:
            self._pending = reply
            reply.future.add_done_callback(self._answered)
        else:
            assert isinstance(reply, Reply)
            self._write(request, reply)

    def _answered(self, future: "asyncio.Future[object]") -> None:
        pending = self._pending
        if pending is None or pending.future is not future:
            _drop(future)
            return
        self._pending = None
        request = self._current
        assert request is not None
        try:
            if future.cancelled():
                reply = error_reply(503, "the server is shutting down", _RETRY_AFTER)
            else:
                reply = pending.render(future)
        except Exception:
            logger.exception("an answer could not be written")
            _drop(future)
            reply = error_reply(500, "internal error")
        self._write(request, reply)
        if self._queue or not self._reading or self._continue_due:
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
        if not request.keep_alive or self._engine.draining:
            request.keep_alive = False
            headers = reply.headers + b"Connection: close\r\n"
        elif b"connection" in request.fields:
            headers = reply.headers + b"Connection: keep-alive\r\n"
        else:
            headers = reply.headers
        head = b"%b%bContent-Length: %d\r\n\r\n" % (_STATUS_LINES[reply.status], headers, nbytes)
        if request.method == b"HEAD":
            body, views = b"", ()
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
        self._release = reply
        transport.writelines((head + body, *views))
        if self._writable and transport.get_write_buffer_size() == 0:
            self._released()
            self._finish()

    def _released(self) -> None:
        reply, self._release = self._release, None
        if reply is not None and reply.release is not None:
            reply.release()
        if self._transport is not None:
            self._transport.set_write_buffer_limits()

    def _finish(self) -> None:
        """The current request's answer is handed to the transport and nothing of it is borrowed any more."""
        request = self._current
        self._current = None
        self._since = self._engine.now
        transport = self._transport
        if transport is None or request is None or request.keep_alive:
            return
        if self._phase == DISCARD and request.refusal is not None:
            # closed at once, a refused client that still sends would get a reset instead of the answer
            if transport.can_write_eof():
                transport.write_eof()
        else:
            transport.close()
            self._phase = DISCARD
            self._drop_queue()

    # ---------------------------------------------------------------------------------------------- time and closing

    def close_if_idle(self) -> None:
        if self._transport is not None and self._phase == IDLE and self._current is None and not self._queue:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def check(self, now: float) -> None:
        """Enforces the time limits. Called by the sweep."""
        transport, limits = self._transport, self._engine.limits
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent == 0:
            self._drain_mark = None
        elif self._drain_mark is None or unsent <= self._drain_mark[0] - limits.write_nbytes:
            self._drain_mark = (unsent, now)
        elif now - self._drain_mark[1] > limits.write_seconds:
            logger.debug("a client does not read its answer: disconnected")
            transport.abort()
            return
        elapsed = now - self._since
        if self._phase == IDLE:
            if self._current is None and not self._queue and elapsed > limits.idle_seconds:
                transport.close()
        elif self._phase == DISCARD:
            if self._current is None and unsent == 0 and elapsed > limits.linger_seconds:
                transport.abort()
        elif not self._reading:
            pass
        elif self._phase == HEAD:
            if elapsed > limits.head_seconds:
                self._refuse(error_reply(408, "the request's headers did not arrive in time"))
        else:
            required = (elapsed - limits.body_grace_seconds) * limits.body_nbytes_per_second
            if self._received < required:
                self._refuse(error_reply(408, "the request's body arrives too slowly"))


def _drop(future: "asyncio.Future[object]") -> None:
    """Gives back what a result borrows that nobody wants any more."""
    if future.cancelled() or future.exception() is not None:
        return
    release = getattr(future.result(), "release", None)
    if release is not None:
        release()
