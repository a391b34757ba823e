"""Clients that go in the middle of anything: what they had asked is not run, or stopped; what it held is given back."""

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.differential.grpc_cases import pb
from tests.frontends.grpc.http2 import PREFACE, frame
from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.models import say
from tests.scenarios.faults.watch import memory_nbytes, pids_of, watching
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model
from tests.security import wire

MIB = 1 << 20
#: four of the large answers fit
WORKER_ARENA_NBYTES = 80 * MIB
#: buffers of uploads that a frontend keeps for the next ones, and what the C library does not give back
KEPT_NBYTES = 100 * MIB

# Does what its string says, and writes down beside it what it has run.
DIARY = """
class TritonPythonModel:
    def initialize(self, args):
        self.diary = os.path.join(args["model_repository"], "diary")

    def write(self, line):
        with open(self.diary, "a") as diary:
            diary.write(line + "\\n")

    def execute(self, requests):
        return [self.obey(request) for request in requests]

    def obey(self, request):
        order = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy().reshape(-1)[0].decode()
        word, _, argument = order.partition(" ")
        self.write(order[:20])
        answer = order.encode()
        if word == "sleep":
            time.sleep(float(argument))
        elif word == "large":
            answer = b"x" * (int(argument) << 20)
        elif word == "wait":
            until = time.monotonic() + 20
            while time.monotonic() < until and not request.is_cancelled():
                time.sleep(0.005)
            self.write("cancelled" if request.is_cancelled() else "not cancelled")
        array = numpy.array([[answer]], dtype=numpy.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", array)])
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_examples(tmp_path_factory.mktemp("gone") / "models", "simple")
    write_model(folder, "diary", DIARY, "STRING", [1, 1])
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    with serving([repository], make_run_dir(), f"--worker-arena-nbytes={WORKER_ARENA_NBYTES}") as started:
        yield started


@pytest.fixture
def diary(repository: Path) -> Callable[[], list[str]]:
    """What the model has run in this test."""
    path = repository / "diary" / "diary"
    path.write_text("")
    return lambda: path.read_text().splitlines()


def http_request(text: str) -> bytes:
    tensor = {"name": "INPUT0", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    body = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return wire.head("/v2/models/diary/infer", f"Content-Length: {len(body)}") + body


def grpc_request(text: str, path: str = wire.INFER) -> bytes:
    """On a connection of its own, whose client takes whatever comes."""
    message = pb.ModelInferRequest(model_name="diary")
    message.inputs.add(name="INPUT0", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(text.encode())
    windows = wire.setting(4, (1 << 31) - 1) + wire.window_update(0, 0x6FFF0000)
    data = frame(wire.DATA, wire.END_STREAM, 1, wire.prefixed(message.SerializeToString()))
    return PREFACE + windows + wire.begin(1, path) + data


REQUESTS: dict[str, Callable[[Server, str], tuple[int, bytes]]] = {
    "HTTP": lambda server, text: (server.http_port, http_request(text)),
    "gRPC": lambda server, text: (server.grpc_port, grpc_request(text)),
    "gRPC stream": lambda server, text: (server.grpc_port, grpc_request(text, wire.STREAM_INFER)),
}


@contextlib.contextmanager
def asking(server: Server, protocol: str, text: str, count: int = 1) -> Iterator[list[socket.socket]]:
    """So many clients, each with a connection and a request. They go at the end, without a word."""
    port, sent = REQUESTS[protocol](server, text)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=15))
            client.sendall(sent)
            clients.append(client)
        yield clients


def is_idle(server: Server) -> bool:
    rows = server.status()["models"]
    return not any(row["queued"] or row["running"] for row in rows if row["model"] == "diary")


def failures(server: Server) -> int:
    """Of requests that were cancelled."""
    with socket.create_connection(("127.0.0.1", server.metrics_port), timeout=10) as connection:
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b""))
    found = [line for line in text.decode().splitlines() if 'model="diary"' in line and 'reason="CANCELED"' in line]
    return int(float(found[0].rpartition(" ")[2]))


ANNOUNCED_NBYTES = 64 * MIB
SENT_NBYTES = 24 * MIB
UPLOADS = 8


def http_upload() -> bytes:
    return wire.head("/v2/models/diary/infer", f"Content-Length: {ANNOUNCED_NBYTES}") + b" " * SENT_NBYTES


def chunked_upload() -> bytes:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    return wire.head("/v2/models/diary/infer", "Transfer-Encoding: chunked") + chunk * (SENT_NBYTES // 65536)


def grpc_upload() -> bytes:
    length = b"\0" + ANNOUNCED_NBYTES.to_bytes(4, "big")
    frames = frame(wire.DATA, 0, 1, bytes(16384)) * (SENT_NBYTES // 16384)
    return PREFACE + wire.begin(1) + frame(wire.DATA, 0, 1, length) + frames


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("frontend", "sent"),
    [("http", http_upload), ("http", chunked_upload), ("grpc", grpc_upload)],
    ids=["HTTP", "HTTP in chunks", "gRPC"],
)
def test_in_the_middle_of_an_upload(
    server: Server, diary: Callable[[], list[str]], frontend: str, sent: Callable[[], bytes]
) -> None:
    (pid,) = pids_of(server, frontend)
    port = server.http_port if frontend == "http" else server.grpc_port
    before = memory_nbytes(pid)
    with watching(server, longest_wait_s=5) as watch:
        with contextlib.ExitStack() as stack:
            for _ in range(UPLOADS):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=15))
                client.sendall(sent())
            watch.back_within(10, lambda: memory_nbytes(pid) - before > UPLOADS * SENT_NBYTES * 3 // 4)
        watch.back_within(10, lambda: memory_nbytes(pid) - before < KEPT_NBYTES)
    assert diary() == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("protocol", REQUESTS)
def test_in_the_middle_of_a_download(server: Server, diary: Callable[[], list[str]], protocol: str) -> None:
    """Two at a time, six times: if any were kept, the worker would have no memory for the last."""
    with watching(server, longest_wait_s=5):
        for _ in range(6):
            with asking(server, protocol, "large 16", 2) as clients:
                for client in clients:
                    receive(client, 20_000)
    assert diary() == ["large 16"] * 12
    with asking(server, protocol, "large 16") as (client,):
        receive(client, 16 * MIB)


def receive(client: socket.socket, nbytes: int) -> None:
    """At least so many bytes."""
    while nbytes > 0:
        data = client.recv(min(nbytes, MIB))
        assert data, f"{nbytes} bytes are missing"
        nbytes -= len(data)


@pytest.mark.timeout(60)
def test_while_requests_wait(server: Server, diary: Callable[[], list[str]]) -> None:
    """They leave the queue at once, and the model never hears of them."""
    cancelled = failures(server)
    with watching(server) as watch, contextlib.ExitStack() as stack:
        with asking(server, "HTTP", "wait") as (first,):
            watch.back_within(5, lambda: diary() == ["wait"])
            for protocol in REQUESTS:
                stack.enter_context(asking(server, protocol, "sleep 0", 10))
            watch.back_within(10, lambda: queued(server) == 30)
            stack.close()  # all of them go
            watch.back_within(10, lambda: queued(server) == 0)
            assert diary() == ["wait"]
            first.close()
        watch.back_within(5, lambda: is_idle(server))
        assert say(server, "hello", "diary")[0] == 200
        watch.back_within(10, lambda: failures(server) >= cancelled + 30)
    assert diary() == ["wait", "cancelled", "hello"]


def queued(server: Server) -> int:
    return sum(int(row["queued"]) for row in server.status()["models"] if row["model"] == "diary")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("protocol", REQUESTS)
def test_while_a_request_runs(server: Server, diary: Callable[[], list[str]], protocol: str) -> None:
    """The model can see that nobody waits any more; when it returns, its place is free."""
    with watching(server) as watch:
        with asking(server, protocol, "wait"):
            watch.back_within(5, lambda: diary() == ["wait"])
        watch.back_within(5, lambda: diary() == ["wait", "cancelled"])
        assert say(server, "hello", "diary") == (200, "hello")


@pytest.mark.timeout(60)
def test_with_a_hundred_requests_pipelined(server: Server, diary: Callable[[], list[str]]) -> None:
    """What has not been taken up is not run."""
    with watching(server) as watch:
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=15) as client:
            client.sendall(http_request("sleep 0.05") * 100)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
        watch.back_within(5, lambda: is_idle(server))
        ran = len(diary())
        assert 1 <= ran < 20, ran
        assert say(server, "hello", "diary") == (200, "hello")
    assert len(diary()) == ran + 1


def test_nothing_has_grown(server: Server) -> None:
    """After all of these."""
    for role in ("http", "grpc", "broker"):
        (pid,) = pids_of(server, role)
        assert memory_nbytes(pid) < 250 * MIB, role
