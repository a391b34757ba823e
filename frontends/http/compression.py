"""Compressed bodies of inference requests and responses, as Triton does it (inventory Y-06).

Large ones are worked on by a thread, which does not hold the interpreter up while it does so; meanwhile other clients
are served.
"""

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from conch.errors import InvalidArgument, Overloaded, TooLarge
from frontends.http.errors import reply_to
from frontends.http.exchange import Pending, Reply, Request, error_reply
from frontends.http.request_body import Body

_CONTENT_ENCODING: Final = b"content-encoding"
_ACCEPT_ENCODING: Final = b"accept-encoding"
#: zlib finds out by itself which of the two it is
_GZIP_OR_DEFLATE: Final = 32 + zlib.MAX_WBITS
#: window bits
_FORMATS: Final = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
#: tensors hardly get smaller with a higher level, only slower
_LEVEL: Final = 1
#: more than this is compressed by a thread; it takes a millisecond
_COMPRESS_HERE_NBYTES: Final = 65536
#: a body of more than this is decompressed by a thread: it may become a thousand times as much
_DECOMPRESS_HERE_NBYTES: Final = 4096
#: what may wait for a thread
_MAX_WAITING_NBYTES: Final = 1 << 30
_THREADS: Final = 2
_REMEMBERED: Final = 256

#: answers a request whose body is the given one
Answer = Callable[[Body], Reply | Pending]


class Compression:
    """Stands between the application and inference requests that say ``Content-Encoding`` or ``Accept-Encoding``."""

    def __init__(self, max_input_nbytes: int) -> None:
        self._max_input_nbytes = max_input_nbytes
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="compression")
        self._waiting_nbytes = 0
        self._preferred: dict[bytes, bytes] = {}

    def answer(self, request: Request, answer: Answer) -> Reply | Pending:
        """What ``answer`` makes of the decompressed body, compressed if the client prefers that. ``answer`` may raise
        ``ConchError``, as this does."""
        encoding = request.fields.get(_CONTENT_ENCODING, b"")
        if encoding not in _FORMATS:
            if encoding not in (b"", b"identity"):
                return error_reply(501, "Unsupported compression type", b"Accept-Encoding: gzip, deflate\r\n")
            return self._compressed(request, answer(request.body))
        body, limit = request.body, self._max_input_nbytes
        if len(body) <= _DECOMPRESS_HERE_NBYTES:
            return self._compressed(request, answer(decompressed(body, encoding, limit)))
        task = self._submit(len(body), decompressed, body, encoding, limit)
        return _Decompression(task, lambda body: self._compressed(request, answer(body)))

    def _compressed(self, request: Request, reply: Reply | Pending) -> Reply | Pending:
        accepted = request.fields.get(_ACCEPT_ENCODING)
        encoding = self._preference(accepted) if accepted is not None else b""
        if not encoding:
            return reply
        if isinstance(reply, Pending):
            return _Compression(reply, lambda reply: self._compress(reply, encoding))
        return reply

    def _compress(self, reply: Reply, encoding: bytes) -> "Reply | asyncio.Future[Reply]":
        if reply.status != 200:
            return reply
        nbytes = len(reply.body) + sum(view.nbytes for view in reply.views)
        if nbytes <= _COMPRESS_HERE_NBYTES:
            return compressed(reply, encoding)
        try:
            return self._submit(nbytes, compressed, reply, encoding)
        except Overloaded:
            return reply  # the client has to take uncompressed answers, too

    def _submit(self, nbytes: int, function: Callable[..., Any], *arguments: Any) -> "asyncio.Future[Any]":
        if self._waiting_nbytes and self._waiting_nbytes + nbytes > _MAX_WAITING_NBYTES:
            raise Overloaded("too many compressed requests at a time; try again")
        self._waiting_nbytes += nbytes
        task = asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

        def done(task: object) -> None:
            self._waiting_nbytes -= nbytes

        task.add_done_callback(done)
        return task

    def _preference(self, accepted: bytes) -> bytes:
        try:
            return self._preferred[accepted]
        except KeyError:
            pass
        if len(self._preferred) >= _REMEMBERED:
            self._preferred.clear()
        found = self._preferred[accepted] = preference(accepted)
        return found


