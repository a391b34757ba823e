"""The receiving half of a connection: bytes in, requests out, within limits.

Reading has a phase, which decides what time limit holds:

    IDLE ──first byte──► HEAD ──headers complete──► BODY ──complete──► IDLE
      └─────────────── anything wrong ──────────────► DISCARD: the refusal takes its place among the answers, what
                                                        still comes is dropped, the connection is closed

A body whose length is known and more than ``DIRECT_NBYTES`` is received by the kernel straight into its own buffer,
past the parser.
"""

import logging
from typing import TYPE_CHECKING, Final, Protocol

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from frontends.http.exchange import Reply, Request, error_reply

if TYPE_CHECKING:
    from frontends.http.engine import Engine

logger = logging.getLogger("conch.frontends.http.reader")

#: bodies up to this size come through the parser
DIRECT_NBYTES: Final = 65536
#: the parser gets this much at a time, so that one read cannot make thousands of pipelined requests
_SLICE_NBYTES: Final = 16384
#: what a chunked body may have beside its data: per chunk (size line with extensions), and in all (trailers)
_CHUNK_OVERHEAD_NBYTES: Final = 64
_CHUNKED_OVERHEAD_NBYTES: Final = 65536

IDLE: Final = 0
HEAD: Final = 1
BODY: Final = 2
DISCARD: Final = 3

RETRY_AFTER: Final = b"Retry-After: 1\r\n"


