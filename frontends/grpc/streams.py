"""``ModelStreamInfer``: many requests on one stream. Models that answer once do so in the order of their requests;
responses of decoupled models are written as they come."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any, Final

from google.protobuf.message import DecodeError

from conch.errors import ConchError, NotReady
from conch.requester.inference import InferenceResult, Outcome
from conch.requester.models import ReadyModel
from frontends.grpc.calls import Traffic
from frontends.grpc.codec import split_request
from frontends.grpc.errors import SHUTTING_DOWN, UNAVAILABLE, UNREADABLE, failure_of
from frontends.grpc.exchange import Failure, Payload, Replies, Reply
from frontends.grpc.inference import Wanted
from frontends.grpc.stream_requests import OrderedRequest, StreamRequest
from frontends.requesting import MAX_WAITING, RequesterLike, flooded

#: requests of one stream that have been read and have not had their last answer, and bytes of these requests, or of
#: answers that wait for their turn; the stream is not read beyond
MAX_OUTSTANDING: Final = 512
MAX_HELD_NBYTES: Final = 64 << 20
#: what is written at once; what is not yet, waits as results that count against their workers' windows
_AT_ONCE_MESSAGES: Final = 64
_AT_ONCE_NBYTES: Final = 65536

#: how a request is read for a model. Raises ``ConchError``.
Decode = Callable[[Any, list[memoryview], ReadyModel], Wanted]


class InferStream:
    """One stream. ``strict``: a request that fails while it runs ends the stream with its status (metadata
    ``triton_grpc_error``); otherwise every error is an answer like any other. What is wrong with a request itself never
    ends the stream."""

    def __init__(self, requester: RequesterLike, decode: Decode, traffic: Traffic, strict: bool) -> None:
        self._requester = requester
        self._decode = decode
        self._traffic = traffic
        self._strict = strict
        self._ordered: deque[OrderedRequest] = deque()
        #: of decoupled models, until their last response is taken; and their responses, in the order of arrival
        self._open: set[StreamRequest] = set()
        self._responses: deque[tuple[StreamRequest, Outcome | bytes | None, bool]] = deque()
        self._held_nbytes = 0
        #: of those, what is being written
        self._taken_nbytes = 0
        #: the client will send nothing more, or nothing that can be read
        self._ended = False
        self._failure: Failure | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()

    async def serve(self, requests: AsyncIterator[Payload]) -> AsyncIterator[Replies]:
        """The answers. Closing this cancels what is on its way."""
        self._traffic.enter()
        helpers = (
            asyncio.ensure_future(self._read(requests)),
            asyncio.ensure_future(self._until_stopped()),
        )
        try:
            while True:
                self._wake.clear()
                messages, failure = self._take_replies()
                if messages:
                    yield messages
                self._held_nbytes -= self._taken_nbytes
                self._taken_nbytes = 0
                self._room.set()
                if failure is None and not self._ordered and not self._open:
                    if self._ended:
                        if self._failure is None:
                            return
                        failure = self._failure
                    elif self._traffic.stopped.is_set():
                        failure = Failure(UNAVAILABLE, SHUTTING_DOWN)
                if failure is not None:
                    yield failure
                    return
                if not messages:
                    await self._wake.wait()
        finally:
            for helper in helpers:
                helper.cancel()
            for request in (*self._ordered, *self._open):
                if request.asked is not None:
                    request.asked.cancel()
            for _, outcome, _ in self._responses:
                if isinstance(outcome, InferenceResult):
                    outcome.release()
            self._traffic.leave()

    async def _until_stopped(self) -> None:
        await self._traffic.stopped.wait()
        self._wake.set()

    # ------------------------------------------------------------------------------------------------------- requests

    async def _read(self, requests: AsyncIterator[Payload]) -> None:
        """Takes requests up as they come, so that those of one stream can share a batch."""
        try:
            async for payload in requests:
                if not self._take(payload):
                    break
                del payload
                while len(self._ordered) + len(self._open) >= MAX_OUTSTANDING or self._held_nbytes > MAX_HELD_NBYTES:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._failure = failure_of(error)
        self._ended = True
        self._wake.set()

    def _take(self, payload: Payload) -> bool:
        """False for what is no request: the stream ends after what came before it."""
        try:
            message, blobs = split_request(payload)
        except DecodeError:
            self._failure = UNREADABLE
            return False
        self._held_nbytes += len(payload)
        try:
            if self._traffic.stopped.is_set():
                raise NotReady(SHUTTING_DOWN)
            model = self._requester.models.lookup(message.model_name, message.model_version)
        except ConchError as error:
            request = OrderedRequest(message, len(payload))
            self._ordered.append(request)
            self._settle(request, request.refused(error))
            return True
        if model.decoupled:
            self._begin_open(StreamRequest(message, len(payload)), blobs, model)
        else:
            self._begin_ordered(OrderedRequest(message, len(payload)), blobs, model)
        return True

    def _begin_ordered(self, request: OrderedRequest, blobs: list[memoryview], model: ReadyModel) -> None:
        self._ordered.append(request)
        try:
            wanted = self._decode(request.message, blobs, model)
            request.model, request.classes = model, wanted.classes
            request.asked = self._requester.ask(model, wanted.call, partial(self._answered, request))
        except Exception as error:
            self._settle(request, request.refused(error))

    def _begin_open(self, request: StreamRequest, blobs: list[memoryview], model: ReadyModel) -> None:
        self._open.add(request)
        try:
            wanted = self._decode(request.message, blobs, model)
            request.model, request.classes = model, wanted.classes
            request.asked = self._requester.stream(model, wanted.call, partial(self._responded, request))
        except Exception as error:
            self._responded(request, request.refused(error), True)

    # -------------------------------------------------------------------------------------------------------- answers

    def _answered(self, request: OrderedRequest, outcome: Outcome) -> None:
        request.asked = None
        self._settle(request, request.rendered(outcome, True, self._strict))

    def _settle(self, request: OrderedRequest, reply: Reply) -> None:
        self._held_nbytes += request.settle(reply)
        if self._ordered[0] is request:
            self._wake.set()

    def _responded(self, request: StreamRequest, outcome: Outcome | bytes | None, final: bool) -> None:
        """``bytes`` for a message that is ready to be written."""
        request.waiting += 1
        if request.waiting > MAX_WAITING and not final:
            if request.asked is not None:
                request.asked.cancel()
            outcome, final = flooded(), True
        if final:
            request.asked = None
        self._responses.append((request, outcome, final))
        self._wake.set()

    def _take_replies(self) -> tuple[list[bytes], Failure | None]:
        """What is to be written next, and what ends the stream after it."""
        messages: list[bytes] = []
        nbytes = 0
        for reply in self._replies():
            if isinstance(reply, Failure):
                return messages, reply
            messages.append(reply)
            nbytes += len(reply)
            if nbytes >= _AT_ONCE_NBYTES or len(messages) >= _AT_ONCE_MESSAGES:
                break
        return messages, None

    def _replies(self) -> Iterator[Reply]:
        """Of both kinds in turns."""
        ordered, responses = self._ordered, self._responses
        while True:
            reply = ordered[0].reply if ordered else None
            if reply is not None:
                self._taken_nbytes += ordered.popleft().nbytes
                yield reply
            elif not responses:
                return
            if responses:
                request, outcome, final = responses.popleft()
                request.waiting -= 1
                if final:
                    self._open.discard(request)
                    self._taken_nbytes += request.nbytes
                if isinstance(outcome, bytes):
                    yield outcome
                elif outcome is not None or request.wants_empty_final:
                    yield request.rendered(outcome, final, self._strict)