class _Decompression(Pending):
    """First a thread decompresses the body, then whatever answers it."""

    __slots__ = ("_answer", "_pending", "_task")

    def __init__(self, task: "asyncio.Future[Body]", answer: Answer) -> None:
        self._task = task
        self._answer = answer
        self._pending: Pending | None = None
        task.add_done_callback(self._decompressed)

    def cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
        else:
            self._task.cancel()

    def _decompressed(self, task: "asyncio.Future[Body]") -> None:
        if task.cancelled():
            return
        failure = task.exception()
        if failure is not None:
            # not raised here: its traceback and the task would hold each other, and with them the body
            self.on_reply(reply_to(failure))
            return
        try:
            reply = self._answer(task.result())
        except Exception as error:
            reply = reply_to(error)
        if isinstance(reply, Pending):
            self._pending = reply
            reply.on_reply = self.on_reply
        else:
            self.on_reply(reply)


class _Compression(Pending):
    """The answer of ``pending``, compressed."""

    __slots__ = ("_compress", "_pending")

    def __init__(self, pending: Pending, compress: "Callable[[Reply], Reply | asyncio.Future[Reply]]") -> None:
        self._pending: Pending | None = pending
        self._compress = compress
        pending.on_reply = self._answered

    def cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()

    def _answered(self, reply: Reply) -> None:
        self._pending = None
        smaller = self._compress(reply)
        if isinstance(smaller, Reply):
            self._give_back(reply, smaller)
            self.on_reply(smaller)
        else:
            # a thread cannot be stopped: nobody cancels this, and the memory is given back when it is done
            smaller.add_done_callback(lambda task: self._compressed(reply, task))

    def _compressed(self, reply: Reply, task: "asyncio.Future[Reply]") -> None:
        error = task.exception()
        smaller = task.result() if error is None else reply_to(error)
        self._give_back(reply, smaller)
        self.on_reply(smaller)

    def _give_back(self, reply: Reply, smaller: Reply) -> None:
        if smaller is not reply and reply.release is not None:
            reply.views = ()
            reply.release()


def preference(accepted: bytes) -> bytes:
    """What the value of an ``Accept-Encoding`` header prefers of what there is: ``gzip``, ``deflate``, or "" for
    neither. The first of those with the highest weight; a wildcard does not count, as in Triton."""
    best, best_weight = b"", 0.0
    for item in accepted.split(b","):
        name, _, parameter = item.partition(b";")
        name = name.strip().lower()
        key, _, value = parameter.partition(b"=")
        try:
            weight = float(value) if key.strip() == b"q" else 1.0
        except ValueError:
            continue
        if weight > best_weight and (name in _FORMATS or name == b"identity"):
            best, best_weight = name, weight
    return best if best in _FORMATS else b""


def compressed(reply: Reply, encoding: bytes) -> Reply:
    """A copy of ``reply`` that borrows nothing."""
    encoder = zlib.compressobj(_LEVEL, wbits=_FORMATS[encoding])
    parts = [encoder.compress(reply.body)]
    parts += [encoder.compress(view) for view in reply.views]
    parts.append(encoder.flush())
    return Reply(reply.status, reply.headers + b"Content-Encoding: %b\r\n" % encoding, b"".join(parts))


def decompressed(body: Body, encoding: bytes, max_nbytes: int) -> bytes:
    """``body`` as it was before it was encoded, at most ``max_nbytes``. Raises ``TooLarge``, and ``InvalidArgument``
    for broken data."""
    if not len(body):
        raise InvalidArgument("nothing to be decompressed")
    decoder = zlib.decompressobj(_GZIP_OR_DEFLATE)
    try:
        data = decoder.decompress(body, max_nbytes + 1)
    except zlib.error:
        raise InvalidArgument(f"the request body is not valid {encoding.decode()} data") from None
    if len(data) > max_nbytes:
        raise TooLarge(
            f"Decompressed data size exceeds the maximum allowed value of {max_nbytes} bytes. "
            "Use --http-max-input-size to increase the limit."
        )
    if not decoder.eof:
        raise InvalidArgument(f"the request body is not complete {encoding.decode()} data")
    return data
