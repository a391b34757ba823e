"""Takes connections from a listening socket, also where there is nothing left to take them with.

A loop's own server closes its socket for good on most errors of ``accept``: out of memory for a moment is enough.
"""

import asyncio
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final

from conch.seldom import Seldom

logger = logging.getLogger("conch.frontends.accepting")

_BACKLOG: Final = 1024
#: connections that are taken before others get their turn
_PER_TURN: Final = 64
#: how long nothing is accepted after an error that would come again at once
_PAUSE_SECONDS: Final = 0.1
#: until a handshake is complete there is no connection that could be swept
_HANDSHAKE_SECONDS: Final = 10.0
_REQUEST_NBYTES: Final = 65536
_NO_DESCRIPTOR: Final = {errno.EMFILE, errno.ENFILE}


class Acceptor:
    """Owns ``listener`` and gives each client's connection to a new protocol. Belongs to the running loop's thread.

    One descriptor is kept for the time when there is no other: then clients are accepted, told ``refusal`` (nothing
    with TLS) and closed, at once, instead of waiting for nobody knows how long.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None,
        refusal: bytes = b"",
    ) -> None:
        """Raises ``OSError``."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make_protocol = make_protocol
        self._tls = tls
        self._handshake_seconds = None if tls is None else _HANDSHAKE_SECONDS
        self._refusal = b"" if tls is not None else refusal
        self._beginning: set[asyncio.Task[object]] = set()
        self._failed = Seldom()
        self._resumption: asyncio.TimerHandle | None = None
        self._spare = _open_spare()
        listener.setblocking(False)
        listener.listen(_BACKLOG)
        self._loop.add_reader(listener.fileno(), self._accept)

    async def finish(self) -> None:
        """Takes the clients that the kernel has accepted by now, which it would reset, and closes. Returns when their
        protocols have begun; nobody waits for TLS, because nobody has sent a request during a handshake."""
        for _ in range(_BACKLOG // _PER_TURN):
            self._accept()
        self.close()
        if self._tls is None and self._beginning:
            await asyncio.wait(self._beginning)

    def close(self) -> None:
        """Idempotent. What has been accepted goes on."""
        if self._resumption is not None:
            self._resumption.cancel()
            self._resumption = None
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    def _accept(self) -> None:
        for _ in range(_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue  # the client has gone already
            except OSError as error:
                self._cannot_accept(error)
                return
            connection.setblocking(False)
            beginning = self._loop.create_task(self._begin(connection))
            self._beginning.add(beginning)
            beginning.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._handshake_seconds,
                ssl_shutdown_timeout=self._handshake_seconds,
            )
        except OSError as error:  # of a handshake, mostly
            logger.debug("a connection has not come about: %s", error)
            connection.close()

    # ------------------------------------------------------------------------------------------------------ shortage

    def _cannot_accept(self, error: OSError) -> None:
        if self._failed.is_told(self._loop.time()):
            logger.error("clients' connections cannot be accepted: %s", error.strerror)
        if (error.errno not in _NO_DESCRIPTOR or not self._turn_away()) and self._resumption is None:
            self._loop.remove_reader(self._listener.fileno())
            self._resumption = self._loop.call_later(_PAUSE_SECONDS, self._resume)

    def _turn_away(self) -> bool:
        """False if nobody could be accepted even to be refused."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
        refused = 0
        try:
            while refused < _PER_TURN:
                connection, _ = self._listener.accept()
                refused += 1
                _refuse(connection, self._refusal)
        except OSError:
            pass  # all are refused, or somebody else was quicker to take the descriptor
        self._spare = _open_spare()
        return refused > 0

    def _resume(self) -> None:
        self._resumption = None
        if self._spare < 0:
            self._spare = _open_spare()
        self._loop.add_reader(self._listener.fileno(), self._accept)


def _refuse(connection: socket.socket, refusal: bytes) -> None:
    with connection:
        connection.setblocking(False)
        try:
            if refusal:
                connection.send(refusal)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(_REQUEST_NBYTES)  # unread, it would turn into a reset that overtakes the refusal
        except OSError:
            pass


def _open_spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
