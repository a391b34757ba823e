"""Processes that have no descriptor left: nobody dies or spins, what there is goes on, the rest is refused at once."""

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from conch.descriptors import RESERVED
from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.limits import no_descriptor, processor_s
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.watch import pids_of, watching
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model

#: answers with as many numbers as it is told
GENEROUS = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(each, "INPUT0").as_numpy()) for each in requests]

    def answer(self, count):
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", numpy.ones(count[0], numpy.int32))])
"""
LARGE = 3 << 20
IDLE_CLIENTS = 10_000
#: of one second, with nothing to do but what bystanders ask
IDLE_PROCESSOR_S = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("descriptors") / "models", "simple")
    write_victim(repository)
    write_model(repository, "generous", GENEROUS)
    with serving([repository], make_run_dir()) as running:
        assert say(running, "hello") == (200, "hello")
        yield running


def generous(connection: http.client.HTTPConnection, nbytes: int) -> tuple[int, int | str]:
    """Status, and how many bytes were answered, or the error's text."""
    tensor = {"name": "INPUT0", "shape": [1], "datatype": "INT32", "data": [nbytes // 4]}
    body = json.dumps({"inputs": [tensor], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]})
    connection.request("POST", "/v2/models/generous/infer", body)
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        return response.status, json.loads(content)["error"]
    return 200, len(content) - int(response.headers["Inference-Header-Content-Length"])


def refused(port: int) -> None:
    """A new client gets 503, or is cut off: at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = client.recv(1000)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 503 "), answer


def rests(pid: int) -> None:
    before_s = processor_s(pid)
    time.sleep(1.0)
    assert processor_s(pid) - before_s < IDLE_PROCESSOR_S


def get(connection: http.client.HTTPConnection, path: str) -> int:
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status


@pytest.mark.parametrize(("role", "path"), [("http", "/v2/health/ready"), ("metrics", "/metrics")])
def test_frontend(server: Server, role: str, path: str) -> None:
    port = server.http_port if role == "http" else server.metrics_port
    with watching(server) as watch:
        [pid] = pids_of(server, role)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as old:
            assert get(old, path) == 200
            with no_descriptor(pid):
                for _ in range(30):
                    refused(port)
                assert get(old, path) == 200

        def new() -> bool:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
                return get(connection, path) == 200

        watch.back_within(5, new)
    with no_descriptor(pid), socket.create_connection(("127.0.0.1", port)):
        rests(pid)


def test_ten_thousand_idle_clients(server: Server) -> None:
    """Those over the cap are told so at once, and whoever has a connection notices nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * IDLE_CLIENTS:
        pytest.skip("not so many descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with watching(server) as watch:
            with contextlib.ExitStack() as stack:
                for _ in range(IDLE_CLIENTS):
                    client = stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port), timeout=10))
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                assert client.recv(1000).startswith(b"HTTP/1.1 503 ")
                refused(server.http_port)
            watch.back_within(5, server.ready)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_http_frontend_cannot_open_what_a_worker_answers(server: Server) -> None:
    """The answer that needs a descriptor is refused, and no other."""
    client = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=15)
    with contextlib.closing(client), watching(server) as watch:
        assert generous(client, 4) == (200, 4)
        [pid] = pids_of(server, "http")
        with no_descriptor(pid):
            for _ in range(3):
                text = "the server has no descriptor left to read the answer with; try again later"
                assert generous(client, LARGE) == (503, text)
                assert generous(client, 4) == (200, 4)
        watch.back_within(5, lambda: generous(client, LARGE) == (200, LARGE))
        assert generous(client, 4) == (200, 4)


def test_grpc_frontend(server: Server) -> None:
    [pid] = pids_of(server, "grpc")
    with watching(server) as watch:
        with contextlib.closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as old:
            assert old.is_server_live()
            with no_descriptor(pid):
                for _ in range(30):
                    refused(server.grpc_port)
                with contextlib.closing(tritonclient.grpc.InferenceServerClient(server.grpc_url + "/")) as new:
                    with pytest.raises(InferenceServerException):
                        new.is_server_live(client_timeout=2)
                assert old.is_server_live()
                rests(pid)
            with contextlib.closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as new:
                watch.back_within(5, new.is_server_live)


def ask_over_grpc(server: Server) -> str:
    with contextlib.closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as client:
        tensor = tritonclient.grpc.InferInput("INPUT0", [1, 1], "BYTES")
        tensor.set_data_from_numpy(numpy.array([[b"hello"]], numpy.object_))
        try:
            result = client.infer("victim", [tensor], client_timeout=10)
        except InferenceServerException as error:
            return str(error.status())
        return str(result.as_numpy("OUTPUT0")[0, 0].decode())


def test_worker(server: Server) -> None:
    """It cannot answer a requester that it does not know, nor read what lies in new memory."""
    with watching(server) as watch:
        pid = watch.worker_pid("victim")
        with no_descriptor(pid):
            assert ask_over_grpc(server) == "StatusCode.UNAVAILABLE"
            status, text = say(server, LARGE * "x")
            assert (status, text[-17:]) == (503, "; try again later"), text
            assert say(server, "hello") == (200, "hello")
            rests(pid)
        assert say(server, LARGE * "x")[0] == 200
        assert ask_over_grpc(server) == "hello"


def test_broker(server: Server) -> None:
    """What it keeps back is enough for those who come to look at it."""
    [pid] = pids_of(server, "broker")
    with watching(server) as watch:
        with no_descriptor(pid, more=RESERVED - 20):
            worker = watch.worker_pid("victim")
            os.kill(worker, signal.SIGKILL)
            watch.worker_pid("victim", other_than=worker)
            server.status()
            rests(pid)
        watch.back_within(10, lambda: say(server, "hello") == (200, "hello"))
        assert pids_of(server, "broker") == [pid]
