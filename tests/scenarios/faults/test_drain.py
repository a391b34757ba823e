"""From SIGTERM to exit 0: behind a load balancer nobody sees a request fail, and nobody waits without need."""

import contextlib
import http.client
import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy
import pytest
import tritonclient.grpc

from tests.scenarios.conftest import copy_examples
from tests.scenarios.harness import REPOSITORY_ROOT, Server
from tests.scenarios.load import Load
from tests.scenarios.malformed_cases import SIMPLE, request
from tests.scenarios.models import OBEY, write_model

pytestmark = pytest.mark.timeout(60)  # whole servers start and stop, some with a delay

#: of servers that must not wait for its end
LONG_DELAY = "--drain-delay-secs=60"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}
#: far less than that delay
SOON_S = 30.0
DELAY_S = 4
#: longer than half of the delay, when connections are asked to part, and far from its end
REACTS_IN_S = 2.2
#: on an idle connection of a server that drains, this long is waited for one more request
LAST_REQUESTS_S = 0.25
SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."
#: grpc.health.v1.HealthCheckResponse
NOT_SERVING = b"\x08\x02"

# Loads once a file is there.
SLOW = """
class TritonPythonModel:
    def initialize(self, args):
        open({loading!r}, "w").close()
        while not os.path.exists({gate!r}):
            time.sleep(0.01)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", "obey", OBEY, "STRING", [1], instances=2)
    return copy_examples(tmp_path / "models", "simple")


@contextlib.contextmanager
def running(server: Server, as_service: bool, wait: bool = True) -> Iterator[Server]:
    """Under ``conch serve``, or under supervisord alone. The test ends the server. ``wait``: until it has started."""
    try:
        if as_service:
            start_service(server, wait)
        elif wait:
            server.start()
        else:
            server.process = subprocess.Popen(
                server.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT
            )
        yield server
        leftovers = server.leftovers()
        assert not leftovers, leftovers
    except BaseException:
        print(server.report())
        raise
    finally:
        server.kill_everything()


def start_service(server: Server, wait: bool) -> None:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in server.command() if flag.startswith("--"))
    settings = {"CONCH_" + name.upper().replace("-", "_"): value for name, value in flags.items()}
    server.process = subprocess.Popen(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(REPOSITORY_ROOT / "supervisord.conf")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**ENVIRONMENT, **settings},
    )
    if wait:
        logs = [server.run_dir / "logs" / f"{name}.log" for name in ("http", "http-2", "grpc")]
        until(server, server.ready)
        until(server, lambda: all("Started" in log.read_text() for log in logs if log.exists()))


def until(server: Server, condition: Callable[[], bool], timeout_s: float = 25.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, server.report()
        time.sleep(0.02)


def send(server: Server, *signals: signal.Signals) -> None:
    assert server.process is not None
    for number in signals:
        server.process.send_signal(number)


def obey(server: Server, order: str) -> tuple[int, bytes]:
    body = b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"BYTES","data":["%b"]}]}' % order.encode()
    return server.request("POST", "/v2/models/obey/infer", body, timeout_s=30)


# ------------------------------------------------------------------------------------------------------------ clients


@dataclass
class Balanced:
    """Clients behind a load balancer, which asks every 20 ms whether the server is ready, and takes ``reacts_in_s``
    from the first no until nobody is sent there any more."""

    is_ready: Callable[[], bool]
    exchange: Callable[[], str]
    reacts_in_s: float
    answers: int = 0
    problems: list[str] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._balance), threading.Thread(target=self._ask)]
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        """Until the server has said no, and everything has been answered."""
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive()

    def _balance(self) -> None:
        try:
            while self.is_ready():
                time.sleep(0.02)
            time.sleep(self.reacts_in_s)
        finally:
            self._over.set()

    def _ask(self) -> None:
        while not self._over.is_set():
            try:
                problem = self.exchange()
            except Exception as error:  # each is a failed request
                problem = f"{type(error).__name__}: {error}"
            if problem:
                self.problems.append(problem)
            else:
                self.answers += 1
            time.sleep(0.005)


def over_http(server: Server, stack: contextlib.ExitStack, connection_each: bool) -> Callable[[], str]:
    """On one connection as long as the server keeps it, or with a new one for each request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    stack.callback(connection.close)

    def exchange() -> str:
        connection.request("POST", SIMPLE, request(), {"Connection": "close"} if connection_each else {})
        response = connection.getresponse()
        body = response.read()
        return "" if response.status == 200 else f"{response.status}: {body.decode()}"

    return exchange


