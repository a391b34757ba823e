"""The data connections, on which requests reach the broker and batches the workers: SOCK_SEQPACKET, no descriptors.

It was measured against ZeroMQ, whose threads cost more than the message (``docs/performance.md``).
"""

import errno
import socket
from typing import Any, Generic, TypeVar

import msgspec

from conch.channels import BadMessage, ChannelClosed
from conch.channels.seqpacket import MAX_MESSAGE_NBYTES, MessageTooLong

Out = TypeVar("Out")
In = TypeVar("In")

#: the kernel lacks memory at the moment; the connection is whole
_SHORTAGES = (errno.ENOBUFS, errno.ENOMEM)


class DataChannel(Generic[Out, In]):
    """One end of a connected socket, which it owns. For one thread."""

    def __init__(self, connection: socket.socket, incoming: type[In] | Any) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._send = connection.send
        self._receive_into = connection.recv_into
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._buffer = bytearray(MAX_MESSAGE_NBYTES)
        self._view = memoryview(self._buffer)

    def send_nowait(self, message: Out) -> bool:
        """False if the peer's buffer is full. Raises ``MessageTooLong``, and ``ChannelClosed``, after which there may
        still be something to receive."""
        encoded = self._encode(message)
        if len(encoded) > MAX_MESSAGE_NBYTES:
            raise MessageTooLong(f"{len(encoded)} bytes beside its tensors are more than {MAX_MESSAGE_NBYTES}")
        try:
            self._send(encoded)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _SHORTAGES:
                return False
            raise ChannelClosed(str(error)) from error
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
        except (msgspec.DecodeError, RecursionError) as error:
            raise BadMessage(str(error)) from error
        return message

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()
