"""The gRPC API: which RPCs there are, what each may be restricted by, and inferences."""

import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

from google.protobuf.message import DecodeError

from conch.categories import Category
from conch.errors import ConchError, Unsupported
from conch.requester.inference import InferenceResult, Outcome
from conch.requester.models import ReadyModel
from conch.settings import Settings
from frontends.grpc.calls import SERVICE, CountedPending, Rpc, Traffic
from frontends.grpc.codec import split_request
from frontends.grpc.errors import SHUTTING_DOWN, UNAVAILABLE, UNREADABLE, failure_of
from frontends.grpc.exchange import Call, Failure, Metadata, Payload, Pending, Replies, Reply
from frontends.grpc.health import health_rpcs
from frontends.grpc.inference import Wanted, decode, encode
from frontends.grpc.metadata import MetadataRpcs
from frontends.grpc.repository import RepositoryRpcs
from frontends.grpc.server_settings import SettingsRpcs
from frontends.grpc.shared_memory import SharedMemoryRpcs
from frontends.grpc.streams import InferStream
from frontends.metadata import server_metadata
from frontends.requesting import AskedLike, RequesterLike

logger = logging.getLogger("conch.frontends.grpc.application")

INFER: Final = SERVICE + "ModelInfer"
STREAM: Final = SERVICE + "ModelStreamInfer"
_DECOUPLED: Final = "ModelInfer RPC doesn't support models with decoupled transaction policy"


class _Inference(CountedPending):
    """An inference that is on its way, and how its answer is to be shown."""

    __slots__ = ("_classes", "_model", "asked")

    asked: AskedLike

    def __init__(self, traffic: Traffic, model: ReadyModel, classes: dict[str, int]) -> None:
        super().__init__(traffic)
        self._model = model
        self._classes = classes

    def cancel(self) -> None:
        self.leave()
        self.asked.cancel()

    def answered(self, outcome: Outcome) -> None:
        self.finish(self._render, outcome)

    def _render(self, outcome: Outcome) -> Reply:
        if not isinstance(outcome, InferenceResult):
            return failure_of(outcome)
        try:
            return encode(outcome, self._classes, self._model)
        except ConchError as error:
            return failure_of(error)


class GrpcApplication:
    """Implements ``frontends.grpc.exchange.Application`` on a requester. Raises ``InvalidArgument`` for settings that
    cannot be understood."""

    def __init__(self, requester: RequesterLike, settings: Settings) -> None:
        self.traffic = Traffic()
        self._requester = requester
        self._models = requester.models
        self._restrictions = settings.restrictions("grpc")
        self._forwarding = settings.forwarding("grpc")
        about = MetadataRpcs(requester, server_metadata(settings), settings.strict_readiness, self.traffic)
        self._rpcs: dict[str, Rpc] = {
            INFER: Rpc(Category.INFERENCE, self._infer),
            **about.rpcs(),
            **health_rpcs(about.ready),
            **RepositoryRpcs(requester).rpcs(self.traffic),
            **SharedMemoryRpcs(requester, settings.client_shm_allowed).rpcs(self.traffic),
            **SettingsRpcs(requester).rpcs(self.traffic),
        }
        self._streams = {STREAM: Category.INFERENCE}
        self.methods = tuple(self._rpcs)
        self.streams = tuple(self._streams)

    def answer(self, call: Call) -> Reply | Pending:
        logger.debug("gRPC request: %s", call.method)
        rpc = self._rpcs[call.method]
        try:
            self._admit(rpc.category, call.metadata)
            return rpc.answer(call)
        except ConchError as error:
            return failure_of(error)

    async def stream(self, call: Call, requests: AsyncIterator[Payload]) -> AsyncIterator[Replies]:
        logger.debug("gRPC stream: %s", call.method)
        try:
            self._admit(self._streams[call.method], call.metadata)
        except ConchError as error:
            yield failure_of(error)
            return
        strict = ("triton_grpc_error", "true") in call.metadata
        stream = InferStream(self._requester, partial(self._decode, call), self.traffic, strict)
        replies = stream.serve(requests)
        try:
            async for messages in replies:
                yield messages
        finally:
            await replies.aclose()  # type: ignore[attr-defined]

    def _admit(self, category: Category, metadata: Metadata) -> None:
        """The one place that every RPC and every stream passes. Raises ``Forbidden``."""
        if self._restrictions:
            self._restrictions.check(category, dict(_texts(metadata)).get)

    # ----------------------------------------------------------------------------------------------------- inference

    def _infer(self, call: Call) -> Reply | Pending:
        if self.traffic.stopped.is_set():
            return Failure(UNAVAILABLE, SHUTTING_DOWN)
        try:
            request, blobs = split_request(call.payload)
        except DecodeError:
            return UNREADABLE
        model = self._models.lookup(request.model_name, request.model_version)
        if model.decoupled:
            raise Unsupported(_DECOUPLED)
        wanted = self._decode(call, request, blobs, model)
        inference = _Inference(self.traffic, model, wanted.classes)
        try:
            inference.asked = self._requester.ask(model, wanted.call, inference.answered)
        except BaseException:
            inference.leave()
            raise
        return inference

    def _decode(self, call: Call, request: Any, blobs: list[memoryview], model: ReadyModel) -> Wanted:
        wanted = decode(request, blobs, model, self._requester.regions, self._forwarded(call.metadata))
        wanted.call.deadline = call.deadline
        return wanted

    def _forwarded(self, metadata: Metadata) -> dict[str, str]:
        return self._forwarding.parameters(_texts(metadata)) if self._forwarding else {}


def _texts(metadata: Metadata) -> list[tuple[str, str]]:
    return [
        (key, value if isinstance(value, str) else value.decode(errors="surrogateescape")) for key, value in metadata
    ]
