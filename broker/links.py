"""The broker's end of the data connections: from each requester, for requests, and from each worker, for batches."""

import errno
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

from conch import descriptors
from conch.channels import BadMessage, ChannelClosed
from conch.channels.data import DataChannel
from conch.channels.seqpacket import listen
from conch.messages import PROTOCOL_VERSION, Batch, Cancel, Closed, DataLink, Done, Ready, Request, ToBrokerData
from conch.repeated import Repeated
from conch.run_dir import RunDir
from conch.seldom import Seldom

logger = logging.getLogger("conch.broker.links")

#: how long no connection is accepted after the system had no descriptor for one
_ACCEPT_PAUSE_S = 0.1

Channel = DataChannel[Batch, ToBrokerData]


class DataLinks:
    """``poll``: the broker's, where the listener and every connection are registered. ``resume`` is to be called at
    ``resume_at``, on the monotonic clock, unless that is None."""

    def __init__(self, run_dir: RunDir, poll: select.epoll) -> None:
        run_dir.broker_data_socket.unlink(missing_ok=True)  # a killed broker's; the lock says that it is dead
        self._listener = listen(run_dir.broker_data_socket)
        self._path = run_dir.broker_data_socket
        self._poll = poll
        self._channels: dict[int, Channel] = {}
        self._names: dict[int, str] = {}
        self._by_name: dict[str, Channel] = {}
        self.resume_at: float | None = None
        self._dropped = Repeated()
        self._failed = Seldom()
        #: called with the id of a peer whose connection is dropped because of what it sent
        self.on_broken: Callable[[str], None] | None = None
        poll.register(self._listener.fileno(), select.EPOLLIN)

    def send(self, worker: str, batch: Batch) -> bool:
        """False if the worker is not connected, or does not read. Raises ``MessageTooLong``."""
        channel = self._by_name.get(worker)
        if channel is None:
            return False
        try:
            return channel.send_nowait(batch)
        except ChannelClosed:
            return False  # what it had sent is still to be received

    def receive(self, descriptor: int) -> Iterator[tuple[str, Request | Done | Closed | Cancel | Ready]]:
        """What has come from the peer behind a descriptor that ``poll`` reported, with the peer's id; nothing for a
        descriptor that is not one of these."""
        if descriptor == self._listener.fileno():
            self._accept()
            return
        channel = self._channels.get(descriptor)
        while channel is not None:
            try:
                message = channel.receive_nowait()
                if message is None:
                    return
                name = self._names.get(descriptor)
                if isinstance(message, DataLink):
                    self._introduce(descriptor, channel, message)
                elif name is None:
                    raise BadMessage(f"{type(message).__name__} before DataLink")
                else:
                    yield name, message
            except ChannelClosed:
                self._drop(descriptor)
                return
            except BadMessage as error:
                if self._dropped.is_told():
                    logger.error("dropped a data connection, the %s. so far: %s", self._dropped.count, error)
                name = self._names.get(descriptor)
                self._drop(descriptor)
                if name is not None and self.on_broken is not None:
                    self.on_broken(name)
                return

    def descriptors(self) -> list[int]:
        """Of all connections. What waits to be accepted is accepted first."""
        self._accept()
        return list(self._channels)

    def _introduce(self, descriptor: int, channel: Channel, link: DataLink) -> None:
        if link.protocol != PROTOCOL_VERSION or descriptor in self._names:
            raise BadMessage(f"DataLink of protocol {link.protocol}")
        self._names[descriptor] = link.name
        self._by_name[link.name] = channel

    def _accept(self) -> None:
        while True:
            try:
                if not descriptors.are_left():
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if self.resume_at is None:
                    if self._failed.is_told(time.monotonic()):
                        logger.error("a data connection cannot be accepted: %s", error.strerror)
                    self._poll.unregister(self._listener.fileno())  # or it would be reported without end
                    self.resume_at = time.monotonic() + _ACCEPT_PAUSE_S
                return
            self._add(connection)

    def resume(self) -> None:
        """Accepts connections again."""
        self.resume_at = None
        self._poll.register(self._listener.fileno(), select.EPOLLIN)

    def _add(self, connection: socket.socket) -> None:
        channel: Channel = DataChannel(connection, ToBrokerData)
        self._channels[channel.fileno()] = channel
        self._poll.register(channel.fileno(), select.EPOLLIN)

    def _drop(self, descriptor: int) -> None:
        channel = self._channels.pop(descriptor)
        name = self._names.pop(descriptor, "")
        if self._by_name.get(name) is channel:
            del self._by_name[name]
        self._poll.unregister(descriptor)
        channel.close()

    def close(self) -> None:
        for descriptor in list(self._channels):
            self._drop(descriptor)
        self._listener.close()
        self._path.unlink(missing_ok=True)
