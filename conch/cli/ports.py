"""The ports of a server: whether they can be had before it starts, and whether they answer afterwards."""

import errno
import socket

from conch.cli.running import running_servers
from conch.settings import Settings


class CannotServe(Exception):
    """Why the server cannot be started; for people."""


def probe_ports(settings: Settings) -> None:
    """Raises ``CannotServe`` naming the server that has one of our ports. Frontends share their port among themselves,
    so they would share it with a stranger's too and never notice."""
    shared = {"http": settings.reuse_http_port, "grpc": settings.reuse_grpc_port}
    for endpoint, address, port in settings.endpoints():
        if not shared.get(endpoint):
            _probe(endpoint, address, port)


def _probe(endpoint: str, address: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise CannotServe(f"--{endpoint}-address {address}: {error.strerror}") from error
    for family, kind, protocol, _, location in found:
        with socket.socket(family, kind, protocol) as probe:
            # a connection in TIME_WAIT does not matter, a listener does
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(location)
            except OSError as error:
                others = [server for server in running_servers() if port in server.ports]
                holder = f": a server runs there already ({others[0].description})" if others else ""
                advice = ""
                if error.errno == errno.EADDRINUSE:
                    advice = f"; choose another --{endpoint}-port, or --allow-{endpoint}=false"
                raise CannotServe(f"cannot listen on {address}:{port}{holder} ({error.strerror}){advice}") from error


def answers(address: str, port: int) -> bool:
    """Whether a connection is accepted there."""
    # a server that listens on every address answers on the local one
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104
    try:
        socket.create_connection((address, port), 1).close()
    except OSError:
        return False
    return True
