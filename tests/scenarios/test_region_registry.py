"""The registry of clients' memory in a whole server: every process of it, and the deaths of some."""

import json
import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc

from shm.segment import SHARED_MEMORY_FOLDER, name_prefix
from tests.client_memory import ClientMemory, client_memory
from tests.scenarios.conftest import Serve
from tests.scenarios.faults.programs import successor, wait_for
from tests.scenarios.harness import Server

NUMBERS = struct.pack("<16i", *range(16))
ROUNDS = 20


@pytest.fixture
def memory() -> Iterator[ClientMemory]:
    with client_memory(4096) as memory:
        memory.view[:64] = NUMBERS
        yield memory


def ask(server: Server, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """On a connection of its own."""
    status, answer = server.request(method, path, None if body is None else json.dumps(body).encode())[:2]
    return status, json.loads(answer) if answer else None


def register(server: Server, name: str, key: str) -> tuple[int, Any]:
    body = {"key": key, "offset": 0, "byte_size": 4096}
    return ask(server, "POST", f"/v2/systemsharedmemory/region/{name}/register", body)


def unregister(server: Server, name: str) -> None:
    assert ask(server, "POST", f"/v2/systemsharedmemory/region/{name}/unregister")[0] == 200


def listed(server: Server) -> list[str]:
    status, regions = ask(server, "GET", "/v2/systemsharedmemory/status")
    assert status == 200
    return [region["name"] for region in regions]


def infer(server: Server, name: str) -> int:
    """The sum comes out right, or it is refused."""
    parameters = {"shared_memory_region": name, "shared_memory_byte_size": 64}
    inputs = [{"name": f"INPUT{i}", "datatype": "INT32", "shape": [1, 16], "parameters": parameters} for i in (0, 1)]
    status, answer = ask(server, "POST", "/v2/models/simple/infer", {"inputs": inputs})
    if status == 200:
        assert answer["outputs"][0]["data"] == [2 * i for i in range(16)]
    return status


def opened(server: Server, key: str) -> int:
    """How many descriptors of the server's processes lead there."""
    found = 0
    for pid in server.pids():
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found += key in os.readlink(path)
            except FileNotFoundError:
                pass
    return found


@pytest.mark.timeout(60)
def test_an_answer_holds_everywhere_at_once(serve: Serve, simple_repository: Path, memory: ClientMemory) -> None:
    """Two HTTP processes and gRPC: whichever one hears of it, the next request may reach any other."""
    server = serve(simple_repository, "--http-process-count=2")
    wait_for(server, lambda: len(server.program_pids("http", "http-2")) == 2)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        for number in range(ROUNDS):
            name = f"r{number}"
            if number % 2:
                assert register(server, name, memory.key) == (200, None)
            else:
                client.register_system_shared_memory(name, memory.key, 4096)
            for _ in range(4):
                assert infer(server, name) == 200
            assert client.get_system_shared_memory_status(name).regions[name].key == memory.key
            if number % 2:
                client.unregister_system_shared_memory(name)
            else:
                unregister(server, name)
            for _ in range(4):
                assert infer(server, name) == 404
            assert not client.get_system_shared_memory_status().regions
    wait_for(server, lambda: opened(server, memory.key) == 0)


@pytest.mark.timeout(60)
def test_regions_outlive_the_broker_and_a_frontend(serve: Serve, simple_repository: Path, memory: ClientMemory) -> None:
    """Even when their key is no more: the other processes have them open."""
    server = serve(simple_repository)
    assert register(server, "mine", memory.key) == (200, None)
    memory.unlink()
    for name in ("broker", "http", "broker"):
        killed = server.program_pid(name)
        os.kill(killed, signal.SIGKILL)
        successor(server, name, killed)
        wait_for(server, server.ready)
        wait_for(server, lambda: listed(server) == ["mine"])
        assert infer(server, "mine") == 200
    assert register(server, "mine", memory.key)[0] == 400
    unregister(server, "mine")
    assert infer(server, "mine") == 404
    wait_for(server, lambda: opened(server, memory.key) == 0)


@pytest.mark.timeout(60)
def test_the_servers_own_memory_is_not_for_clients(serve: Serve, simple_repository: Path) -> None:
    server = serve(simple_repository)
    segments = [name for name in os.listdir(SHARED_MEMORY_FOLDER) if name.startswith(name_prefix())]
    assert segments
    alias = Path(SHARED_MEMORY_FOLDER, "innocent")
    os.link(Path(SHARED_MEMORY_FOLDER, segments[0]), alias)
    try:
        for key in (*segments, alias.name):
            for nbytes in (64, 1 << 40):
                body = {"key": f"/{key}", "byte_size": nbytes}
                assert ask(server, "POST", "/v2/systemsharedmemory/region/mine/register", body) == (
                    400,
                    {"error": "failed to register shared memory region 'mine': invalid args"},
                )
    finally:
        alias.unlink()
    assert not listed(server)
    assert server.ready()
