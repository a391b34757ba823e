"""Clients that do to their shared memory whatever they can while requests use it. They hurt themselves: a worker of the
model that they asked may die of it and comes back, nobody else notices."""

import json
import os
import random
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from shm.segment import SHARED_MEMORY_FOLDER, name_prefix
from tests.client_memory import ClientMemory, client_memory
from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.watch import holdings, pids_of, watching
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import ECHO, write_model

NBYTES = 1 << 16
TENSOR_NBYTES = 1 << 14
#: for each way to be hostile
HOSTILE_S = 1.0
SYSTEM = "/v2/systemsharedmemory"
REGION = "mine"
#: what somebody may be told who does that; anything else would blame the server
CLEAR = (
    "was killed by SIGBUS",  # in the middle of a use that may not be repeated
    "is smaller than when it was registered",
    "is not registered any more",
    "Unable to find shared memory region",
    "Invalid offset",
    "cannot be mapped",
    "Unable to open shared memory region",
    "already in manager",
    "invalid args",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("hostile") / "models", "simple")
    write_model(repository, "numbers", ECHO, "UINT8", instances=2)
    with serving([repository], make_run_dir()) as started:
        with client_memory(NBYTES) as memory:  # with their first requests, processes open what they keep
            assert register(started, memory.key, NBYTES)[0] == 200
            with Asking(started) as asking:
                while asking.answers.total() < 100:
                    time.sleep(0.01)
            assert set(asking.answers) == {"right"}
            assert started.request("POST", f"{SYSTEM}/unregister")[0] == 200
        yield started


@pytest.fixture
def memory(server: Server) -> Iterator[ClientMemory]:
    """All of it is registered, and anything that is registered is unregistered after the test."""
    with client_memory(NBYTES) as memory:
        assert register(server, memory.key, NBYTES)[0] == 200
        yield memory
        assert server.request("POST", f"{SYSTEM}/unregister")[0] == 200


def register(server: Server, key: str, nbytes: int, offset: int = 0, name: str = REGION) -> tuple[int, str]:
    body = json.dumps({"key": key, "offset": offset, "byte_size": nbytes}).encode()
    status, text = server.request("POST", f"{SYSTEM}/region/{name}/register", body)
    return status, text.decode()


def place(offset: int, nbytes: int = TENSOR_NBYTES) -> dict[str, Any]:
    return {"shared_memory_region": REGION, "shared_memory_offset": offset, "shared_memory_byte_size": nbytes}


def ask_http(server: Server, source: int, target: int | None) -> tuple[bool, str]:
    tensor = {"name": "INPUT0", "datatype": "UINT8", "shape": [TENSOR_NBYTES], "parameters": place(source)}
    output = {"name": "OUTPUT0", "parameters": {"binary_data": True} if target is None else place(target)}
    body = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    status, text = server.request("POST", "/v2/models/numbers/infer", body)
    return status == 200, text[:500].decode(errors="replace")


class Asking:
    """Clients that send requests with ``REGION`` all the time, over HTTP and gRPC, each on a connection of its own. One
    more sends its tensors to the same model: nothing may ever happen to those."""

    def __init__(self, server: Server) -> None:
        self.answers: Counter[str] = Counter()
        self.unclear: list[str] = []
        self._server = server
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(ask, target))
            for ask in (self._http, self._grpc)
            for target in (None, TENSOR_NBYTES // 2, 3 * TENSOR_NBYTES)  # the second overlaps the input
        ]
        self._threads.append(threading.Thread(target=self._run_innocent))
        self._innocent = 0

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        assert not self.unclear, (self.unclear[:3], self.answers)
        assert self.answers.total() > 0 and self._innocent > 0

    def _run_innocent(self) -> None:
        tensor = {"name": "INPUT0", "datatype": "UINT8", "shape": [3], "data": [1, 2, 3]}
        body = json.dumps({"inputs": [tensor]}).encode()
        while not self._over.is_set():
            status, text = self._server.request("POST", "/v2/models/numbers/infer", body)
            if status != 200 or json.loads(text)["outputs"][0]["data"] != [1, 2, 3]:
                self.unclear.append(f"an innocent client: {status} {text.decode()}")
            self._innocent += 1

    def _run(self, ask: Callable[[int | None], tuple[bool, str]], target: int | None) -> None:
        while not self._over.is_set():
            good, text = ask(target)
            known = "right" if good else next((part for part in CLEAR if part in text), "")
            self.answers[known] += 1
            if not known:
                self.unclear.append(text)

    def _http(self, target: int | None) -> tuple[bool, str]:
        try:
            return ask_http(self._server, 0, target)
        except OSError as error:
            return False, repr(error)

    def _grpc(self, target: int | None) -> tuple[bool, str]:
        request = pb.ModelInferRequest(model_name="numbers")
        tensor = request.inputs.add(name="INPUT0", datatype="UINT8", shape=[TENSOR_NBYTES])
        tensors = [(tensor, 0)]
        if target is not None:
            tensors.append((request.outputs.add(name="OUTPUT0"), target))
        for each, offset in tensors:
            for key, value in place(offset).items():
                if isinstance(value, str):
                    each.parameters[key].string_param = value
                else:
                    each.parameters[key].int64_param = value
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._server.grpc_url, options) as channel:
            try:
                channel.unary_unary(SERVICE + "ModelInfer")(request.SerializeToString(), timeout=15)
            except grpc.RpcError as error:
                return False, f"{error.code().name}: {error.details()}"
        return True, ""


def shrink(server: Server, memory: ClientMemory) -> None:
    for nbytes in (0, NBYTES, 4096, NBYTES, TENSOR_NBYTES - 1, NBYTES):
        memory.resize(nbytes)


