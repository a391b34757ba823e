"""More than a thousand clients that drip their requests, or take their answers byte by byte, all at once: ordinary
clients beside them get right answers without a delay, and the slow ones are cut off at the limits."""

import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.differential.grpc_cases import pb
from tests.frontends.grpc.http2 import PREFACE, frame
from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.watch import memory_nbytes, pids_of, watching
from tests.scenarios.harness import Server, serving
from tests.scenarios.load import Load
from tests.scenarios.models import write_model
from tests.security import wire
from tests.security.conftest import check_answers

MIB = 1 << 20
#: what an ordinary client may wait on a machine that does other things as well
LONGEST_WAIT_S = 4.0
#: the limits are 10 s, looked at every half second
CUT_OFF_WITHIN_S = 25.0
#: ends a call, not the connection
TOO_SLOW = b"the request arrives too slowly"
CLIENTS = {"headers": 500, "bodies": 500, "large bodies": 100, "prefaces": 250, "messages": 250}
#: of answers of 1 MiB, on each protocol
READERS = 100
#: each needs a descriptor here, and one in the server
DESCRIPTORS = 4096

#: a string of as many MiB as it is told
LARGE = """
class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUTPUT0", numpy.full([int(tensor.as_numpy()[0]) << 20], b"x", dtype=numpy.uint8))]
            )
            for request in requests
            for tensor in request.inputs()
        ]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("slow") / "models", "simple")
    write_model(repository, "large", LARGE.replace('b"x"', "120"), "UINT8", [-1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        with serving([repository], make_run_dir()) as started:
            yield started
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def head_of(nbytes: int) -> bytes:
    return wire.head("/v2/models/simple/infer", f"Content-Length: {nbytes}")


def large_http(mib: int) -> bytes:
    body = json.dumps(
        {
            "inputs": [{"name": "INPUT0", "shape": [1], "datatype": "UINT8", "data": [mib]}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    return wire.head("/v2/models/large/infer", f"Content-Length: {len(body)}") + body


def large_grpc(mib: int) -> bytes:
    message = pb.ModelInferRequest(model_name="large", raw_input_contents=[bytes([mib])])
    message.inputs.add(name="INPUT0", datatype="UINT8", shape=[1])
    data = frame(wire.DATA, wire.END_STREAM, 1, wire.prefixed(message.SerializeToString()))
    return PREFACE + wire.setting(4, 0) + wire.begin(1) + data


class Slow:
    """``count`` clients that send ``begin``, and then one byte of ``rest`` a second, or read one a second if there is
    none."""

    def __init__(self, port: int, count: int, begin: bytes, rest: bytes = b"") -> None:
        self.rest = rest
        self.clients: list[socket.socket] = []
        #: what they were told, once they are cut off
        self.told: list[bytes] = []
        for _ in range(count):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(10)
            client.connect(("127.0.0.1", port))
            client.sendall(begin)
            client.setblocking(False)
            self.clients.append(client)

    def turn(self, second: int) -> None:
        for client in list(self.clients):
            with contextlib.suppress(BlockingIOError):
                try:
                    if self.rest and second < len(self.rest):
                        client.send(self.rest[second : second + 1])
                    data = client.recv(1 if not self.rest else 1000)
                except ConnectionError:
                    data = b""
                if self.rest and data:
                    self.told.append(data)
                if not data or TOO_SLOW in data:
                    self.clients.remove(client)
                    client.close()

    def close(self) -> None:
        for client in self.clients:
            client.close()


def hold_as_many_answers(server: Server) -> None:
    """The worker keeps the memory that this takes for a minute: it has it before the test as well."""
    readers = Slow(server.http_port, READERS, large_http(1)), Slow(server.grpc_port, READERS, large_grpc(1))
    for reader in readers:
        for client in reader.clients:
            client.setblocking(True)
            assert client.recv(1)
    for reader in readers:
        reader.close()


@pytest.mark.timeout(120)
def test_all_at_once(server: Server) -> None:
    head = b"GET /v2/health/live HTTP/1.1\r\nX-Slow: " + b"a" * 1000
    hold_as_many_answers(server)
    with contextlib.ExitStack() as stack:
        stack.enter_context(watching(server, longest_wait_s=LONGEST_WAIT_S, settles_within_s=10))
        load = stack.enter_context(Load(server.http_port, clients=8))

        def slow(port: int, count: int, begin: bytes, rest: bytes = b"") -> Slow:
            found = Slow(port, count, begin, rest)
            stack.callback(found.close)
            return found

        begun = time.monotonic()
        message = frame(wire.DATA, 0, 1, wire.prefixed(bytes(10_000)))
        sent = {
            "headers": (server.http_port, head[:4], head[4:]),
            "bodies": (server.http_port, head_of(60_000) + b"{", b" " * 1000),
            "large bodies": (server.http_port, head_of(60 * MIB) + b"{", b" " * 1000),
            "prefaces": (server.grpc_port, b"", PREFACE[:20]),
            "messages": (server.grpc_port, PREFACE + wire.begin(1), message),
        }
        dripping = {name: slow(port, CLIENTS[name], begin, rest) for name, (port, begin, rest) in sent.items()}
        reading = {
            "HTTP": slow(server.http_port, READERS, large_http(1)),
            "gRPC": slow(server.grpc_port, READERS, large_grpc(1)),
        }
        second = 0
        while any(each.clients for each in dripping.values()):
            for each in (*dripping.values(), *reading.values()):
                each.turn(second)
            check_answers(server)  # on new connections
            second += 1
            time.sleep(max(0.0, begun + second - time.monotonic()))
            left = {name: len(each.clients) for name, each in dripping.items()}
            assert time.monotonic() - begun < CUT_OFF_WITHIN_S, str(left)
            if time.monotonic() - begun < 8:
                assert left == CLIENTS
        assert len(reading["HTTP"].clients) == READERS  # they have half a minute
        for name in ("headers", "bodies", "large bodies"):
            told = dripping[name].told
            assert len(told) == CLIENTS[name] and all(each.startswith(b"HTTP/1.1 408 ") for each in told), told[:3]
        assert sum(TOO_SLOW in told for told in dripping["messages"].told) == CLIENTS["messages"]
    load.check()
    assert load.longest_wait_s() < LONGEST_WAIT_S
    for role in ("http", "grpc", "broker"):
        (pid,) = pids_of(server, role)
        assert memory_nbytes(pid) < 250 * MIB, role