class _Refused(Exception):
    """Leaves a parser callback with the reply to a request that is not read any further."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply


class Sink(Protocol):
    """Where requests go: the answering half of the connection."""

    def take(self, request: Request) -> None:
        """A complete request, or one with a ``refusal``, after which there are no more."""
        ...

    def is_full(self) -> bool:
        """No more requests for now: the rest of what has been received is kept until ``read_on``."""
        ...

    def pause_reading(self) -> None: ...

    def allow_body(self) -> None:
        """The client waits for ``100 Continue`` before it sends the body."""
        ...


class RequestReader:
    """``phase`` and ``since`` (the engine's clock) are read, and set after an answer, by the connection."""

    __slots__ = (
        "_body",
        "_chunked",
        "_chunks",
        "_engine",
        "_fields",
        "_header_count",
        "_in_chunk",
        "_line_nbytes",
        "_parser",
        "_received",
        "_request",
        "_rest",
        "_sink",
        "_target",
        "_unparsed",
        "_wire_nbytes",
        "paused",
        "phase",
        "since",
    )

    def __init__(self, engine: "Engine", sink: Sink) -> None:
        self._engine = engine
        self._sink = sink
        self._line_nbytes = engine.limits.line_nbytes
        self._header_count = engine.limits.header_count
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self.phase = IDLE
        self.since = engine.now
        #: ``is_full`` was true: reading has stopped
        self.paused = False
        self._unparsed = memoryview(b"")
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

    def buffer(self) -> memoryview:
        """Where the next bytes are to be written."""
        rest = self._rest
        return self._engine.receive_buffer if rest is None else rest

    def received(self, nbytes: int) -> None:
        """So many bytes have been written to ``buffer``."""
        if self.phase == DISCARD:
            return
        if self._rest is not None:
            self._received_directly(nbytes)
        else:
            self._feed(self._engine.receive_buffer[:nbytes])

    def read_on(self) -> None:
        """The sink has room again."""
        if not self.paused or self.phase == DISCARD:
            return
        unparsed, self._unparsed = self._unparsed, memoryview(b"")
        self.paused = False
        self.since = self._engine.now
        self._feed(unparsed)

    def refuse(self, reply: Reply) -> None:
        """Answers ``reply`` after what is due before it, and reads no more."""
        request = self._request or Request(b"", b"", {}, False)
        self.close()
        request.keep_alive = False
        request.refusal = reply
        self._sink.take(request)

    def close(self) -> None:
        """Reads no more."""
        if self._request is not None:
            self._engine.let_go(self._request)
            self._request = None
        self._body = b""
        self._rest = None
        self._unparsed = memoryview(b"")
        self.phase = DISCARD
        self.since = self._engine.now

    def forget_parser(self) -> None:
        """Breaks the cycle of references between the parser and its callbacks."""
        self._parser = None

    def check(self, now: float) -> None:
        """Refuses a request that comes too slowly."""
        if self.paused:
            return
        limits = self._engine.limits
        elapsed = now - self.since
        if self.phase == HEAD:
            if elapsed > limits.head_seconds:
                self.refuse(error_reply(408, "the request's headers did not arrive in time"))
        elif self.phase == BODY:
            required = (elapsed - limits.body_grace_seconds) * limits.body_nbytes_per_second
            if self._received < required:
                self.refuse(error_reply(408, "the request's body arrives too slowly"))

    # ---------------------------------------------------------------------------------------------------- the parser

    def _feed(self, data: memoryview) -> None:
        start = 0
        while start < len(data) and self.phase != DISCARD:
            if self._sink.is_full():
                self._unparsed = memoryview(bytes(data[start:]))
                self.paused = True
                self._sink.pause_reading()
                return
            if self._rest is not None:
                taken = min(len(self._rest), len(data) - start)
                self._rest[:taken] = data[start : start + taken]
                start += taken
                self._received_directly(taken)
                continue
            piece = data if len(data) <= _SLICE_NBYTES and not start else data[start : start + _SLICE_NBYTES]
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
                self.refuse(cause.reply)
            except HttpParserError as error:
                if self.phase != DISCARD:  # otherwise: bytes after the last request of this connection
                    logger.debug("malformed request: %s", error)
                    self.refuse(error_reply(400, "malformed HTTP request"))
            else:
                if self.phase != IDLE:
                    self._check_slice(len(piece))

    def _check_slice(self, nbytes: int) -> None:
        """Limits on what the parser or the body's buffer pile up, checked once per slice."""
        if self.phase == HEAD:
            self._wire_nbytes += nbytes
            if self._wire_nbytes > self._engine.limits.head_nbytes:
                self.refuse(error_reply(431, "request headers are too large"))
        elif self.phase == BODY and self._chunked:
            self._wire_nbytes += nbytes
            overhead = self._wire_nbytes - self._received
            if overhead > _CHUNKED_OVERHEAD_NBYTES + self._chunks * _CHUNK_OVERHEAD_NBYTES:
                self.refuse(error_reply(400, "malformed chunked request body"))
            elif self._received > DIRECT_NBYTES:
                self._check_growth()

    def on_message_begin(self) -> None:
        self.phase = HEAD
        self.since = self._engine.now
        self._wire_nbytes = 0
        self._target = b""
        self._fields = {}

    def on_url(self, url: bytes) -> None:
        self._target = target = self._target + url
        if len(target) > self._line_nbytes:
            raise _Refused(error_reply(414, "request target is too long"))

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) + len(value) > self._line_nbytes:
            raise _Refused(error_reply(431, "a request header is too large"))
        if self.phase == BODY:
            return  # a trailer: not kept; _check_slice bounds them
        fields = self._fields
        fields[name.lower()] = value
        if len(fields) > self._header_count:
            raise _Refused(error_reply(431, "too many request headers"))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        fields = self._fields
        keep_alive = parser.should_keep_alive()
        request = Request(parser.get_method(), self._target, fields, keep_alive)
        if not keep_alive or b"connection" in fields:  # otherwise it is 1.1
            request.takes_chunks = parser.get_http_version() == "1.1"
        self._request = request
        self.phase = BODY
        self.since = self._engine.now
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

    def on_chunk_header(self) -> None:
        self._in_chunk = True

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        rest = self._rest
        if rest is not None:
            rest[: len(body)] = body
            self._rest = rest[len(body) :]
            assert self._request is not None
            reply = self._hold(self._request, len(body))
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
        self.phase = IDLE
        self.since = self._engine.now
        self._sink.take(request)

    # -------------------------------------------------------------------------------------------------------- bodies

    def _admit(self, request: Request, nbytes: int) -> None:
        """Asks whether the body may come at all. Raises ``_Refused``."""
        reply = self._over_limit(request, nbytes)
        if reply is not None:
            raise _Refused(reply)
        expect = request.fields.get(b"expect")
        if expect is not None and expect.lower() == b"100-continue":
            self._sink.allow_body()

    def _over_limit(self, request: Request, nbytes: int) -> Reply | None:
        reply = self._engine.application.refuse(request, nbytes)
        limit = self._engine.limits.body_nbytes
        if reply is None and nbytes > limit:
            reply = error_reply(413, f"request body of {nbytes} bytes exceeds the maximum of {limit} bytes")
        return reply

    def _hold(self, request: Request, nbytes: int) -> Reply | None:
        """Counts ``nbytes`` more of the body against the engine's budget."""
        engine = self._engine
        request.buffered_nbytes += nbytes
        engine.buffered_nbytes += nbytes
        if engine.buffered_nbytes > engine.limits.buffered_nbytes:
            return error_reply(503, "too many request bytes are being received", RETRY_AFTER)
        return None

    def _check_growth(self) -> None:
        request = self._request
        assert request is not None
        reply = self._over_limit(request, self._received)
        if reply is None:
            reply = self._hold(request, self._received - request.buffered_nbytes)
        if reply is not None:
            self.refuse(reply)

    def _receive_directly(self, nbytes: int) -> None:
        if nbytes == 0:
            return
        try:
            self._body = self._rest = self._engine.buffers.take(nbytes)
        except MemoryError:
            raise _Refused(error_reply(503, "out of memory", RETRY_AFTER)) from None

    def _received_directly(self, nbytes: int) -> None:
        request, rest = self._request, self._rest
        assert request is not None and rest is not None
        self._received += nbytes
        reply = self._hold(request, nbytes)
        if reply is not None:
            self.refuse(reply)
        elif nbytes < len(rest):
            self._rest = rest[nbytes:]
        else:
            self._rest = None
            self._parser = HttpRequestParser(self)
            self.on_message_complete()
