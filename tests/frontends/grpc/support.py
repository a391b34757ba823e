"""A gRPC frontend in a thread of this process: the real engine and application on real sockets, over a requester that
runs its models in NumPy at once."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Literal

import grpc
import numpy as np
import uvloop

from conch.protos import load_service_pb2
from conch.settings import Settings
from frontends.grpc.application import GrpcApplication
from frontends.grpc.engines import make_engine
from frontends.grpc.exchange import Engine
from frontends.grpc.server import drain
from frontends.listening import bind
from tests.frontends.http.support import StubRequester

pb = load_service_pb2()

ADDRESS = "127.0.0.1"
SERVICE = "/inference.GRPCInferenceService/"
TIMEOUT_S = 10.0

EngineName = Literal["aio", "http2"]
Metadata = tuple[tuple[str, str], ...]


class Refused(Exception):
    """A status other than OK: ``args`` are the code's name and the text."""


class Frontend:
    """``with Frontend() as frontend``: serves on ``frontend.port`` until the block ends."""

    def __init__(self, engine: EngineName = "http2", requester: StubRequester | None = None, **settings: Any) -> None:
        self.settings = Settings(grpc_engine=engine, **settings)
        self.requester = requester or StubRequester()
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.application: GrpcApplication
        self.engine: Engine
        self.loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._channel: grpc.Channel

    def __enter__(self) -> "Frontend":
        self._thread.start()
        assert self._ready.wait(10)
        self._channel = self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        del self.engine  # gRPC's sockets live as long as a server object does
        if kind is None:
            assert self.requester.borrowed == self.requester.released
            assert self.application.traffic.count == 0

    def _run(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.application = GrpcApplication(self.requester, self.settings)
        self.engine = make_engine(self.application, self.settings)
        listener = bind(ADDRESS, 0, False)
        self.port = listener.getsockname()[1]
        await self.engine.listen(listener)
        self._ready.set()
        await self._stop.wait()
        await self.engine.close(0)
        if not self.application.traffic.stopped.is_set():
            async with asyncio.timeout(5):
                await self.application.traffic.until_idle()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs it in the loop's thread and returns what it returned."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_S)

    def do(self, function: Callable[[], Any]) -> Any:
        async def call() -> Any:
            return function()

        return self.run(call())

    def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.002)

        self.run(wait())

    def drain(self, timeout_s: float, hurry: bool = False) -> bool:
        async def call() -> bool:
            hurried = asyncio.Event()
            if hurry:
                hurried.set()
            return await drain(self.application.traffic, self.engine, timeout_s, hurried)

        finished: bool = self.run(call())
        return finished

    # ------------------------------------------------------------------------------------------------------- clients

    @property
    def url(self) -> str:
        return f"{ADDRESS}:{self.port}"

    def connect(self) -> grpc.Channel:
        # own connections: gRPC shares them between channels with the same arguments
        return grpc.insecure_channel(
            self.url, [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        )

    def raw(self, method: str, payload: bytes, metadata: Metadata = (), timeout_s: float = TIMEOUT_S) -> bytes:
        """One unary RPC with bytes. Raises ``Refused``."""
        path = method if method.startswith("/") else SERVICE + method
        try:
            answer: bytes = self._channel.unary_unary(path)(payload, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None
        return answer

    def call(self, method: str, request: Any = None, metadata: Metadata = ()) -> Any:
        """One unary RPC with messages. Raises ``Refused``."""
        method_descriptor = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name[method]
        response_type = getattr(pb, method_descriptor.output_type.name)
        payload = b"" if request is None else request.SerializeToString()
        return response_type.FromString(self.raw(method, payload, metadata))

    def stream(self, payloads: Iterable[Any], metadata: Metadata = ()) -> list[Any]:
        """A whole stream: the answers, and last ``(code, text)`` if it did not end well."""
        call = self._channel.stream_stream(SERVICE + "ModelStreamInfer")
        answers: list[Any] = []
        encoded = (payload if isinstance(payload, bytes) else payload.SerializeToString() for payload in payloads)
        try:
            for answer in call(iter(encoded), timeout=TIMEOUT_S, metadata=metadata):
                answers.append(pb.ModelStreamInferResponse.FromString(answer))
        except grpc.RpcError as error:
            answers.append((error.code().name, error.details()))
        return answers


def add_input(
    request: Any, name: str, shape: tuple[int, ...] = (1, 16), datatype: str = "INT32", **parameters: Any
) -> Any:
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    set_all(tensor.parameters, parameters)
    return tensor


def set_all(target: Any, parameters: dict[str, Any]) -> None:
    for key, value in parameters.items():
        match value:
            case bool():
                target[key].bool_param = value
            case int():
                target[key].int64_param = value
            case float():
                target[key].double_param = value
            case str():
                target[key].string_param = value


def simple_request(model_name: str = "simple", **fields: Any) -> Any:
    """``simple``: 0 … 15 and sixteen times 1."""
    request = pb.ModelInferRequest(model_name=model_name, **fields)
    for name, values in (("INPUT0", range(16)), ("INPUT1", [1] * 16)):
        add_input(request, name)
        request.raw_input_contents.append(np.array(values, np.int32).tobytes())
    return request


def typed_request(model: str, datatype: str, shape: tuple[int, ...], **contents: Any) -> Any:
    """One input with typed contents."""
    request = pb.ModelInferRequest(model_name=model)
    tensor = add_input(request, "INPUT0", shape, datatype)
    tensor.contents.SetInParent()
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return request


def sums(response: Any) -> list[list[int]]:
    return [np.frombuffer(blob, np.int32).tolist() for blob in response.raw_output_contents]


def refusal(function: Callable[..., Any], *arguments: Any) -> tuple[str, str]:
    try:
        function(*arguments)
    except Refused as refused:
        return refused.args
    raise AssertionError("nothing was refused")
