"""The data connections, on which requests reach the broker and batches the workers: SOCK_SEQPACKET, no descriptors.

It was measured against ZeroMQ, whose threads cost more than the message (``docs/performance.md``).
"""

import socket
from typing import Any, Generic, TypeVar

from conch.channels import BadMessage, ChannelClosed
from conch.channels.seqpacket import MessageSocket, check_length, check_still_open
from conch.unreadable import UNREADABLE

Out = TypeVar("Out")
In = TypeVar("In")


class DataChannel(MessageSocket[In], Generic[Out, In]):
    """A channel without descriptors. For one thread."""

    def __init__(self, connection: socket.socket, incoming: type[In] | Any) -> None:
        super().__init__(connection, incoming)
        self._send = connection.send
        self._receive_into = connection.recv_into

    def send_nowait(self, message: Out) -> bool:
        """False if the peer's buffer is full. Raises ``MessageTooLong``, and ``ChannelClosed``, after which there may
        still be something to receive."""
        encoded = self._encode(message)
        check_length(encoded)
        try:
            self._send(encoded)
        except OSError as error:
            check_still_open(error)
            return False
        return True

    def receive_nowait(self) -> In | None:
        """The next message. Raises ``ChannelClosed`` after the last one, and ``BadMessage``."""
        try:
            nbytes = self._receive_into(self._buffer)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The peer closed without having read all of ours. The kernel says so once, ahead of what the peer had sent.
            return self.receive_nowait()
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if nbytes == 0:
            raise ChannelClosed("end of file")
        try:
            message: In = self._decode(self._view[:nbytes])
        except UNREADABLE as error:
            raise BadMessage(str(error)) from error
        return message
