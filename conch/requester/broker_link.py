"""The requester's data connection to the broker: requests and their cancellations, in order.

It is made after a ``Welcome`` and ends with the broker. What the broker has not read by then is in the next HELLO.
"""

import logging
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from conch.channels import BadMessage, ChannelClosed
from conch.channels.data import DataChannel
from conch.channels.seqpacket import connect
from conch.later import Later
from conch.messages import PROTOCOL_VERSION, Cancel, DataLink, Request

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

logger = logging.getLogger("conch.requester.broker_link")

Outgoing = DataLink | Request | Cancel


class BrokerLink:
    """``on_lost`` is called when the connection ends by itself. All methods belong to the loop's thread."""

    def __init__(self, path: Path, requester: str, on_lost: Callable[[], None]) -> None:
        self._path = path
        self._requester = requester
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._channel: DataChannel[Outgoing, None] | None = None
        self._epoch = 0
        #: what the broker's buffer had no room for
        self._waiting: deque[Outgoing] = deque()

    def connect(self, epoch: int) -> bool:
        """To the broker of this epoch, unless there is a connection to it. False if it does not listen (any more)."""
        if self._channel is not None and self._epoch == epoch:
            return True
        self.close()
        self._epoch = epoch
        try:
            self._channel = DataChannel(connect(self._path), None)
        except OSError as error:
            logger.warning("no data connection to the broker: %s", error)
            return False
        self._loop.add_reader(self._channel.fileno(), self._read)
        return self.send(DataLink(PROTOCOL_VERSION, self._requester))

    def send(self, message: Outgoing) -> bool:
        """Sends it, or keeps it until the broker reads. False if there is no connection. Raises ``MessageTooLong``, and
        what MessagePack raises for a number of more than 64 bits."""
        channel = self._channel
        if channel is None:
            return False
        try:
            if not self._waiting and channel.send_nowait(message):
                return True
        except ChannelClosed:
            return False  # its end of file is about to be read
        if not self._waiting:
            self._loop.add_writer(channel.fileno(), self._flush)
        self._waiting.append(message)
        return True

    def forget_waiting(self) -> None:
        """Before a HELLO, which lists what waits here as well: the broker, which has not seen it, must not get it."""
        if self._waiting:
            self.close()

    def _flush(self) -> None:
        channel = self._channel
        assert channel is not None
        try:
            while self._waiting and channel.send_nowait(self._waiting[0]):
                self._waiting.popleft()
        except ChannelClosed:
            self._waiting.clear()
        if not self._waiting:
            self._loop.remove_writer(channel.fileno())

    def _read(self) -> None:
        """The broker sends nothing here: only the end can come."""
        channel = self._channel
        assert channel is not None
        try:
            if channel.receive_nowait() is None:
                return
        except ChannelClosed:
            pass
        except BadMessage as error:
            logger.error("the broker sent something on the data connection: %s", error)
        self.close()
        self._on_lost()

    def close(self) -> None:
        channel, self._channel = self._channel, None
        self._waiting.clear()
        if channel is not None:
            self._loop.remove_reader(channel.fileno())
            self._loop.remove_writer(channel.fileno())
            channel.close()
