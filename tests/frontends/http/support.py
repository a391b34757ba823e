"""An HTTP frontend in a thread of this process: the real engine and application on real sockets, over a requester that
runs its models in NumPy at once."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import uvloop

from conch.datatypes import to_config_type
from conch.errors import ConchError
from conch.messages import LogSettings, ModelEntry, ModelTable, ServerSettings, TraceSettings
from conch.requester.inference import InferenceCall, InferenceResult, Outcome, OutputTensor
from conch.requester.models import ModelTableView, ReadyModel
from conch.requester.regions import RegionTableView
from conch.requester.validation import validate
from conch.settings import Settings
from conch.tensors import STORAGE_DTYPES
from conch.tls import server_context
from frontends.http.application import HttpApplication
from frontends.http.engine import Engine, Limits
from frontends.http.exchange import Application

# libuv opens one pipe per process, with the first loop, and keeps it: before anybody looks for leaks
uvloop.new_event_loop().close()

MAX_INPUT_NBYTES = 1 << 20
COPY_LIMIT_NBYTES = 64 * 1024
#: responses to one request that may be unread, as between a worker and a requester
WINDOW = 128
ADDRESS = "127.0.0.1"


def config(
    name: str,
    datatype: str,
    dims: list[int],
    *,
    inputs: int = 1,
    max_batch_size: int = 0,
    output_datatype: str = "",
    label_filename: str = "",
    decoupled: bool = False,
) -> dict[str, Any]:
    """Inputs INPUT0 … and as many outputs OUTPUT0 …"""
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": max_batch_size,
        "input": [{"name": f"INPUT{i}", "data_type": to_config_type(datatype), "dims": dims} for i in range(inputs)],
        "output": [
            {
                "name": f"OUTPUT{i}",
                "data_type": to_config_type(output_datatype or datatype),
                "dims": dims,
                "label_filename": label_filename,
            }
            for i in range(inputs)
        ],
        "model_transaction_policy": {"decoupled": decoupled},
    }


LABELS: tuple[str, ...] = ("cat", "dog", "", "bird")
MODELS = [
    config("simple", "INT32", [16], inputs=2, max_batch_size=8),
    *(config(f"echo_{datatype.lower()}", datatype, [-1]) for datatype in (*STORAGE_DTYPES, "BYTES")),
    config("matrix", "FP32", [-1, -1]),
    config("four", "FP32", [4], max_batch_size=4),
    config("one_string", "BYTES", [1], max_batch_size=4),
    config("scores", "FP32", [5], max_batch_size=8, label_filename="labels.txt"),
    config("scores_int", "INT32", [-1], label_filename="labels.txt"),
    config("stream", "INT32", [1], decoupled=True),
    config("count", "INT32", [1], decoupled=True),
    config("held", "INT32", [1]),
    config("failing", "BYTES", [1]),
    config("a b+c.d", "INT32", [1]),
]


def table(server: str = "ready", extra: tuple[ModelEntry, ...] = ()) -> ModelTable:
    entries = []
    for model in MODELS:
        labels: dict[str, tuple[str, ...]] = {"OUTPUT0": LABELS} if model["output"][0]["label_filename"] else {}
        text = msgspec.json.encode(model).decode()
        entries.append(ModelEntry(model["name"], 1, "READY", "", True, text, labels))
    return ModelTable(1, 1, server, (*entries, *extra))  # type: ignore[arg-type]


class StubStream:
    """One decoupled request: the test, or ``count``, responds. As a worker does, ``count`` waits for what is read."""

    def __init__(self, requester: "StubRequester", model: ReadyModel, call: InferenceCall, on_response: Any) -> None:
        self._requester = requester
        self._model = model
        self._call = call
        self._on_response: Callable[[Outcome | None, bool], None] | None = on_response
        self.client_id = call.client_id
        self.value = int.from_bytes(call.inputs[0].data, "little")
        self.unread = 0
        self.sent = 0

    @property
    def open(self) -> bool:
        return self._on_response is not None

    def cancel(self) -> None:
        assert self._on_response is not None
        self._on_response = None
        self._requester.cancelled += 1

    def respond(self, value: int | ConchError | None, final: bool = False, nbytes: int = 4) -> None:
        """None: nothing but the final flag."""
        outcome: Outcome | None = None
        if isinstance(value, ConchError):
            outcome = value
        elif value is not None:
            self.unread += 1
            self._requester.borrowed += 1
            data = value.to_bytes(nbytes, "little", signed=True)
            tensor = OutputTensor("OUTPUT0", "INT32", (nbytes // 4,), data)
            model, call = self._model, self._call
            outcome = InferenceResult(model.name, model.version, call.client_id, {}, [tensor], self._read)
        assert self._on_response is not None
        on_response = self._on_response
        if final:
            self._on_response = None
        on_response(outcome, final)

    def _read(self) -> None:
        self.unread -= 1
        self._requester.released += 1
        if self._model.name == "count":
            asyncio.get_running_loop().call_soon(self.count)

    def count(self) -> None:
        while self._on_response is not None and self.unread < WINDOW:
            if self.sent == self.value:
                self.respond(None, True)
            else:
                self.sent += 1
                self.respond(self.sent)


class StubAsked:
    def __init__(self, requester: "StubRequester", on_answer: Callable[[Outcome], None]) -> None:
        self._requester = requester
        self._on_answer: Callable[[Outcome], None] | None = on_answer

    def cancel(self) -> None:
        assert self._on_answer is not None
        self._on_answer = None
        self._requester.cancelled += 1

    def answer(self, outcome: Outcome) -> None:
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            on_answer(outcome)


class StubRequester:
    """Answers like a requester: ``simple`` adds and subtracts, everything else echoes.

    Answers over 64 KiB are borrowed: what they point to is overwritten the moment that they are released.
    ``held`` waits until the test calls ``finish_held``; ``failing`` raises the error whose name is its input. Of the
    decoupled models, ``count`` answers 1 … to its input, and ``stream`` what the test says in ``streams``.
    """

    def __init__(self) -> None:
        self.models = ModelTableView()
        self.models.update(table())
        self.regions = RegionTableView()
        self.server_settings = ServerSettings(1, LogSettings(), {"": TraceSettings()})
        self.on_settings: Callable[[ServerSettings], None] | None = None
        self.held: list[tuple[StubAsked, Outcome]] = []
        self.streams: list[StubStream] = []
        self.cancelled = 0
        self.borrowed = 0
        self.released = 0
        self.submitted: list[InferenceCall] = []
        self.messages: list[Any] = []
        self.answers: list[Any] = []
        self.errors: dict[str, ConchError] = {}

    def ask(self, model: ReadyModel, call: InferenceCall, on_answer: Callable[[Outcome], None]) -> "StubAsked":
        validate(model, call)
        self.submitted.append(call)
        asked = StubAsked(self, on_answer)
        outcome: Outcome
        if model.name == "failing":
            outcome = self.errors[bytes(call.inputs[0].data)[4:].decode()]
        else:
            outcome = self._result(model, call)
        if model.name == "held":
            self.held.append((asked, outcome))
        else:
            asyncio.get_running_loop().call_soon(asked.answer, outcome)
        return asked

    def stream(self, model: ReadyModel, call: InferenceCall, on_response: Any) -> StubAsked | StubStream:
        if not model.decoupled:
            return self.ask(model, call, lambda outcome: on_response(outcome, True))
        validate(model, call)
        self.submitted.append(call)
        stream = StubStream(self, model, call, on_response)
        self.streams.append(stream)
        if model.name == "count":
            asyncio.get_running_loop().call_soon(stream.count)
        return stream

    def finish_held(self) -> None:
        held, self.held = self.held, []
        for asked, outcome in held:
            asked.answer(outcome)

    def _result(self, model: ReadyModel, call: InferenceCall) -> InferenceResult:
        outputs = []
        if model.name == "simple":
            by_name = {tensor.name: np.frombuffer(tensor.data, np.int32) for tensor in call.inputs}
            shape = call.inputs[0].shape
            sums = {"OUTPUT0": by_name["INPUT0"] + by_name["INPUT1"], "OUTPUT1": by_name["INPUT0"] - by_name["INPUT1"]}
            for name, values in sums.items():
                outputs.append((name, "INT32", shape, values.tobytes()))
        else:
            for tensor in call.inputs:
                name = tensor.name.replace("INPUT", "OUTPUT")
                outputs.append((name, tensor.datatype, tensor.shape, bytes(tensor.data)))
        wanted = [output for output in outputs if not call.outputs or output[0] in call.outputs]
        parameters = {key: value for key, value in call.parameters.items() if key.startswith("echo")}
        if sum(len(output[3]) for output in wanted) <= COPY_LIMIT_NBYTES:
            tensors = [OutputTensor(*output) for output in wanted]
            return InferenceResult(model.name, model.version, call.client_id, parameters, tensors, None)
        blocks = [bytearray(output[3]) for output in wanted]
        tensors = [
            OutputTensor(name, datatype, shape, memoryview(block).toreadonly())
            for (name, datatype, shape, _), block in zip(wanted, blocks, strict=True)
        ]
        self.borrowed += 1

        def give_back() -> None:
            self.released += 1
            for block in blocks:
                block[:] = b"\xee" * len(block)

        return InferenceResult(model.name, model.version, call.client_id, parameters, tensors, give_back)

    async def call(self, message: Any) -> Any:
        self.messages.append(message)
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, ConchError):
            raise answer
        return answer


class Frontend:
    """``with Frontend() as frontend``: serves on ``frontend.port`` until the block ends."""

    def __init__(self, limits: Limits | None = None, application: Application | None = None, **settings: Any) -> None:
        self.requester = StubRequester()
        self._settings = Settings(**{"http_max_input_size": MAX_INPUT_NBYTES, **settings})
        self.port = 0
        self._limits = limits
        self._application = application
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.engine: Engine
        self.loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    def __enter__(self) -> "Frontend":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        if kind is None:
            assert self.requester.borrowed == self.requester.released
            assert self.engine.buffered_nbytes == 0

    def _run(self) -> None:
        uvloop.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        application = self._application or HttpApplication(self.requester, self._settings)
        keep_headers = isinstance(application, HttpApplication) and application.forwards_headers
        self.engine = Engine(application, self._limits, keep_headers=keep_headers)
        listener = socket.socket()
        listener.bind((ADDRESS, 0))
        self.port = listener.getsockname()[1]
        await self.engine.listen(listener, server_context(self._settings, "http"))
        self._ready.set()
        await self._stop.wait()
        await self.engine.close()

    def do(self, function: Callable[[], Any]) -> Any:
        """Runs ``function`` in the loop's thread and returns what it returned."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            try:
                result.append(function())
            finally:
                done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(10)
        return result[0]

    # ------------------------------------------------------------------------------------------------------- clients

    def connect(self) -> socket.socket:
        return socket.create_connection((ADDRESS, self.port), timeout=10)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own; header names in lower case."""
        connection = http.client.HTTPConnection(ADDRESS, self.port, timeout=10)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def infer(self, model: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """JSON in, JSON out."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, text = self.request("POST", f"/v2/models/{model}/infer", data, headers)
        return status, json.loads(text)


def tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def simple_request(**more: Any) -> dict[str, Any]:
    numbers = list(range(16))
    return {
        "inputs": [tensor("INPUT0", "INT32", [1, 16], numbers), tensor("INPUT1", "INT32", [1, 16], [1] * 16)],
        **more,
    }


def read_response(connection: socket.socket, buffered: bytearray | None = None) -> tuple[int, dict[str, str], bytes]:
    """One response; what came after it stays in ``buffered``."""
    received = bytearray() if buffered is None else buffered
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            raise EOFError(bytes(received))
        received += chunk
    head, _, rest = bytes(received).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = {key.lower(): value.strip() for key, _, value in (line.partition(":") for line in lines[1:])}
    length = int(headers.get("content-length", "0"))
    body = bytearray(rest)
    while len(body) < length:
        chunk = connection.recv(1 << 20)
        if not chunk:
            raise EOFError(head)
        body += chunk
    if buffered is not None:
        buffered[:] = body[length:]
    return int(lines[0].split()[1]), headers, bytes(body[:length])


def closed(connection: socket.socket) -> bool:
    """Whether the server ended the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
