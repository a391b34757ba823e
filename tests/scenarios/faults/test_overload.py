"""Far more requests than a model can take: a bounded part waits, the rest is refused at once, nobody else suffers."""

import contextlib
import http.client
import json
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.scenarios.conftest import Serve, copy_examples
from tests.scenarios.faults.models import VICTIM, say, write_victim
from tests.scenarios.faults.watch import memory_nbytes, pids_of, watching
from tests.scenarios.harness import Server
from tests.scenarios.models import write_model

#: what a request takes, and how many may wait
SERVICE_S = 0.04
QUEUE = 8
CLIENTS = 24
MOST_INFLIGHT = 16
ARENA_NBYTES = 8 << 20


@dataclass
class Flood:
    """Clients that ask again as soon as they are answered. By status: how long each answer took, and every text."""

    server: Server
    model: str
    took_s: dict[int, list[float]] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)
    retry_after: set[str | None] = field(default_factory=set)
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _run(self) -> None:
        tensor = {"name": "INPUT0", "shape": [1, 1], "datatype": "BYTES", "data": [f"sleep {SERVICE_S}"]}
        body = json.dumps({"inputs": [tensor]})
        connection = http.client.HTTPConnection("127.0.0.1", self.server.http_port, timeout=20)
        with contextlib.closing(connection):
            while not self._over.is_set():
                began_s = time.monotonic()
                connection.request("POST", f"/v2/models/{self.model}/infer", body)
                response = connection.getresponse()
                content = json.loads(response.read())
                took_s = time.monotonic() - began_s
                with self._lock:
                    self.took_s.setdefault(response.status, []).append(took_s)
                    if response.status != 200:
                        self.texts.add(content["error"])
                        self.retry_after.add(response.headers["Retry-After"])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = copy_examples(tmp_path / "models", "simple")
    write_victim(path)
    policy = f"dynamic_batching {{ default_queue_policy {{ max_queue_size: {QUEUE} }} }}\n"
    write_model(path, "bounded", VICTIM, "STRING", [1], max_batch_size=1, extra=policy)
    return path


@pytest.mark.timeout(60)
def test_far_too_many_requests(repository: Path, serve: Serve) -> None:
    """A queue's bound, over HTTP and gRPC. What the model can do it goes on doing."""
    server = serve(repository, "--allow-metrics=false")
    [frontend] = pids_of(server, "http")
    flood = Flood(server, "bounded")
    with watching(server) as watch:
        before = memory_nbytes(frontend)
        began_s = time.monotonic()
        with flood.running():
            watch.back_within(10, lambda: len(flood.took_s.get(503, ())) > 100)
            assert over_grpc(server, "bounded") == ("StatusCode.UNAVAILABLE", "Exceeds maximum queue size")
            watch.back_within(20, lambda: len(flood.took_s.get(200, ())) > 50)
        lasted_s = time.monotonic() - began_s
        assert say(server, "hello", "bounded") == (200, "hello")
        assert memory_nbytes(frontend) - before < 64 << 20
    assert flood.took_s.keys() == {200, 503}
    assert (flood.texts, flood.retry_after) == ({"Exceeds maximum queue size"}, {"1"})
    # nobody waits for longer than the queue is, and the refused not at all
    assert statistics.median(flood.took_s[503]) < statistics.median(flood.took_s[200])
    # the machine is busy with refusing, and maybe with other things
    assert len(flood.took_s[200]) > lasted_s / SERVICE_S / 4


def over_grpc(server: Server, model: str) -> tuple[str, str]:
    """Of the first request that is refused: a place may just have become free."""
    with contextlib.closing(tritonclient.grpc.InferenceServerClient(server.grpc_url)) as client:
        tensor = tritonclient.grpc.InferInput("INPUT0", [1, 1], "BYTES")
        tensor.set_data_from_numpy(numpy.array([[b"hello"]], numpy.object_))
        for _ in range(100):
            try:
                client.infer(model, [tensor])
            except InferenceServerException as error:
                return str(error.status()), str(error.message())
    raise AssertionError("every request was taken")


@pytest.mark.timeout(60)
def test_one_model_leaves_room_for_the_others(repository: Path, serve: Serve) -> None:
    """A queue without a bound: half of what a frontend takes, in requests and in bytes, is for others."""
    limits = (f"--max-inflight={MOST_INFLIGHT}", f"--frontend-arena-nbytes={ARENA_NBYTES}")
    server = serve(repository, "--allow-metrics=false", "--allow-grpc=false", *limits)
    large = " " * (3 << 20)
    assert say(server, f"hello{large}")[0] == 200  # arenas grow, which is no leak
    with watching(server):
        answers: list[tuple[int, str]] = []
        order = "sleep 0.5"
        waiting = [threading.Thread(target=lambda: answers.append(say(server, order))) for _ in range(MOST_INFLIGHT)]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
        half = MOST_INFLIGHT // 2
        text = f"{half} requests wait for version 1 of model 'victim', which is the most that may; try again later"
        assert set(answers) == {(200, order), (503, text)}
        assert answers.count((200, order)) >= half
        answers.clear()
        order = f"sleep 2{large}"
        waiting = [threading.Thread(target=lambda: answers.append(say(server, order))) for _ in range(2)]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
        [(_, first), (status, second)] = sorted(answers)
        assert (first, status) == (order, 503)
        assert second.startswith("the inputs that wait for version 1 of model 'victim' take up 31"), second
        assert say(server, "hello") == (200, "hello")
