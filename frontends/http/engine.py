"""What the connections of one HTTP server share: limits, the set of connections, one coarse clock and one sweep."""

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import Final

import msgspec

from conch.seldom import Seldom
from frontends.accepting import Acceptor
from frontends.http.buffers import BodyBuffers
from frontends.http.exchange import Application, Request
from frontends.http.header_reader import HeaderReader
from frontends.http.protocol import Connection
from frontends.http.reader import RequestReader

logger = logging.getLogger("conch.frontends.http.engine")

#: how often time limits are looked at; they are exact to this
SWEEP_INTERVAL_SECONDS: Final = 0.5
_REFUSAL_BODY: Final = b'{"error":"the server has no descriptor left for a connection; try again later"}'
_REFUSAL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(_REFUSAL_BODY), _REFUSAL_BODY)
)
#: what clients have sent until the port is closed is read in this time
_LAST_REQUESTS_SECONDS: Final = 0.25


class Limits(msgspec.Struct, frozen=True):
    """All of them per connection, except the first four."""

    #: open connections; one more is answered 503 and closed
    connections: int = 8192
    #: bytes of request bodies held at a time, over all connections; more is answered 503
    buffered_nbytes: int = 4 << 30
    #: bytes of answers that clients have not taken, over all connections; beyond, those that lag behind are cut off
    unsent_nbytes: int = 1 << 30
    #: no body may be larger, whatever the application says; sizes are 32-bit signed in Triton
    body_nbytes: int = (1 << 31) - 1
    #: header lines of a request, and trailer lines of a chunked body
    header_count: int = 128
    #: request line's target, or one header's name and value
    line_nbytes: int = 8190
    #: request line and headers together
    head_nbytes: int = 65536
    #: non-empty chunks of a chunked body (Triton's number)
    chunks: int = 65536
    #: from a request's first byte to the end of its headers
    head_seconds: float = 10.0
    #: a body is never too slow in this time …
    body_grace_seconds: float = 10.0
    #: … and must on average come this fast afterwards
    body_nbytes_per_second: float = 1024.0
    #: between two requests
    idle_seconds: float = 75.0
    #: a reader that does not take ``write_nbytes`` in this time is disconnected
    write_seconds: float = 30.0
    write_nbytes: int = 30 * 1024
    #: what a refused client still sends is read and dropped for so long, so that it gets to read why
    linger_seconds: float = 10.0
    #: parsed requests waiting for their turn (pipelining); reading stops beyond
    pipelined: int = 16


class Engine:
    """Serves ``application`` on listening sockets. All methods belong to the loop's thread. ``keep_headers``: requests
    get ``headers``."""

    def __init__(self, application: Application, limits: Limits | None = None, keep_headers: bool = False) -> None:
        self.application = application
        self.limits = limits or Limits()
        self.reader_class = HeaderReader if keep_headers else RequestReader
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time()
        self.connections: set[Connection] = set()
        self.buffers = BodyBuffers()
        #: request-body bytes held now
        self.buffered_nbytes = 0
        #: clients are to connect anew: answers say ``Connection: close``
        self.parting = False
        #: connections without a request are not wanted
        self.draining = False
        #: one buffer for everybody: what is read into it is consumed before the next read
        self.receive_buffer = memoryview(bytearray(65536))
        self._acceptors: list[Acceptor] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._crowded = Seldom()

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accepts connections from a bound socket, which the engine owns from now on."""
        self._acceptors.append(Acceptor(listener, lambda: Connection(self), tls, _REFUSAL))
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_INTERVAL_SECONDS, self._sweep)

    def add(self, connection: Connection) -> bool:
        """False if there are too many connections already."""
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

    def let_go(self, request: Request) -> None:
        """The engine does not need the request's body any more."""
        request.body = b""
        if request.buffered_nbytes:
            self.buffered_nbytes -= request.buffered_nbytes
            request.buffered_nbytes = 0

    def part(self) -> None:
        """Asks clients to connect anew, by the answers to their next requests: to another server, if a load balancer
        knows already that this one is about to end."""
        self.parting = True

    async def drain(self, timeout_seconds: float) -> bool:
        """Stops accepting, closes idle connections and waits until the others have got their answers. What a client
        sent before its connection was closed, or before the port was, is answered too.

        Returns whether that was done in time; what is left then is cut off.
        """
        deadline = self.loop.time() + timeout_seconds
        self.part()
        for acceptor in self._acceptors:
            await acceptor.finish()
        await self._emptied(min(_LAST_REQUESTS_SECONDS, timeout_seconds))
        self.draining = True
        for connection in list(self.connections):
            connection.close_if_idle()
        await self._emptied(deadline - self.loop.time())
        finished = not self.connections
        await self.close()
        return finished

    async def _emptied(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), seconds)

    async def close(self) -> None:
        """Closes everything at once."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for acceptor in self._acceptors:
            acceptor.close()
        self._acceptors.clear()
        for connection in list(self.connections):
            connection.abort()
        await self._empty.wait()

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(SWEEP_INTERVAL_SECONDS, self._sweep)
        self.now = now = self.loop.time()
        self.buffers.retire_idle(now)
        for connection in list(self.connections):
            connection.check(now)
        self._cut_off_laggards(now)

    def _cut_off_laggards(self, now: float) -> None:
        """Each of them is within the limits of a connection, but together they must not fill the memory."""
        limit = self.limits.unsent_nbytes
        unsent = sum(connection.uptake.unsent_nbytes for connection in self.connections)
        if unsent <= limit:
            return
        lagging = [connection for connection in self.connections if connection.uptake.lagging_since is not None]
        lagging.sort(key=lambda connection: connection.uptake.burden(now))
        while lagging and unsent > limit:
            connection = lagging.pop()
            unsent -= connection.uptake.unsent_nbytes
            logger.warning("clients read their answers too slowly, all together: one is disconnected")
            connection.abort()
