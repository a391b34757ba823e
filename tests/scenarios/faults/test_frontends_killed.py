"""A frontend is killed or stopped: only connections that were open on it notice, and what it held is reclaimed."""

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from conch.cli.ports import answers
from conch.protos import load_service_pb2
from conch.run_dir import RunDir
from tests.processes import is_gone
from tests.scenarios.conftest import Serve, copy_examples
from tests.scenarios.decoupled import Stream, telling, text_of, write_decoupled_models
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.programs import BROKEN, kill, kill_and_wait, load_of, stopped, successor, wait_for
from tests.scenarios.faults.traffic import asking_over_grpc
from tests.scenarios.faults.watch import pids_of, watching, workers
from tests.scenarios.harness import Server, orphans, serving
from tests.scenarios.load import Load
from tests.scenarios.malformed_cases import SIMPLE, request
from tests.scenarios.models import write_model

pb: Any = load_service_pb2()

# As many bytes as its input says.
LARGE = """
class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUTPUT0", numpy.zeros(int(r.inputs()[0].as_numpy()[0]), numpy.int32))]
            )
            for r in requests
        ]
"""
LARGE_NBYTES = 8 << 20
FRONTENDS, ROUNDS = 5, 3


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = copy_examples(tmp_path_factory.mktemp("frontends") / "models", "simple")
    write_victim(repository)
    write_decoupled_models(repository)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    """One process of each frontend."""
    with serving([repository], make_run_dir()) as running:
        yield running


@pytest.fixture(scope="module")
def doubled(repository: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    """Two processes of HTTP and of gRPC."""
    with serving([repository], make_run_dir(), "--http-process-count=2", "--grpc-process-count=2") as running:
        wait_for(running, lambda: has_started(running, "http", 2) and has_started(running, "grpc", 2))
        yield running


def has_started(server: Server, role: str, times: int) -> bool:
    """Whether processes of this role have begun to listen this often."""
    logs = RunDir(server.run_dir).logs.glob(f"{role}*.log")
    return sum(log.read_text().count("Started ") for log in logs) == times


def asks_all_right(server: Server, count: int = 20) -> bool:
    return all(server.request("POST", SIMPLE, request())[0] == 200 for _ in range(count))


@pytest.mark.timeout(60)
def test_http_killed(server: Server) -> None:
    """Each client loses at most the request that it was waiting for, and then finds nobody for a while."""
    before = workers(server)
    with watching(server, bystanders=False), asking_over_grpc(server) as others:
        others.wait_for_answer()
        with Load(server.http_port, clients=4) as load:
            load.wait_for_answers(0, 50, timeout_s=5)
            kill_and_wait(server, "http")
            wait_for(server, server.ready)
            load.wait_for_answers(time.monotonic(), 50, timeout_s=10)
        others.wait_for_answer()
    assert load.problems() and all(problem.startswith(BROKEN) for problem in load.problems()), load.problems()[:5]
    assert not others.problems
    assert workers(server) == before


@pytest.mark.timeout(60)
def test_grpc_killed(server: Server) -> None:
    """HTTP does not notice. Its clients are told that it is unavailable, and come back by themselves."""
    before = workers(server)
    with watching(server), asking_over_grpc(server) as asked:
        asked.wait_for_answer()
        kill_and_wait(server, "grpc")
        asked.wait_for_answer()
    assert asked.problems and all("StatusCode.UNAVAILABLE" in problem for problem in asked.problems)
    assert workers(server) == before


@pytest.mark.timeout(60)
def test_metrics_killed(server: Server) -> None:
    """Nobody else notices, and the counts go on: the broker has them."""
    with watching(server):
        assert say(server, "hello") == (200, "hello")
        former = kill(server, "metrics")
        successor(server, "metrics", former)
        wait_for(server, lambda: answers("127.0.0.1", server.metrics_port))
        page = urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10).read()
    counted = next(
        line for line in page.decode().splitlines() if line.startswith('nv_inference_request_success{model="victim"')
    )
    assert float(counted.rpartition(" ")[2]) >= 1


@pytest.mark.timeout(60)
def test_one_of_two_killed(doubled: Server) -> None:
    """Clients of the dead one lose one request each, and find its sibling at once. Streams of the sibling go on."""
    server = doubled
    with watching(server, bystanders=False):
        with Load(server.http_port, clients=6) as load:
            load.wait_for_answers(0, 50, timeout_s=5)
            former = kill(server, "http")
            killed_s = time.monotonic()
            wait_for(server, lambda: is_gone(former))
            assert asks_all_right(server)
            load.wait_for_answers(killed_s, 50, timeout_s=10)
            successor_is_there(server, "http")
            load.wait_for_answers(time.monotonic(), 50, timeout_s=10)
        problems = load.problems()
        assert len(problems) <= 6 and all(problem.startswith(BROKEN) for problem in problems), problems
        with ExitStack() as stack:
            clients = [stack.enter_context(asking_over_grpc(server)) for _ in range(4)]
            for client in clients:
                client.wait_for_answer()
            kill(server, "grpc")
            for client in clients:
                client.wait_for_answer()
            successor_is_there(server, "grpc")
        for client in clients:
            assert len(client.problems) <= 2, client.problems
            assert all("StatusCode.UNAVAILABLE" in problem for problem in client.problems), client.problems


