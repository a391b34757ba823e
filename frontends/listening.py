"""Ports of the protocols: taken before there is anything to serve, so that a port in use is known at once."""

import errno
import resource
import socket
from typing import Final

from conch.errors import Unavailable

#: descriptors for everything that is not a client's connection: workers, segments, sockets, logs
_RESERVED_DESCRIPTORS: Final = 512


def bind(address: str, port: int, reuse_port: bool) -> socket.socket:
    """A socket bound to ``address:port`` that does not listen yet: clients are refused.

    With ``reuse_port`` the sockets of several processes share the port, and the kernel deals out the clients among
    those that listen. All of them must ask for it and run as the same user: anybody else's port stays refused. Raises
    ``Unavailable``.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise Unavailable(f"cannot listen on '{address}': {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(where)
    except OSError as error:
        listener.close()
        raise _cannot_listen(address, port, error) from error
    return listener


def listen(listener: socket.socket) -> None:
    """Raises ``Unavailable``: two servers may have bound the port, and only one of them can listen."""
    try:
        listener.listen()
    except OSError as error:
        address, port = listener.getsockname()[:2]
        raise _cannot_listen(address, port, error) from error


def most_connections(wanted: int) -> int:
    """How many clients' connections a frontend may have open: ``wanted``, if there are descriptors for so many."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(descriptors - _RESERVED_DESCRIPTORS, descriptors // 2))


def _cannot_listen(address: str, port: int, error: OSError) -> Unavailable:
    if error.errno == errno.EADDRINUSE:
        return Unavailable(f"Socket '{address}:{port}' already in use")
    return Unavailable(f"cannot listen on '{address}:{port}': {error.strerror}")
