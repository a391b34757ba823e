"""What a connection does because time passes: pings, age, calls that come or go too slowly."""

from typing import TYPE_CHECKING, Final, cast

from frontends.grpc.errors import UNAVAILABLE
from frontends.grpc.exchange import Failure
from frontends.grpc.http2 import frames
from frontends.grpc.http2.frames import ConnectionFault
from frontends.grpc.http2.liveness import Due, Liveness
from frontends.grpc.http2.rpc import Rpc

if TYPE_CHECKING:
    from frontends.grpc.http2.connection import Connection

_TOO_SLOW: Final = Failure(UNAVAILABLE, "the request arrives too slowly")
_DRAINING: Final = b"draining"
_KEEPALIVE: Final = b"keepaliv"


class Upkeep:
    """Of one connection that speaks HTTP/2."""

    __slots__ = ("_connection", "_draining_since", "_grace_s", "_headers", "_limits", "_liveness")

    def __init__(self, connection: "Connection") -> None:
        engine = connection.engine
        self._connection = connection
        self._limits = engine.limits
        self._liveness = Liveness(engine.limits, engine.now)
        #: when the first GOAWAY was sent
        self._draining_since: float | None = None
        #: how long calls may take from then on; 0 is any time
        self._grace_s = 0.0
        #: stream whose headers were not complete at the last look, or 0, and since when
        self._headers = (0, engine.now)

    def ping(self, flags: int, payload: bytes) -> None:
        """One has come. Raises ``ConnectionFault``."""
        connection = self._connection
        if len(payload) != 8:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "a ping of a wrong size")
        if flags & frames.ACK:
            if payload == _DRAINING and self._draining_since is not None:
                connection.last_goaway()
            return
        self._note_replies()
        if not self._liveness.ping(connection.engine.loop.time(), bool(connection.receiver.rpcs)):
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too_many_pings")
        connection.sender.control(frames.frame(frames.PING, frames.ACK, 0, payload))

    def check(self, now: float) -> None:
        self._check_calls(now)
        if self._are_headers_slow(now):
            self._connection.end(frames.ENHANCE_YOUR_CALM, "headers arrive too slowly")
            return
        if self._draining_since is not None:
            self._check_draining(now - self._draining_since)
            return
        connection = self._connection
        if connection.receiver.heard:
            connection.receiver.heard = False
            self._liveness.heard(now)
        self._note_replies()
        match self._liveness.check(now, bool(connection.receiver.rpcs)):
            case Due.PING:
                connection.sender.control(frames.frame(frames.PING, 0, 0, _KEEPALIVE))
            case Due.ABORT:
                connection.abort()
            case Due.DRAIN:
                self._grace_s = self._limits.age_grace_seconds
                self.drain(now, "max_age")
            case Due.NOTHING:
                pass

    def _note_replies(self) -> None:
        sender = self._connection.sender
        if sender.sent_data:
            sender.sent_data = False
            self._liveness.replied()

    def _check_calls(self, now: float) -> None:
        sender = self._connection.sender
        for rpc in sender.stalled(now):
            cast(Rpc, rpc).cancel()
            sender.reset(rpc.number, frames.CANCEL)
        for rpc in list(self._connection.receiver.rpcs.values()):
            if rpc.deadline is not None and rpc.deadline <= now:
                rpc.expire()
            elif rpc.is_slow(now):
                rpc.fail(_TOO_SLOW)

    def _are_headers_slow(self, now: float) -> bool:
        number = self._connection.receiver.unfinished_headers
        if number != self._headers[0]:
            self._headers = (number, now)
        return number != 0 and now - self._headers[1] > self._limits.header_seconds

    def drain(self, now: float, reason: str) -> None:
        """No new calls, once the client has heard of it; the others may end."""
        if self._draining_since is not None:
            return
        self._draining_since = now
        sender = self._connection.sender
        sender.control(frames.goaway(frames.MAX_31_BITS, frames.NO_ERROR, reason))
        sender.control(frames.frame(frames.PING, 0, 0, _DRAINING))

    def _check_draining(self, elapsed_s: float) -> None:
        connection = self._connection
        if self._grace_s and elapsed_s > self._grace_s:
            connection.abort()
        elif not connection.is_leaving and elapsed_s > self._limits.keepalive_timeout_seconds:
            connection.last_goaway()  # it has not answered the ping