def over_grpc(client: tritonclient.grpc.InferenceServerClient) -> Callable[[], str]:
    inputs = [tritonclient.grpc.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for each in inputs:
        each.set_data_from_numpy(numpy.ones((1, 16), numpy.int32))

    def exchange() -> str:
        total = client.infer("simple", inputs, client_timeout=10).as_numpy("OUTPUT0")
        return "" if total.tolist() == [[2] * 16] else f"answered {total}"

    return exchange


def obey_input(order: str) -> tritonclient.grpc.InferInput:
    tensor = tritonclient.grpc.InferInput("INPUT0", [1], "BYTES")
    tensor.set_data_from_numpy(numpy.array([order.encode()], numpy.object_))
    return tensor


class Stream:
    """An open ModelStreamInfer of its own connection."""

    def __init__(self, server: Server, stack: contextlib.ExitStack) -> None:
        self.results: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
        stack.callback(self._client.close)
        self._client.start_stream(lambda result, error: self.results.put((result, error)))

    def ask(self, order: str) -> None:
        self._client.async_stream_infer("obey", [obey_input(order)])

    def answer(self) -> str:
        """Of a request, or the error that ended the stream."""
        result, error = self.results.get(timeout=20)
        return str(error) if error is not None else result.as_numpy("OUTPUT0")[0].decode()


# -------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("as_service", [False, True])
def test_behind_a_load_balancer_no_request_fails(repository: Path, run_dir: Path, as_service: bool) -> None:
    flags = [f"--drain-delay-secs={DELAY_S}", "--http-process-count=2"]
    with running(Server([repository], run_dir, flags), as_service) as server, contextlib.ExitStack() as stack:
        client = stack.enter_context(tritonclient.grpc.InferenceServerClient(server.grpc_url))
        clients = [
            Balanced(server.ready, over_http(server, stack, connection_each=False), reacts_in_s=REACTS_IN_S),
            Balanced(server.ready, over_http(server, stack, connection_each=True), reacts_in_s=REACTS_IN_S),
            Balanced(client.is_server_ready, over_grpc(client), reacts_in_s=REACTS_IN_S),
        ]
        for each in clients:
            each.start()
        idle = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
        stack.callback(idle.close)
        assert ask_live(idle) == (200, "")
        idle_stream, busy_stream = Stream(server, stack), Stream(server, stack)
        idle_stream.ask("first")
        assert idle_stream.answer() == "first"
        long_answers: list[tuple[int, bytes]] = []
        long_order = f"sleep {DELAY_S + 0.5}"
        long_request = threading.Thread(target=lambda: long_answers.append(obey(server, long_order)))
        long_request.start()
        busy_stream.ask(long_order)
        until(server, lambda: all(each.answers > 10 for each in clients))
        until(server, lambda: [row["running"] for row in server.status()["models"] if row["model"] == "obey"] == [2])

        send(server, signal.SIGTERM)
        until(server, lambda: not server.ready())
        until(server, lambda: not client.is_server_ready())
        assert client.is_server_live()
        assert not client.is_model_ready("simple")
        assert grpc_health(server) == NOT_SERVING
        assert server.request("GET", "/v2/health/ready") == (400, b"")
        assert server.request("GET", "/v2/health/live")[0] == 200
        assert server.request("GET", "/v2/models/simple/ready")[0] == 400
        assert server.request("POST", SIMPLE, request())[0] == 200
        assert server.wait(SOON_S) == 0, server.report()

        for each in clients:
            each.join(10)
        long_request.join(10)
        assert [each.problems for each in clients] == [[], [], []]
        assert [status for status, _ in long_answers] == [200], long_answers
        assert busy_stream.answer() == long_order
        assert SHUTTING_DOWN in idle_stream.answer()
        with pytest.raises(http.client.RemoteDisconnected):
            ask_live(idle)
    if not as_service:
        assert f"Not ready any more; serving for {DELAY_S} s" in server.output


def ask_live(connection: http.client.HTTPConnection) -> tuple[int, str]:
    """Status and the header ``Connection``."""
    connection.request("GET", "/v2/health/live")
    response = connection.getresponse()
    response.read()
    return response.status, response.headers.get("Connection", "")


def grpc_health(server: Server) -> bytes:
    with grpc.insecure_channel(server.grpc_url, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer: bytes = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
        return answer


def lost(load: Load) -> list[str]:
    """Requests that were neither answered nor refused, of one client. One that was sent later than a server waits for
    it, because the machine was busy, finds the connection closed."""
    return [
        each.problem
        for former, each in itertools.pairwise(load.exchanges)
        if each.problem
        and not each.problem.startswith("ConnectionRefusedError")
        and each.answered_s - former.sent_s < LAST_REQUESTS_S
    ]


@pytest.mark.parametrize("as_service", [False, True])
def test_a_second_signal_ends_the_delay_and_nothing_else(repository: Path, run_dir: Path, as_service: bool) -> None:
    """Clients without a load balancer find the port closed, and none of their requests is lost."""
    with running(Server([repository], run_dir, [LONG_DELAY]), as_service) as server:
        loads = [Load(server.http_port, clients=1) for _ in range(2)]
        answers: list[tuple[int, bytes]] = []
        asking = threading.Thread(target=lambda: answers.append(obey(server, "sleep 1")))
        asking.start()
        until(server, lambda: [row["running"] for row in server.status()["models"] if row["model"] == "obey"] == [1])
        with loads[0], loads[1]:
            send(server, signal.SIGTERM)
            until(server, lambda: not server.ready())
            for load in loads:
                load.wait_for_answers(time.monotonic(), 10, timeout_s=10)
            send(server, signal.SIGTERM)
            assert server.wait(SOON_S) == 0, server.report()
        assert [lost(load) for load in loads] == [[], []]
        asking.join(10)
        assert [status for status, _ in answers] == [200], answers


@pytest.mark.parametrize("as_service", [False, True])
def test_nothing_is_delayed_before_the_start_is_over(tmp_path: Path, run_dir: Path, as_service: bool) -> None:
    gate, loading = tmp_path / "gate", tmp_path / "loading"
    write_model(tmp_path / "models", "slow", SLOW.format(loading=str(loading), gate=str(gate)))
    with running(Server([tmp_path / "models"], run_dir, [LONG_DELAY]), as_service, wait=False) as server:
        until(server, loading.exists)
        send(server, signal.SIGTERM)
        gate.touch()
        assert server.wait(SOON_S) == 0, server.report()
