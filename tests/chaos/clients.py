"""Clients of every kind, each with a connection of its own and one request at a time, who check every answer."""

import contextlib
import http.client
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import grpc
import numpy
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, shared_memory

from tests.chaos.models import IDENTITY_COUNT, RESPONSES
from tests.scenarios.decoupled import Stream, telling, text_of
from tests.scenarios.load import Load

TIMEOUT_S = 30.0
_NBYTES = IDENTITY_COUNT * 4
#: after a failure, so that a server that is gone is not asked all the time
_PAUSE_S = 0.02
#: some milliseconds between its responses, so that many a worker dies with a stream in the middle
_TELLING = ",".join([*(f"r {number},s 0.003" for number in range(RESPONSES)), "rf last"])
#: a ``Stream`` has a time-out of 30 s for all that comes on it
_REQUESTS_PER_STREAM = 50
#: what gRPC says when a connection breaks, beside the status UNAVAILABLE
_BROKEN = ("Socket closed", "Connection reset", "Connection refused", "recvmsg", "sendmsg", "Broken pipe", "GOAWAY")

_OVER = object()

Protocol = Literal["http", "grpc"]
#: ``ended``: a decoupled request got the responses that had been sent, and then a clear error
Verdict = Literal["right", "ended", "wrong", "error", "broken"]


class Wrong(Exception):
    """An answer that is not the one to this request."""


class Ended(Exception):
    """A stream of responses that ended early, and said so."""


@dataclass(frozen=True)
class Exchange:
    """Times on the monotonic clock in seconds. ``broken``: the connection was lost, not an answer given."""

    client: int
    protocol: Protocol
    models: tuple[str, ...]
    sent_s: float
    ended_s: float
    verdict: Verdict
    text: str = ""


class Client(threading.Thread, ABC):
    """Asks until ``stop``. ``exchanges`` grows."""

    protocol: ClassVar[Protocol]
    #: those that a request needs
    models: ClassVar[tuple[str, ...]]

    def __init__(self, number: int, http_port: int, grpc_port: int) -> None:
        super().__init__(name=f"{type(self).__name__} {number}")
        self.number = number
        self.exchanges: list[Exchange] = []
        self._port = http_port if self.protocol == "http" else grpc_port
        self._url = f"127.0.0.1:{self._port}"
        self._over = threading.Event()
        self._random = numpy.random.default_rng(number)

    def stop(self) -> None:
        self._over.set()

    def run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(Exception), contextlib.closing(self._session()) as session:
                # an exception is recorded where it happens, and ends the session
                while not self._over.is_set() and self._exchange(session):
                    pass
            self._over.wait(_PAUSE_S)

    def _exchange(self, session: Iterator[None]) -> bool:
        """False if the session is over, without another request."""
        sent_s = time.monotonic()
        try:
            if next(session, _OVER) is _OVER:
                return False
        except Exception as error:
            self._record(sent_s, _verdict(error), f"{type(error).__name__}: {error}")
            raise
        self._record(sent_s, "right")
        return True

    def _record(self, sent_s: float, verdict: Verdict, text: str = "") -> None:
        self.exchanges.append(
            Exchange(self.number, self.protocol, self.models, sent_s, time.monotonic(), verdict, text)
        )

    @abstractmethod
    def _session(self) -> Any:
        """A generator: each step is one request on one connection. Raises whatever goes wrong."""


def _verdict(error: Exception) -> Verdict:
    if isinstance(error, Ended):
        return "ended"
    if isinstance(error, Wrong):
        return "wrong"
    return "broken" if _is_broken(error) else "error"


def _is_broken(error: Exception) -> bool:
    if isinstance(error, InferenceServerException):
        return error.status() in (None, "StatusCode.UNAVAILABLE") and any(text in str(error) for text in _BROKEN)
    if isinstance(error, grpc.RpcError):
        return error.code() == grpc.StatusCode.UNAVAILABLE and any(text in error.details() for text in _BROKEN)
    if isinstance(error, TimeoutError):
        return False
    return isinstance(error, OSError) or type(error).__module__.startswith(("http.client", "geventhttpclient"))


class JsonClient(Client):
    """Plain HTTP and JSON, to ``simple``."""

    protocol = "http"
    models = ("simple",)

    def _session(self) -> Iterator[None]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            while True:
                problem = Load.exchange(connection, int(self._random.integers(1 << 30)))
                if problem.startswith("asked"):
                    raise Wrong(problem)
                if problem:
                    raise RuntimeError(problem)
                yield


