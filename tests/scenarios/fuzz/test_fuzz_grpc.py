"""Damaged gRPC requests to a whole server, with each engine: messages, their bytes, and HTTP/2 itself."""

import contextlib
import socket
import time
from collections import Counter
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tests.differential import grpc_cases
from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.fuzz.frames import connections
from tests.scenarios.fuzz.messages import any_message, changed, encoded, inference_messages, wire_garbage
from tests.scenarios.fuzz.running import IS_LONG, Bound, fuzzed
from tests.scenarios.fuzz.values import damaged
from tests.scenarios.fuzz.watch import LOAD_ERRORS, REGION_ERRORS, Watch, check_grpc, show

pytestmark = pytest.mark.timeout(0 if IS_LONG else 60)

OTHERS_EVERY = 5
_service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
REQUESTS = {
    method.name: getattr(pb, method.input_type.name) for method in _service.methods if not method.client_streaming
}
_LOADS = ("RepositoryModelLoad", "RepositoryModelUnload")
OTHERS = sorted(set(REQUESTS) - {"ModelInfer", *_LOADS})
CASES = [*grpc_cases.inference_cases(), *grpc_cases.rpc_cases()]


class Sent(NamedTuple):
    """``method`` without the service, or with it for another one."""

    method: str
    payload: bytes
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    compression: Any = None


def sent(*parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Sent]:
    return st.tuples(*parts).map(lambda drawn: Sent(*drawn))


def unary(methods: list[str]) -> st.SearchStrategy[Sent]:
    """Requests of any contents for these."""

    def of(method: str) -> st.SearchStrategy[Sent]:
        payloads = encoded(any_message(REQUESTS[method])) | wire_garbage()
        return sent(st.just(method), payloads)

    return st.sampled_from(methods).flatmap(of)


@st.composite
def cases(draw: st.DrawFn) -> Sent:
    """Those of the comparison with Triton, changed or damaged."""
    case = draw(st.sampled_from(CASES))
    payload = case.request
    if not isinstance(payload, bytes):
        payload = draw(changed(payload)) if draw(st.booleans()) else payload
        payload = payload.SerializeToString(deterministic=True)
    if draw(st.booleans()):
        payload = draw(damaged(payload))
    return Sent(case.method.removeprefix(SERVICE), payload)


_METADATA = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["x-a", "triton-grpc-protocol-a", "traceparent"]), st.sampled_from(["", "x", "a=b"])),
        st.tuples(st.just("x-bin"), st.binary(max_size=20)),
        st.tuples(st.just("grpc-accept-encoding"), st.sampled_from(["gzip", "nope", ""])),
    ),
    max_size=3,
)


def harmless(sent: Sent) -> Sent:
    """Loads and unloads concern ``other`` only: the rest is needed."""
    if sent.method in _LOADS:
        try:
            message = REQUESTS[sent.method].FromString(sent.payload)
        except DecodeError:
            return sent
        if message.model_name and message.model_name != "nope":
            message.model_name = "other"
            return sent._replace(payload=message.SerializeToString())
    return sent


class Exchange:
    """Sends examples to a server, and keeps account of the answers."""

    def __init__(self, watch: Watch, *allowed: str) -> None:
        self.watch = watch
        self.answers = Counter[str]()
        self._allowed = allowed
        self._bound = Bound()
        self._channel = grpc.insecure_channel(watch.server.grpc_url, [("grpc.use_local_subchannel_pool", 1)])

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()
        show(self.watch, self.answers)

    def send(self, sent: Sent) -> None:
        if self._bound.over:
            return
        method = sent.method if sent.method.startswith("/") else SERVICE + sent.method
        try:
            call = self._channel.unary_unary(method)
            call(harmless(sent).payload, timeout=10, metadata=sent.metadata, compression=sent.compression)
        except grpc.RpcError as error:
            self._looked_at(error.code().name)
            check_grpc(error.code().name, error.details() or "", *self._allowed)
        else:
            self._looked_at("OK")

    def send_frames(self, data: bytes) -> None:
        if self._bound.over:
            return
        self._looked_at("closed" if talk(self.watch.server.grpc_port, data) else "open")

    def _looked_at(self, answer: str) -> None:
        self.answers[answer] += 1
        self.watch.lives()
        if self.answers.total() % OTHERS_EVERY == 0:
            self.watch.answers_others()


def talk(port: int, data: bytes) -> bool:
    """Whether the server closed the connection, which it need not, at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError, TimeoutError):
            connection.sendall(data)
            connection.settimeout(0.02)
            until = time.monotonic() + 1
            while time.monotonic() < until:
                if not connection.recv(65536):
                    return True
    return False


def test_inferences(watch_grpc: Watch) -> None:
    compressions = st.sampled_from([None, grpc.Compression.Gzip, grpc.Compression.Deflate])
    payloads = encoded(inference_messages())
    requests = sent(st.just("ModelInfer"), payloads, _METADATA.map(tuple), compressions)
    with Exchange(watch_grpc) as exchange:
        fuzzed(800)(given(requests)(exchange.send))()
    watch_grpc.settled()


def test_other_methods(watch_grpc: Watch) -> None:
    with Exchange(watch_grpc, *REGION_ERRORS) as exchange:
        fuzzed()(given(unary(OTHERS))(exchange.send))()
    watch_grpc.settled()


def test_loads(watch_grpc: Watch) -> None:
    with Exchange(watch_grpc, *LOAD_ERRORS) as exchange:
        fuzzed(60)(given(unary(list(_LOADS)))(exchange.send))()
    watch_grpc.settled()


def test_bytes(watch_grpc: Watch) -> None:
    methods = st.sampled_from([*sorted(REQUESTS), "/grpc.health.v1.Health/Check", "Nope", "/nope/Nope"])
    with Exchange(watch_grpc, *REGION_ERRORS, *LOAD_ERRORS) as exchange:
        fuzzed()(given(sent(methods, wire_garbage()))(exchange.send))()
    watch_grpc.settled()


def test_cases_of_the_comparison_with_triton(watch_grpc: Watch) -> None:
    with Exchange(watch_grpc, *REGION_ERRORS, *LOAD_ERRORS) as exchange:
        fuzzed()(given(cases())(exchange.send))()
    watch_grpc.settled()


def test_frames(watch_grpc: Watch) -> None:
    with Exchange(watch_grpc) as exchange:
        fuzzed(200)(given(connections())(exchange.send_frames))()
    watch_grpc.settled()