def successor_is_there(server: Server, role: str) -> None:
    wait_for(server, lambda: len(pids_of(server, role)) == 2)


@pytest.mark.timeout(60)
def test_what_a_dead_frontend_had_asked(server: Server) -> None:
    """What it had queued vanishes, what runs is told that nobody waits for it; a stream stops to be answered."""
    with watching(server, bystanders=False), ThreadPoolExecutor(12) as clients:
        with Stream(server.grpc_url, telling("big 1000")) as stream:
            assert text_of(stream.answer())
            kill(server, "grpc")
            with pytest.raises(grpc.RpcError):
                list(stream.rest())
        asked = [clients.submit(say, server, "sleep 4")]
        wait_for(server, lambda: load_of(server, "victim")[1] == 1)
        asked += [clients.submit(say, server, "sleep 5") for _ in range(10)]
        wait_for(server, lambda: load_of(server, "victim")[0] == 10)
        kill(server, "http")
        for each in asked:
            with pytest.raises(OSError):
                each.result()
        wait_for(server, lambda: load_of(server, "victim")[0] == 0)
        wait_for(server, server.ready)
        assert say(server, "hello") == (200, "hello")
        wait_for(server, lambda: answers("127.0.0.1", server.grpc_port))
        with Stream(server.grpc_url, telling("state")) as stream:
            assert text_of(stream.answer()).startswith("0 ")


@pytest.mark.timeout(60)
def test_frontends_killed_again_and_again(serve: Serve, tmp_path: Path) -> None:
    """Each held answers that its clients had not read. The worker uses their memory again, and /dev/shm holds nothing
    of theirs."""
    repository = copy_examples(tmp_path / "models", "simple")
    write_model(repository, "large", LARGE, "INT32")
    server = serve(repository, f"--http-process-count={FRONTENDS}")
    body: dict[str, Any] = {
        "inputs": [{"name": "INPUT0", "shape": [1], "datatype": "INT32", "data": [LARGE_NBYTES // 4]}]
    }
    body["outputs"] = [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]
    data = json.dumps(body).encode()
    head = f"POST /v2/models/large/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    sizes = []
    for kills in range(0, ROUNDS * FRONTENDS, FRONTENDS):
        wait_for(server, partial(has_started, server, "http", kills + FRONTENDS))
        with ExitStack() as stack:
            for _ in range(2 * FRONTENDS):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port), timeout=10))
                client.sendall(head + data)
                assert client.recv(100).startswith(b"HTTP/1.1 200")
            (worker,) = [pid for pid, name in workers(server).items() if name == "large_0"]
            sizes.append(arena_nbytes(worker))
            for pid in pids_of(server, "http"):
                os.kill(pid, signal.SIGKILL)
    assert sizes[0] >= LARGE_NBYTES
    assert sizes[-1] <= 1.5 * max(sizes[:2]), sizes
    wait_for(server, lambda: not orphans())
    wait_for(server, server.ready)


def arena_nbytes(pid: int) -> int:
    """Of this process's shared memory, whose names it holds."""
    paths = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    return sum(os.stat(path).st_size for path in paths if path.startswith("/dev/shm/conch-"))


@pytest.mark.timeout(60)
def test_frontend_stopped(server: Server) -> None:
    """A thousand of its answers wait to be read. Other clients of the same model wait for some seconds, once. When it
    goes on, all are answered."""
    message = simple_request()
    with watching(server, longest_wait_s=15) as watch:
        assert watch.load is not None
        (worker,) = [pid for pid, name in workers(server).items() if name == "simple_0"]
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.grpc_url, options) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            (frontend,) = pids_of(server, "grpc")
            with stopped(worker):
                asked = [infer.future(message, timeout=30) for _ in range(1000)]
                wait_for(server, lambda: load_of(server, "simple")[0] >= 990 or any(each.done() for each in asked))
                assert not [each.exception() for each in asked if each.done()]
                os.kill(frontend, signal.SIGSTOP)
            try:
                watch.load.wait_for_answers(time.monotonic(), 200, timeout_s=20)
            finally:
                os.kill(frontend, signal.SIGCONT)
            for each in asked:
                answer = pb.ModelInferResponse.FromString(each.result())
                assert answer.raw_output_contents[0] == bytes([3, 0, 0, 0] * 16)


def simple_request() -> bytes:
    message = pb.ModelInferRequest(model_name="simple")
    for name, value in (("INPUT0", 1), ("INPUT1", 2)):
        message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        message.raw_input_contents.append(bytes([value, 0, 0, 0] * 16))
    encoded: bytes = message.SerializeToString()
    return encoded
