"""The engine on HTTP/2 of our own: what its connections share, and their time limits."""

import asyncio
import contextlib
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Final

from conch.seldom import Seldom
from conch.settings import Settings
from conch.tls import server_context
from frontends.accepting import Acceptor
from frontends.grpc.exchange import Application
from frontends.grpc.http2.connection import Connection
from frontends.grpc.http2.frames import HEADER_NBYTES
from frontends.grpc.http2.limits import Budget, Limits, limits_of
from frontends.grpc.http2.rpc import Rpc
from frontends.http.buffers import BodyBuffers
from frontends.listening import listen

logger = logging.getLogger("conch.frontends.grpc.engines.http2")

#: how often time limits are looked at; they are exact to this
_SWEEP_SECONDS: Final = 0.5
#: the same for calls' deadlines, while there are any
_DEADLINE_SECONDS: Final = 0.05
_RECEIVE_NBYTES: Final = 65536
_THREADS: Final = 2
#: levels as Triton's flag has them, and what gRPC makes of them
_ENCODINGS: Final = {"none": "", "low": "gzip", "medium": "gzip", "high": "deflate"}


class Http2Engine:
    """Implements ``frontends.grpc.exchange.Engine``. Raises ``InvalidArgument`` for certificates that do not serve."""

    def __init__(self, application: Application, settings: Settings, limits: Limits | None = None) -> None:
        self.application = application
        self.limits = limits or limits_of(settings)
        #: whether a method is unary
        self.methods = {**dict.fromkeys(application.methods, True), **dict.fromkeys(application.streams, False)}
        #: what replies are compressed with, for clients that take that; "" for nothing
        self.encoding = _ENCODINGS[settings.grpc_infer_response_compression_level]
        self.budget = Budget(self.limits.buffered_nbytes)
        self.buffers = BodyBuffers()
        self.connections: set[Connection] = set()
        #: of streams
        self.tasks: set[asyncio.Task[None]] = set()
        #: one for everybody: what is read into it is consumed before the next read
        self.receive_buffer = memoryview(bytearray(_RECEIVE_NBYTES))
        self.header_buffer = self.receive_buffer[:HEADER_NBYTES]
        self.loop: asyncio.AbstractEventLoop
        self.now = 0.0
        self._empty = asyncio.Event()
        self._empty.set()
        self._tls = server_context(settings, "grpc")
        self._acceptor: Acceptor | None = None
        self._crowded = Seldom()
        self._sweeper: asyncio.TimerHandle | None = None
        #: calls with a deadline that wait for their answers
        self._watched: set[Rpc] = set()
        self._watcher: asyncio.TimerHandle | None = None

    async def listen(self, listener: socket.socket) -> None:
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time()
        listen(listener)
        self._acceptor = Acceptor(listener, lambda: Connection(self), self._tls)
        self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    def part(self) -> None:
        for connection in list(self.connections):
            connection.part()

    async def close(self, grace_s: float) -> None:
        if self._acceptor is None:
            return
        self._acceptor.close()
        for connection in list(self.connections):
            connection.finish()
        if grace_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), grace_s)
        for connection in list(self.connections):
            connection.abort()
        for timer in (self._sweeper, self._watcher):
            if timer is not None:
                timer.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self._empty.wait()
        if "threads" in self.__dict__:
            self.threads.shutdown(wait=False)

    @cached_property
    def threads(self) -> ThreadPoolExecutor:
        """For compression."""
        return ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc-compression")

    # ---------------------------------------------------------------------------------------------- from connections

    def add(self, connection: Connection) -> bool:
        """False if there are too many already."""
        self.connections.add(connection)
        self._empty.clear()
        if len(self.connections) <= self.limits.connections:
            return True
        if self._crowded.is_told(self.now):
            logger.warning("%s connections are open, which is the most: more are refused", self.limits.connections)
        return False

    def discard(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    def watch(self, rpc: Rpc) -> None:
        self._watched.add(rpc)
        if self._watcher is None:
            self._watcher = self.loop.call_later(_DEADLINE_SECONDS, self._expire)

    def unwatch(self, rpc: Rpc) -> None:
        self._watched.discard(rpc)

    # ---------------------------------------------------------------------------------------------------------- time

    def _expire(self) -> None:
        self._watcher = None
        now = time.monotonic()
        for rpc in [rpc for rpc in self._watched if rpc.deadline is not None and rpc.deadline <= now]:
            rpc.expire()
        if self._watched:
            self._watcher = self.loop.call_later(_DEADLINE_SECONDS, self._expire)

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)
        now = self.loop.time()
        elapsed_s, self.now = now - self.now, now
        self.buffers.retire_idle(now)
        for connection in list(self.connections):
            connection.check(now, elapsed_s)
