"""When a connection is pinged, has pinged too often, and has become too old. Decisions only; times are seconds."""

import enum
import random
from typing import Final

from frontends.grpc.http2.limits import Limits

#: gRPC's, for clients without calls that may not ping then
_TWO_HOURS: Final = 7200.0
#: so that connections made at the same moment do not all end at the same moment
_AGE_JITTER: Final = 0.1


class Due(enum.Enum):
    NOTHING = enum.auto()
    PING = enum.auto()
    #: the client has not answered
    ABORT = enum.auto()
    #: no more calls; those that there are may end
    DRAIN = enum.auto()


class Liveness:
    """Of one connection, since ``now``."""

    __slots__ = ("_active", "_drain_at", "_limits", "_pinged", "_pings", "_strikes", "_their_ping", "idle_since")

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self._active = now
        #: when ours was sent that nothing has come after, and how many without data in between
        self._pinged: float | None = None
        self._pings = 0
        self._their_ping: float | None = None
        self._strikes = 0
        self.idle_since = now
        age = limits.age_seconds
        self._drain_at = now + age * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER) if age else None

    def heard(self, now: float) -> None:
        """Something has come."""
        self._active = now
        self._pinged = None

    def replied(self) -> None:
        """Data has been sent: pings are in order again."""
        self._pings = 0
        self._strikes = 0
        self._their_ping = None

    def ping(self, now: float, calls: bool) -> bool:
        """The client has pinged. False: once too often."""
        limits = self._limits
        interval = limits.min_ping_interval_seconds
        if not calls and not limits.keepalive_without_calls:
            interval = max(interval, _TWO_HOURS)
        last, self._their_ping = self._their_ping, now
        if last is not None and now - last < interval:
            self._strikes += 1
        return not limits.ping_strikes or self._strikes <= limits.ping_strikes

    def check(self, now: float, calls: bool) -> Due:
        limits = self._limits
        if calls:
            self.idle_since = now
        if self._drain_at is not None and now >= self._drain_at:
            self._drain_at = None
            return Due.DRAIN
        if self._pinged is not None:
            return Due.ABORT if now - self._pinged > limits.keepalive_timeout_seconds else Due.NOTHING
        if calls or limits.keepalive_without_calls:
            if now - self._active >= limits.ping_interval(self._pings):
                self._pinged = now
                self._pings += 1
                return Due.PING
        if not calls and now - self.idle_since > limits.idle_seconds:
            self.idle_since = now
            return Due.DRAIN
        return Due.NOTHING
