"""``ModelStreamInfer``: many requests on one stream, each answered in its turn."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

from google.protobuf.message import DecodeError

from conch.errors import ConchError, Unsupported
from conch.requester.inference import InferenceResult, Outcome
from conch.requester.models import ReadyModel
from frontends.grpc.calls import Traffic
from frontends.grpc.codec import service_pb2, split_request, stream_response
from frontends.grpc.errors import SHUTTING_DOWN, UNAVAILABLE, UNREADABLE, failure_of
from frontends.grpc.exchange import Failure, Payload, Reply
from frontends.grpc.inference import encode
from frontends.requesting import AskedLike

#: requests of one stream that have been read and are not answered yet, and bytes of these requests, or of answers that
#: wait for their turn or for a slow client; the stream is not read beyond
MAX_OUTSTANDING: Final = 512
MAX_HELD_NBYTES: Final = 64 << 20

#: starts an inference: the request's message, its blobs, and who gets the outcome. Returns what to render an answer
#: with. Raises ``ConchError``.
Begin = Callable[[Any, list[memoryview], Callable[[Outcome], None]], tuple[AskedLike, ReadyModel, dict[str, int]]]


class _Slot:
    """One request's place in the order of answers. Models that send several responses will fill it more than once."""

    __slots__ = ("asked", "classes", "model", "nbytes", "reply", "request")

    def __init__(self, request: Any, nbytes: int) -> None:
        self.request = request
        #: of the request, or of the answer once there is one
        self.nbytes = nbytes
        self.asked: AskedLike | None = None
        self.model: ReadyModel
        self.classes: dict[str, int]
        self.reply: Reply | None = None


class InferStream:
    """One stream. ``strict``: a request that fails while it runs ends the stream with its status (metadata
    ``triton_grpc_error``); otherwise every error is an answer like any other. What is wrong with a request itself never
    ends the stream."""

    def __init__(self, begin: Begin, traffic: Traffic, strict: bool) -> None:
        self._begin = begin
        self._traffic = traffic
        self._strict = strict
        self._slots: deque[_Slot] = deque()
        self._held_nbytes = 0
        #: the client will send nothing more, or nothing that can be read
        self._ended = False
        self._failure: Failure | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    async def serve(self, requests: AsyncIterator[Payload]) -> AsyncIterator[Reply]:
        """The answers in order of the requests. Closing this cancels what is on its way."""
        self._traffic.enter()
        helpers = (
            asyncio.ensure_future(self._read(requests)),
            asyncio.ensure_future(self._until_stopped()),
        )
        slots = self._slots
        try:
            while True:
                while slots and slots[0].reply is not None:
                    slot = slots.popleft()
                    reply = slot.reply
                    assert reply is not None
                    yield reply
                    self._held_nbytes -= slot.nbytes
                    self._room.set()
                    if type(reply) is Failure:
                        return
                if not slots:
                    if self._ended:
                        if self._failure is not None:
                            yield self._failure
                        return
                    if self._traffic.stopped.is_set():
                        yield Failure(UNAVAILABLE, SHUTTING_DOWN)
                        return
                self._wake.clear()
                await self._wake.wait()
        finally:
            for helper in helpers:
                helper.cancel()
            for slot in slots:
                if slot.asked is not None:
                    slot.asked.cancel()
            self._traffic.leave()

    async def _until_stopped(self) -> None:
        await self._traffic.stopped.wait()
        self._wake.set()

    async def _read(self, requests: AsyncIterator[Payload]) -> None:
        """Takes requests up as they come, so that those of one stream can share a batch."""
        try:
            async for payload in requests:
                if not self._take(payload):
                    break
                del payload
                while len(self._slots) >= MAX_OUTSTANDING or self._held_nbytes > MAX_HELD_NBYTES:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._failure = failure_of(error)
        self._ended = True
        self._wake.set()

    def _take(self, payload: Payload) -> bool:
        """False for what is no request: the stream ends after what came before it."""
        try:
            request, blobs = split_request(payload)
        except DecodeError:
            self._failure = UNREADABLE
            return False
        slot = _Slot(request, len(payload))
        self._slots.append(slot)
        self._held_nbytes += slot.nbytes
        if self._traffic.stopped.is_set():
            self._settle(slot, _refused(request, SHUTTING_DOWN))
            return True
        try:
            slot.asked, slot.model, slot.classes = self._begin(request, blobs, partial(self._answered, slot))
        except ConchError as error:
            self._settle(slot, _refused(request, error.message))
        return True

    def _answered(self, slot: _Slot, outcome: Outcome) -> None:
        slot.asked = None
        if isinstance(outcome, InferenceResult):
            try:
                self._settle(slot, stream_response(encode(outcome, slot.classes, slot.model, streamed=True)))
                return
            except Exception as error:
                failure, message = failure_of(error), error
        else:
            failure, message = failure_of(outcome), outcome
        self._settle(slot, failure if self._strict else _failed(slot.request, message, failure))

    def _settle(self, slot: _Slot, reply: Reply) -> None:
        slot.reply = reply
        nbytes = len(reply) if isinstance(reply, bytes) else 0
        self._held_nbytes += nbytes - slot.nbytes
        slot.nbytes = nbytes
        if self._slots[0] is slot:
            self._wake.set()


def _refused(request: Any, message: str) -> bytes:
    """The answer to a request that never ran, as Triton has it: of the response only the id."""
    return _in_band(message, service_pb2.ModelInferResponse(id=request.id))


def _failed(request: Any, error: BaseException, failure: Failure) -> bytes:
    response = service_pb2.ModelInferResponse(
        id=request.id, model_name=request.model_name, model_version=request.model_version
    )
    response.parameters["triton_final_response"].bool_param = True
    return _in_band(error.message if isinstance(error, ConchError) else failure.message, response)


def _in_band(message: str, response: Any) -> bytes:
    text = message.encode(errors="replace").decode()
    encoded: bytes = service_pb2.ModelStreamInferResponse(
        error_message=text, infer_response=response
    ).SerializeToString()
    return encoded


def check_streamable(model: ReadyModel) -> None:
    """Raises ``Unsupported``: several responses to a request are not there yet."""
    if model.decoupled:
        raise Unsupported("models with decoupled transaction policy are not supported yet")
