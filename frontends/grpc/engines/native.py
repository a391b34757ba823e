"""The engine on ``pygrpc-native``, whose HTTP/2 runs in threads of Rust: unary RPCs at a fifth of the CPU time.

Streams and unknown methods are passed on to an ``AioEngine`` behind a Unix socket.
"""

import asyncio
import logging
import shutil
import socket
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Final

from pygrpc_native import EVENT_CALL, NativeGrpcFront

from conch.errors import Unavailable
from conch.settings import Settings
from frontends.grpc.engines.aio import AioEngine, max_request_nbytes
from frontends.grpc.errors import INTERNAL, RESOURCE_EXHAUSTED
from frontends.grpc.exchange import Application, Call, Failure, Metadata, Pending, Reply

logger = logging.getLogger("conch.frontends.grpc.engines.native")

#: more of them would not make Python faster
_IO_THREADS: Final = 1
_MAX_BATCH: Final = 64
_POLL_S: Final = 0.005
_BUG: Final = Failure(INTERNAL, "internal error")

#: metadata, peer, seconds left
_Details = tuple[Metadata, str, float | None]
_Event = tuple[int, int, int, bytes | None, bytes | str | None, _Details | None]

#: what this engine cannot do: its flag, and the value that does not ask for it
_MISSING: Final = {
    "grpc_use_ssl": False,
    "grpc_use_ssl_mutual": False,
    "grpc_infer_response_compression_level": "none",
    "grpc_max_connection_age": 0,
    "grpc_max_connection_age_grace": 0,
    "grpc_http2_max_pings_without_data": 2,
    "grpc_http2_min_recv_ping_interval_without_data": 300_000,
    "grpc_http2_max_ping_strikes": 2,
}


def what_is_missing(settings: Settings) -> str:
    """The flags that ask for what this engine cannot do; "" for none."""
    flags = [f"--{name.replace('_', '-')}" for name, idle in _MISSING.items() if getattr(settings, name) != idle]
    return f"what {', '.join(flags)} asks for" if flags else ""


class NativeEngine:
    """Implements ``frontends.grpc.exchange.Engine``."""

    def __init__(self, application: Application, settings: Settings) -> None:
        self._application = application
        self._settings = settings
        self._methods = application.methods
        self._max_request_nbytes = max_request_nbytes(settings)
        self._behind = AioEngine(application, settings)
        self._folder: Path | None = None
        self._front: NativeGrpcFront
        self._loop: asyncio.AbstractEventLoop
        self._thread: threading.Thread | None = None
        #: RPCs without an answer, by number
        self._pending: dict[int, Pending] = {}

    async def listen(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        settings = self._settings
        self._loop = asyncio.get_running_loop()
        self._folder = Path(tempfile.mkdtemp(prefix="grpc-", dir=settings.run_dir or None))
        path = str(self._folder / "streams.sock")
        await self._behind.listen_at(f"unix:{path}")
        try:
            # it binds a socket of its own beside ours, which does not listen
            self._front = NativeGrpcFront(
                f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}",
                [(method, False) for method in self._methods],
                io_threads=_IO_THREADS,
                call_details=True,
                metrics=True,
                keepalive_time_ms=settings.grpc_keepalive_time,
                keepalive_timeout_ms=settings.grpc_keepalive_timeout,
                keepalive_permit_without_calls=settings.grpc_keepalive_permit_without_calls,
                max_concurrent_streams=settings.max_inflight,
                reuse_port=settings.reuse_grpc_port or settings.grpc_process_count > 1,
            )
            self._front.set_fallback(path)
            self._front.start()
        except OSError as error:
            raise Unavailable(f"Socket '{host}:{port}' already in use") from error
        finally:
            listener.close()
        self._thread = threading.Thread(target=self._receive, name="grpc-receive")
        self._thread.start()

    async def close(self, grace_s: float) -> None:
        if self._thread is None:
            await self._behind.close(0)
        else:
            await asyncio.gather(self._behind.close(grace_s), self._written(grace_s))
            # clients of what is left are told that the server has gone
            await asyncio.to_thread(self._front.close)
            await asyncio.to_thread(self._thread.join)
            self._thread = None
        for pending in self._pending.values():
            pending.cancel()
        self._pending.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _written(self, timeout_s: float) -> None:
        """Returns when the clients have all replies that there are."""
        until = time.monotonic() + timeout_s
        while _unfinished(self._front) > len(self._pending) and time.monotonic() < until:  # noqa: ASYNC110 - the front wakes nobody
            await asyncio.sleep(_POLL_S)

    # ----------------------------------------------------------------------------------------------------------- RPCs

    def _receive(self) -> None:
        """Runs in a thread of its own: a burst of RPCs wakes the loop once."""
        receive, hand_over, handle = self._front.recv_batch_details, self._loop.call_soon_threadsafe, self._handle
        while (events := receive(_MAX_BATCH)) is not None:
            hand_over(handle, events)

    def _handle(self, events: list[_Event]) -> None:
        for kind, number, method, payload, _, details in events:
            if kind != EVENT_CALL:
                pending = self._pending.pop(number, None)
                if pending is not None:
                    pending.cancel()
                continue
            assert payload is not None
            assert details is not None
            metadata, _, remaining = details
            deadline = None if remaining is None else time.monotonic() + remaining
            reply = self._answer(Call(self._methods[method], payload, metadata, deadline))
            if isinstance(reply, Pending):
                self._pending[number] = reply
                reply.on_reply = partial(self._finish, number)
            else:
                self._send(number, reply)

    def _answer(self, call: Call) -> Reply | Pending:
        if len(call.payload) > self._max_request_nbytes:
            return Failure(
                RESOURCE_EXHAUSTED,
                f"SERVER: Received message larger than max ({len(call.payload)} vs. {self._max_request_nbytes})",
            )
        try:
            return self._application.answer(call)
        except Exception:
            logger.exception("a request failed")
            return _BUG

    def _finish(self, number: int, reply: Reply) -> None:
        if self._pending.pop(number, None) is not None:
            self._send(number, reply)

    def _send(self, number: int, reply: Reply) -> None:
        if isinstance(reply, Failure):
            self._front.fail(number, reply.code, reply.message)
        else:
            self._front.respond(number, reply)


def _unfinished(front: NativeGrpcFront) -> int:
    """RPCs whose clients do not have their whole answer yet."""
    counts = front.metrics()
    assert counts is not None
    return sum(
        method["started"] - sum(status["count"] for status in method["status"].values())
        for method in counts["methods"].values()
    )