class HttpClient(Client):
    """``tritonclient`` over HTTP, binary, to a model that passes it on to ``identity``."""

    protocol = "http"
    models = ("asking", "identity")

    def _session(self) -> Iterator[None]:
        with tritonclient.http.InferenceServerClient(
            self._url, network_timeout=TIMEOUT_S, connection_timeout=TIMEOUT_S
        ) as client:
            while True:
                sent = self._random.integers(1 << 30, size=1000, dtype=numpy.int32)
                tensor = tritonclient.http.InferInput("INPUT0", [sent.size], "INT32")
                tensor.set_data_from_numpy(sent)
                _check(client.infer("asking", [tensor]).as_numpy("OUTPUT0"), sent)
                yield


class GrpcClient(Client):
    """``tritonclient`` over gRPC, to ``slow``."""

    protocol = "grpc"
    models = ("slow",)

    def _session(self) -> Iterator[None]:
        with _grpc_client(self._url) as client:
            while True:
                # 20 ms, and digits of its own
                sent = numpy.array([[b"sleep 0.02000%d" % self._random.integers(1000, 9999)]], dtype=numpy.object_)
                tensor = tritonclient.grpc.InferInput("INPUT0", [1, 1], "BYTES")
                tensor.set_data_from_numpy(sent)
                result = client.infer("slow", [tensor], client_timeout=TIMEOUT_S)
                _check(result.as_numpy("OUTPUT0"), sent)
                yield


class SharedMemoryClient(Client, ABC):
    """Inputs and outputs in the client's memory, to ``identity``. Registered anew with each connection."""

    models = ("identity",)

    def _session(self) -> Iterator[None]:
        name = f"chaos-{uuid.uuid4().hex}"
        memory = shared_memory.create_shared_memory_region(name, f"/{name}", 2 * _NBYTES)
        try:
            with self._client() as client:
                client.register_system_shared_memory(name, f"/{name}", 2 * _NBYTES)
                while True:
                    self._ask(client, name, memory)
                    yield
        finally:
            shared_memory.destroy_shared_memory_region(memory)
            with contextlib.suppress(Exception), self._client() as client:
                client.unregister_system_shared_memory(name)

    def _ask(self, client: Any, name: str, memory: Any) -> None:
        library = self._library()
        sent = self._random.integers(1 << 30, size=IDENTITY_COUNT, dtype=numpy.int32)
        shared_memory.set_shared_memory_region(memory, [sent])
        tensor = library.InferInput("INPUT0", [IDENTITY_COUNT], "INT32")
        tensor.set_shared_memory(name, _NBYTES)
        output = library.InferRequestedOutput("OUTPUT0")
        output.set_shared_memory(name, _NBYTES, offset=_NBYTES)
        client.infer("identity", [tensor], outputs=[output])
        _check(shared_memory.get_contents_as_numpy(memory, numpy.int32, [IDENTITY_COUNT], offset=_NBYTES), sent)

    @abstractmethod
    def _client(self) -> Any: ...

    @abstractmethod
    def _library(self) -> Any: ...


class SharedMemoryOverHttp(SharedMemoryClient):
    protocol = "http"

    def _client(self) -> Any:
        return tritonclient.http.InferenceServerClient(
            self._url, network_timeout=TIMEOUT_S, connection_timeout=TIMEOUT_S
        )

    def _library(self) -> Any:
        return tritonclient.http


class SharedMemoryOverGrpc(SharedMemoryClient):
    protocol = "grpc"

    def _client(self) -> Any:
        return _grpc_client(self._url)

    def _library(self) -> Any:
        return tritonclient.grpc


class StreamClient(Client):
    """A gRPC stream, to the decoupled model ``stream``."""

    protocol = "grpc"
    models = ("stream",)

    def _session(self) -> Iterator[None]:
        with Stream(self._url) as stream:
            for _ in range(_REQUESTS_PER_STREAM):
                stream.send(telling(_TELLING, model="stream"))
                for number in range(RESPONSES + 1):
                    answer = stream.answer()
                    expected = str(number) if number < RESPONSES else "last"
                    if answer.error_message:
                        raise Ended(answer.error_message)
                    if text_of(answer) != expected:
                        raise Wrong(f"response {number} is {text_of(answer)}")
                yield


def _grpc_client(url: str) -> Any:
    """With a connection of its own: clients of one process share them otherwise."""
    options = [("grpc.use_local_subchannel_pool", 1), ("conch.chaos", uuid.uuid4().hex)]
    return tritonclient.grpc.InferenceServerClient(url, channel_args=options)


def _check(answered: Any, sent: Any) -> None:
    if not numpy.array_equal(answered, sent):
        raise Wrong(f"sent {sent.reshape(-1)[:3]}…, answered {answered.reshape(-1)[:3]}…")


KINDS: tuple[type[Client], ...] = (
    JsonClient,
    HttpClient,
    GrpcClient,
    SharedMemoryOverHttp,
    SharedMemoryOverGrpc,
    StreamClient,
)
