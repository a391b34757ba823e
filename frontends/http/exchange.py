"""What the protocol engine and the application hand to each other: one request, one answer."""

from collections.abc import Callable
from typing import Any, Final, Protocol

import orjson

from frontends.deferred import Deferred

#: reason phrases of every status that we send
REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}

#: an error may repeat a client's names, but not megabytes of them
_MAX_ERROR_LENGTH: Final = 16384

JSON_TYPE: Final = b"Content-Type: application/json\r\n"
BINARY_TYPE: Final = b"Content-Type: application/octet-stream\r\n"


class Request:
    """One request. ``method`` is upper case; ``target`` is the request line's target as it came; ``fields`` maps
    lower-case header names to the last value of each. ``content_length`` is None for a chunked body and for none.
    ``headers``, as the client spelled them, are only there where the engine was told to keep them.

    ``body`` is dropped by the engine when ``Application.answer`` returns; whoever keeps a view of it keeps its memory.
    """

    __slots__ = (
        "body",
        "buffered_nbytes",
        "content_length",
        "fields",
        "headers",
        "keep_alive",
        "method",
        "refusal",
        "takes_chunks",
        "target",
    )

    headers: list[tuple[bytes, bytes]]

    def __init__(self, method: bytes, target: bytes, fields: dict[bytes, bytes], keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.fields = fields
        self.keep_alive = keep_alive
        #: False for HTTP/1.0
        self.takes_chunks = True
        self.content_length: int | None = None
        self.body: bytes | bytearray | memoryview = b""
        #: bytes of the body that count against the engine's budget
        self.buffered_nbytes = 0
        #: set when the engine or the application refused the request before its body was read
        self.refusal: Reply | None = None


class Reply:
    """One answer. ``headers`` is a block of complete header lines, without Content-Length and Connection.

    ``views`` follow ``body`` on the wire and are memory of somebody else: ``release`` is called once nobody reads them
    any more (the transport's buffer is empty, or the transport is closed), or at once when there are none.
    """

    __slots__ = ("body", "headers", "release", "status", "views")

    def __init__(
        self,
        status: int,
        headers: bytes = b"",
        body: bytes = b"",
        views: tuple[memoryview, ...] = (),
        release: Callable[[], None] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.views = views
        self.release = release


class Pending(Deferred[Reply]):
    __slots__ = ()

    def internal_error(self) -> Reply:
        return error_reply(500, "internal error")


class Sink(Protocol):
    """The way to the client for an answer that comes in pieces: ``begin``, any number of ``write``, ``end``. All of
    them do nothing once the client has gone."""

    def begin(self, status: int, headers: bytes) -> None:
        """``headers`` as in ``Reply``."""
        ...

    def write(self, chunk: bytes) -> bool:
        """False: enough for now, the client does not read as fast. Whoever writes more nevertheless fills memory."""
        ...

    def end(self) -> None: ...


class Streaming(Pending):
    """An answer that is written to ``sink`` as it is made, or a whole reply after all, when nothing has begun."""

    __slots__ = ("sink",)

    #: set by the engine
    sink: Sink

    def resume(self) -> None:
        """After a ``write`` that returned False: the client has caught up."""
        raise NotImplementedError


class Application(Protocol):
    """What the engine serves. Neither method raises: an exception is a bug, logged and answered 500."""

    def refuse(self, request: Request, nbytes: int) -> Reply | None:
        """Asked about every request whose body is large, chunked or announced by ``Expect``, before it is read, and
        again as a chunked body grows. ``nbytes`` is what the body has at least. A reply refuses the request: it is
        sent at once and the connection closed."""
        ...

    def answer(self, request: Request) -> Reply | Pending: ...


def json_reply(value: Any) -> Reply:
    """200 with ``value`` as compact JSON."""
    return Reply(200, JSON_TYPE, orjson.dumps(value))


def error_reply(status: int, message: str, headers: bytes = b"") -> Reply:
    """``{"error":"<message>"}``, as every error of Triton."""
    text = message[:_MAX_ERROR_LENGTH].encode(errors="replace").decode()
    return Reply(status, JSON_TYPE + headers, orjson.dumps({"error": text}))
