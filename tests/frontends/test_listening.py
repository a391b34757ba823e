import socket

import pytest

from conch.errors import Unavailable
from frontends.listening import bind, listen

ADDRESS = "127.0.0.1"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ADDRESS, port)) == 0


def test_bind() -> None:
    with bind(ADDRESS, 0, reuse_port=False) as listener:
        port = listener.getsockname()[1]
        assert not listens(port)
        with bind(ADDRESS, port, reuse_port=False) as second:
            listen(listener)
            with pytest.raises(Unavailable, match=f"Socket '{ADDRESS}:{port}' already in use"):
                listen(second)
        for reuse_port in (False, True):
            with pytest.raises(Unavailable, match="already in use"):
                bind(ADDRESS, port, reuse_port)
    bind(ADDRESS, port, reuse_port=True).close()
    with pytest.raises(Unavailable, match=r"cannot listen on '203\.0\.113\.1:"):
        bind("203.0.113.1", 8000, reuse_port=False)


def test_shared_port() -> None:
    """Those who asked for it share the port; nobody else gets in."""
    with bind(ADDRESS, 0, reuse_port=True) as first:
        port = first.getsockname()[1]
        listen(first)
        with bind(ADDRESS, port, reuse_port=True) as second:
            listen(second)
            with pytest.raises(Unavailable, match="already in use"):
                bind(ADDRESS, port, reuse_port=False)
        assert listens(port)