def grow(server: Server, memory: ClientMemory) -> None:
    for nbytes in (2 * NBYTES, 1 << 30, 1 << 40, NBYTES):
        memory.resize(nbytes)


def unlink(server: Server, memory: ClientMemory) -> None:
    path = f"{SHARED_MEMORY_FOLDER}{memory.key}"
    os.rename(path, path + "-gone")
    Path(path).write_bytes(b"another file")
    os.rename(path + "-gone", path)


def unregister(server: Server, memory: ClientMemory) -> None:
    assert server.request("POST", f"{SYSTEM}/region/{REGION}/unregister")[0] == 200
    assert register(server, memory.key, NBYTES)[0] == 200


def register_another_size(server: Server, memory: ClientMemory) -> None:
    for nbytes in (4096, NBYTES - 4096, NBYTES):
        assert server.request("POST", f"{SYSTEM}/region/{REGION}/unregister")[0] == 200
        assert register(server, memory.key, nbytes)[0] == 200


def register_another_key(server: Server, memory: ClientMemory) -> None:
    with client_memory(NBYTES) as other:
        for key in (other.key, memory.key):
            assert server.request("POST", f"{SYSTEM}/unregister")[0] == 200
            assert register(server, key, NBYTES)[0] == 200
            other.resize(random.choice((0, 100, NBYTES)))


WAYS = {way.__name__: way for way in (shrink, grow, unlink, unregister, register_another_size, register_another_key)}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", WAYS)
def test_while_requests_use_it(server: Server, memory: ClientMemory, way: str) -> None:
    """In a loop. Right answers or clear ones; the model's workers may die of it, and come back."""
    lasting = {role: pids_of(server, role) for role in ("broker", "launcher", "http", "grpc", "metrics")}
    with watching(server, settles_within_s=10) as watch:
        with Asking(server) as asking:
            until = time.monotonic() + HOSTILE_S
            while time.monotonic() < until:
                WAYS[way](server, memory)
        asking.check()
        memory.resize(NBYTES)
        unregister(server, memory)
        memory.view[:TENSOR_NBYTES] = bytes(range(256)) * (TENSOR_NBYTES // 256)
        watch.back_within(5, lambda: ask_http(server, 0, 2 * TENSOR_NBYTES)[0])
        assert memory.view[2 * TENSOR_NBYTES : 3 * TENSOR_NBYTES] == memory.view[:TENSOR_NBYTES]
    print(asking.answers)
    assert {role: pids_of(server, role) for role in lasting} == lasting
    if way in ("grow", "unlink"):  # these are nobody's business
        assert set(asking.answers) == {"right"}


def test_input_and_output_overlap(server: Server, memory: ClientMemory) -> None:
    """The output is what the input was; nothing beside it is written."""
    with watching(server):
        for target in (0, 1, 100, TENSOR_NBYTES - 1, TENSOR_NBYTES):
            data = random.Random(target).randbytes(NBYTES)
            memory.view[:] = data
            assert ask_http(server, 0, target)[0]
            assert memory.view[target : target + TENSOR_NBYTES] == data[:TENSOR_NBYTES]
            assert memory.view[target + TENSOR_NBYTES :] == data[target + TENSOR_NBYTES :]
            assert memory.view[:target] == data[:target]


def segments() -> list[str]:
    return [name for name in os.listdir(SHARED_MEMORY_FOLDER) if name.startswith(name_prefix())]


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.timeout(60)
def test_keys_of_another_kind(server: Server) -> None:
    """Nothing but a regular file in the folder itself is opened, and none of the server's own under any name."""
    own = segments()
    assert own
    name = f"client-{uuid.uuid4().hex}"
    path = Path(SHARED_MEMORY_FOLDER, name)
    keys = ["", "/", "//", ".", "..", "/.", "/..", "x" * 300, "/" + "x" * 255, "a\0b", "\u2024\u2024/x", "%2e%2e"]
    keys += ["/dev/shm/../etc/passwd", "/../etc/passwd", "../../etc/passwd", "/etc/passwd", "/proc/self/mem", "/a/../b"]
    keys += [spelling.format(segment) for segment in own[:2] for spelling in OWN]
    made: dict[str, Callable[[], Any]] = {
        "FIFO": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link to a file": lambda: path.symlink_to("/etc/passwd"),
        "link to a segment": lambda: path.symlink_to(f"{SHARED_MEMORY_FOLDER}/{own[0]}"),
        "hard link to a segment": lambda: os.link(f"{SHARED_MEMORY_FOLDER}/{own[0]}", path),
        "socket": lambda: bind(path),
    }
    if os.geteuid() == 0:
        made["device"] = lambda: os.mknod(path, 0o20666, os.makedev(1, 5))
    with watching(server), grpc.insecure_channel(server.grpc_url) as channel:
        before = holdings(server)["broker"].descriptors

        def refused(key: str) -> None:
            status, text = register(server, key, 64)
            assert status in (400, 500) and "internal error" not in text, (key, status, text)
            request = pb.SystemSharedMemoryRegisterRequest(name=REGION, key=key, byte_size=64).SerializeToString()
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary(SERVICE + "SystemSharedMemoryRegister")(request, timeout=10)
            assert raised.value.code().name in ("INVALID_ARGUMENT", "INTERNAL"), key

        for key in keys:
            refused(key)
        for make in made.values():
            make()
            try:
                refused(f"/{name}")
            finally:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        assert json.loads(server.request("GET", f"{SYSTEM}/status")[1]) == []
        assert holdings(server)["broker"].descriptors <= before + 1


#: spellings of the server's own segments
OWN = ("{}", "/{}", "//{}", "./{}", "/./{}", "/dev/shm/{}", "../shm/{}", "%2f{}", "{}/", "{}\0", "/{}\0x")
