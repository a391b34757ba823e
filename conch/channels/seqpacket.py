"""The response path: AF_UNIX SOCK_SEQPACKET, straight from a worker to the requester.

What ``send_nowait`` accepted survives the sender's death; end-of-file comes after the last message. Segment descriptors
travel beside a message as SCM_RIGHTS.
"""

import array
import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from conch.channels import BadMessage, ChannelClosed
from conch.unreadable import UNREADABLE

Out = TypeVar("Out")
In = TypeVar("In")

#: below the kernel's default send buffer (208 KiB), so that a message of this size can always be sent at once
MAX_MESSAGE_NBYTES = 128 * 1024
_DESCRIPTOR_NBYTES = array.array("i").itemsize
_ANCILLARY_NBYTES = socket.CMSG_SPACE(4 * _DESCRIPTOR_NBYTES)
_BACKLOG = 1024
#: as plain integers: the enumerations cost a microsecond each time
_TRUNCATED = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_CUT_SHORT = int(socket.MSG_TRUNC)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
#: the peer's buffer is full, or the kernel is short of memory or of descriptors on their way: the connection is whole
_TEMPORARY = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS)


class MessageTooLong(Exception):
    """The encoded message is over ``MAX_MESSAGE_NBYTES``; nothing was sent."""


def listen(path: Path) -> socket.socket:
    """A non-blocking listening socket at ``path``, mode 0600 by the run directory's 0700."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def connect(path: Path) -> socket.socket:
    """A non-blocking connection to ``path``. Raises ``OSError`` if nobody listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    connection.setblocking(False)
    return connection


class MessageSocket(Generic[In]):
    """One end of a connected socket, which it owns, with a codec and a buffer: what both kinds of channels have."""

    def __init__(self, connection: socket.socket, incoming: type[In] | Any) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._buffer = bytearray(MAX_MESSAGE_NBYTES)
        self._view = memoryview(self._buffer)

    def fileno(self) -> int:
        return self._connection.fileno()

    def refuse_more(self) -> None:
        """The peer can send nothing from now on. What it has sent is still to be received, then comes the end."""
        with contextlib.suppress(OSError):  # it has gone already
            self._connection.shutdown(socket.SHUT_RD)

    def hang_up(self) -> None:
        """Nothing comes from here any more, so the peer had better connect anew. What it sends until then is still to
        be received."""
        with contextlib.suppress(OSError):  # it has gone already
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._connection.close()


def check_length(encoded: bytes) -> None:
    """Raises ``MessageTooLong``."""
    if len(encoded) > MAX_MESSAGE_NBYTES:
        raise MessageTooLong(f"{len(encoded)} bytes beside its tensors are more than {MAX_MESSAGE_NBYTES}")


def check_still_open(error: OSError) -> None:
    """After a failed send. Raises ``ChannelClosed`` unless it may succeed later."""
    if error.errno not in _TEMPORARY:
        raise ChannelClosed(str(error)) from error


class SeqpacketChannel(MessageSocket[In], Generic[Out, In]):
    """A channel whose messages may bring a descriptor."""

    def __init__(self, connection: socket.socket, incoming: type[In] | Any) -> None:
        super().__init__(connection, incoming)
        self._receive_into = connection.recvmsg_into
        self._buffers = [self._buffer]

    def send_nowait(self, message: Out, descriptor: int | None = None) -> bool:
        """False if the peer's buffer is full, or the kernel short of what it takes. Raises ``MessageTooLong``, and
        ``ChannelClosed``, after which there may still be something to receive.

        ``descriptor`` is duplicated into the receiver; the caller keeps its own.
        """
        encoded = self._encode(message)
        check_length(encoded)
        try:
            if descriptor is None:
                self._connection.send(encoded)
            else:
                rights = array.array("i", [descriptor])
                self._connection.sendmsg([encoded], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError as error:
            check_still_open(error)
            return False
        return True

    def receive_nowait(self) -> tuple[In, int | None] | None:
        """The next message and the descriptor that came with it, which the caller owns from now on. None in its place
        also if this process had none left for it.

        Raises ``ChannelClosed`` after the last message, and ``BadMessage``.
        """
        try:
            nbytes, ancillary, flags, _ = self._receive_into(self._buffers, _ANCILLARY_NBYTES, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # The peer closed without having read all of ours. The kernel says so once, ahead of what the peer had sent.
            return self.receive_nowait()
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        descriptors = _descriptors(ancillary) if ancillary else []
        try:
            if nbytes == 0:
                raise ChannelClosed("end of file")
            if (flags & _TRUNCATED and (flags & _CUT_SHORT or descriptors)) or len(descriptors) > 1:
                raise BadMessage("truncated, or more than one descriptor")
            message: In = self._decode(self._view[:nbytes])
        except (ChannelClosed, BadMessage):
            _close_all(descriptors)
            raise
        except UNREADABLE as error:
            _close_all(descriptors)
            raise BadMessage(str(error)) from error
        return message, descriptors[0] if descriptors else None


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_NBYTES])
    return list(found)


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
