"""What one client, and all of them together, may make the engine hold."""

import threading
from typing import Final

import msgspec

from conch.settings import Settings
from frontends.listening import most_connections

_MAX_MESSAGE_NBYTES: Final = (1 << 31) - 1
#: pings beyond ``max_pings_without_data`` come no faster than this
_RARE_PING_SECONDS: Final = 60.0


class Limits(msgspec.Struct, frozen=True):
    """Per connection, unless it says otherwise."""

    #: open connections of the engine; one more is closed
    connections: int = 8192
    #: bytes of messages that are being received, inflated, or wait for a stream's application; over all connections
    buffered_nbytes: int = 4 << 30
    #: one message, as it is sent and decompressed
    message_nbytes: int = _MAX_MESSAGE_NBYTES
    streams: int = 1024
    #: what a client may send on a stream before the server has seen how large its message is
    window_nbytes: int = 256 * 1024
    #: an encoded header block, over all its frames
    header_block_nbytes: int = 65536
    #: from the first of them to the last
    header_seconds: float = 10.0
    #: cancelled calls at once, and per second
    cancelled: int = 4096
    cancelled_per_second: float = 1000.0
    #: frames that carry nothing: pings, settings, empty data and so on
    idle_frames: int = 10_000
    idle_frames_per_second: float = 5_000.0
    #: answers to such frames while the client reads nothing
    unread_frames: int = 4096
    #: until the client has said that it speaks HTTP/2
    preface_seconds: float = 10.0
    #: without a call
    idle_seconds: float = 3600.0
    #: a message is never too slow in this time …
    message_grace_seconds: float = 10.0
    #: … and must on average come this fast afterwards
    message_nbytes_per_second: float = 1024.0
    #: a reader that takes less than ``write_nbytes`` in this time is disconnected
    write_seconds: float = 30.0
    write_nbytes: int = 30 * 1024
    #: a call whose client grants no window for so long is reset
    stalled_seconds: float = 300.0
    #: what a client with a fault still sends is dropped for so long, so that it gets to read why
    linger_seconds: float = 2.0

    #: as gRPC has them; 0 is "never", or "any number"
    keepalive_seconds: float = 7200.0
    keepalive_timeout_seconds: float = 20.0
    keepalive_without_calls: bool = False
    pings_without_data: int = 2
    min_ping_interval_seconds: float = 300.0
    ping_strikes: int = 2
    age_seconds: float = 0.0
    age_grace_seconds: float = 0.0

    def ping_interval(self, sent: int) -> float:
        """Seconds of silence until the next keepalive ping, after ``sent`` of them without data."""
        if self.pings_without_data and sent >= self.pings_without_data:
            return max(self.keepalive_seconds, _RARE_PING_SECONDS)
        return self.keepalive_seconds


def limits_of(settings: Settings) -> Limits:
    defaults = Limits()
    return Limits(
        connections=most_connections(defaults.connections),
        message_nbytes=min(_MAX_MESSAGE_NBYTES, settings.frontend_arena_nbytes),
        buffered_nbytes=settings.frontend_arena_nbytes,
        streams=min(settings.max_inflight, 1024),
        keepalive_seconds=settings.grpc_keepalive_time / 1e3,
        keepalive_timeout_seconds=settings.grpc_keepalive_timeout / 1e3,
        keepalive_without_calls=settings.grpc_keepalive_permit_without_calls,
        pings_without_data=settings.grpc_http2_max_pings_without_data,
        min_ping_interval_seconds=settings.grpc_http2_min_recv_ping_interval_without_data / 1e3,
        ping_strikes=settings.grpc_http2_max_ping_strikes,
        age_seconds=settings.grpc_max_connection_age / 1e3,
        age_grace_seconds=settings.grpc_max_connection_age_grace / 1e3,
    )


class Budget:
    """Bytes held for clients. Threads that inflate messages use it as well."""

    __slots__ = ("_lock", "_max_nbytes", "held_nbytes")

    def __init__(self, max_nbytes: int) -> None:
        self._max_nbytes = max_nbytes
        self._lock = threading.Lock()
        self.held_nbytes = 0

    def take(self, nbytes: int) -> bool:
        """False, and nothing taken, when that would be too much."""
        with self._lock:
            if self.held_nbytes + nbytes > self._max_nbytes:
                return False
            self.held_nbytes += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        with self._lock:
            self.held_nbytes -= nbytes
