"""Clients beside those over HTTP (``tests.scenarios.load``): one over gRPC, one whose tensors lie in memory of its own.

Both ask ``simple`` one request at a time, with numbers that are never used twice, and remember what was wrong.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy
import tritonclient.grpc

from tests.client_memory import ClientMemory, client_memory
from tests.scenarios.harness import Server

_TENSOR_NBYTES = 64
_TIMEOUT_S = 15.0


@dataclass
class Asked:
    """What came of one client's requests: times of right answers on the monotonic clock in seconds, and problems."""

    answered_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def wait_for_answer(self, timeout_s: float = 10.0) -> None:
        """Until a request has been answered that was sent after now."""
        began, deadline = len(self.answered_s), time.monotonic() + timeout_s
        while len(self.answered_s) < began + 2:
            assert time.monotonic() < deadline, self.problems[:3]
            time.sleep(0.005)


@contextmanager
def asking(exchange: Callable[[int], str]) -> Iterator[Asked]:
    """Calls ``exchange`` with ever new numbers on a thread until the end. It returns or raises what was wrong."""
    asked = Asked()
    over = threading.Event()

    def run() -> None:
        number = 0
        while not over.is_set():
            number += 1
            started_s = time.monotonic()
            try:
                problem = exchange(number)
            except Exception as error:  # each is to be looked at by the test
                problem = f"{type(error).__name__}: {error}"
            ended_s = time.monotonic()
            asked.longest_s = max(asked.longest_s, ended_s - started_s)
            if problem:
                asked.problems.append(problem)
                over.wait(0.02)
            else:
                asked.answered_s.append(ended_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


@contextmanager
def asking_over_grpc(server: Server) -> Iterator[Asked]:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:

        def exchange(number: int) -> str:
            return infer_over_grpc(client, number)

        with asking(exchange) as asked:
            yield asked


def infer_over_grpc(client: tritonclient.grpc.InferenceServerClient, number: int) -> str:
    """What was wrong with the answer. Raises ``InferenceServerException``."""
    inputs = []
    for name, value in (("INPUT0", number), ("INPUT1", 2)):
        inputs.append(tritonclient.grpc.InferInput(name, [1, 16], "INT32"))
        inputs[-1].set_data_from_numpy(numpy.full((1, 16), value, numpy.int32))
    output = client.infer("simple", inputs, client_timeout=_TIMEOUT_S).as_numpy("OUTPUT0")
    return "" if output.tolist() == [[number + 2] * 16] else f"asked {number}, answered {output.tolist()}"


class SharedMemoryClient:
    """A region that is registered once, with two inputs and an output."""

    def __init__(self, server: Server, memory: ClientMemory, name: str = "traffic") -> None:
        self._server = server
        self._memory = memory
        self._name = name

    def register(self) -> None:
        body = json.dumps({"key": self._memory.key, "offset": 0, "byte_size": 3 * _TENSOR_NBYTES}).encode()
        status, answer = self._server.request("POST", self._path("register"), body)
        assert status == 200, answer

    def unregister(self) -> None:
        status, answer = self._server.request("POST", self._path("unregister"))
        assert status == 200, answer

    def _path(self, what: str) -> str:
        return f"/v2/systemsharedmemory/region/{self._name}/{what}"

    def infer(self, number: int) -> str:
        """Both inputs and the first output lie in the region. What was wrong with the answer."""
        view = self._memory.view
        tensors = numpy.frombuffer(view, numpy.int32, count=48).reshape(3, 16)
        tensors[0], tensors[1], tensors[2] = number, 3, -1
        described = [
            {"name": name, "datatype": "INT32", "shape": [1, 16], "parameters": self._place(position)}
            for position, name in enumerate(("INPUT0", "INPUT1"))
        ]
        body = json.dumps({"inputs": described, "outputs": [{"name": "OUTPUT0", "parameters": self._place(2)}]})
        status, answer = self._server.request("POST", "/v2/models/simple/infer", body.encode(), timeout_s=_TIMEOUT_S)
        if status != 200:
            return f"{status}: {answer.decode(errors='replace')}"
        found: list[int] = tensors[2].tolist()
        return "" if found == [number + 3] * 16 else f"asked {number}, found {found}"

    def _place(self, position: int) -> dict[str, object]:
        return {
            "shared_memory_region": self._name,
            "shared_memory_byte_size": _TENSOR_NBYTES,
            "shared_memory_offset": position * _TENSOR_NBYTES,
        }


@contextmanager
def asking_in_shared_memory(server: Server) -> Iterator[Asked]:
    """The region is registered once; each request has a connection of its own."""
    with client_memory(4096) as memory:
        client = SharedMemoryClient(server, memory)
        client.register()
        try:
            with asking(client.infer) as asked:
                yield asked
        finally:
            client.unregister()


@contextmanager
def asking_in_both_ways(server: Server) -> Iterator[tuple[Asked, Asked]]:
    """Over gRPC and in shared memory. Afterwards every request has been answered, and right."""
    with ExitStack() as stack:
        both = (
            stack.enter_context(asking_over_grpc(server)),
            stack.enter_context(asking_in_shared_memory(server)),
        )
        for asked in both:
            asked.wait_for_answer()
        yield both
        for asked in both:
            asked.wait_for_answer()
    for asked in both:
        assert not asked.problems, (len(asked.answered_s), asked.problems[:5])
