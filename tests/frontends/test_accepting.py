"""Accepting clients while the process has no descriptor left for them."""

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator
from typing import cast

import pytest

from frontends.accepting import Acceptor
from frontends.listening import most_connections
from tests.frontends.fakes import eventually, on_uvloop

REFUSAL = b"come back later"


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def echoed(client: socket.socket, text: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, text)
    return await loop.sock_recv(client, 100)


async def connected(client: socket.socket, address: tuple[str, int]) -> socket.socket:
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, address)
    return client


@on_uvloop
async def test_no_descriptor_left(caplog: pytest.LogCaptureFixture) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    address = listener.getsockname()
    acceptor = Acceptor(listener, Echo, None, REFUSAL)
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.socket()) for _ in range(100)]
        first = await connected(clients[0], address)
        assert await echoed(first, b"one") == b"one"
        with no_descriptor_left():
            for client in clients[1:80]:
                await connected(client, address)
                assert await loop.sock_recv(client, 100) == REFUSAL
                assert await loop.sock_recv(client, 100) == b""
            assert await echoed(first, b"two") == b"two"
        assert await echoed(await connected(clients[80], address), b"three") == b"three"
        assert caplog.text.count("cannot be accepted") == 1
    acceptor.close()
    acceptor.close()


@on_uvloop
async def test_not_even_one_to_refuse_with() -> None:
    """Nobody is accepted, and the loop does not spin; who waited is served afterwards."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    acceptor = Acceptor(listener, Echo, None, REFUSAL)
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        with no_descriptor_left():
            os.close(acceptor._spare)
            acceptor._spare = -1
            taken = os.open(os.devnull, os.O_RDONLY)
            await connected(client, listener.getsockname())
            await eventually(lambda: acceptor._resumption is not None)
            used_s = time.process_time()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await loop.sock_recv(client, 100)
            assert time.process_time() - used_s < 0.25
        os.close(taken)
        assert await echoed(client, b"one") == b"one"
    acceptor.close()


def test_connections_fit_the_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = {}
    try:
        for descriptors in (200, 1024, 4096):
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
            found[descriptors] = most_connections(2000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == {200: 100, 1024: 512, 4096: 2000}
