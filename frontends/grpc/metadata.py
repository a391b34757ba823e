"""RPCs about the server and its models: health, metadata, configurations, statistics."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from conch.categories import Category
from conch.errors import NotFound, NotReady
from conch.messages import AskReady, AskStatistics, BatchStatistics, Duration, ModelStatistics
from frontends import metadata
from frontends.grpc.calls import SERVICE, Rpc, Traffic, Work, replying, unary, unary_later
from frontends.grpc.codec import service_pb2 as pb
from frontends.grpc.exchange import Pending, Reply
from frontends.readiness import all_ready
from frontends.requesting import RequesterLike

_PHASES: Final = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
)  # fmt: skip


class MetadataRpcs:
    """``server_metadata`` is what ``frontends.metadata`` says of this server."""

    def __init__(
        self, requester: RequesterLike, server_metadata: dict[str, Any], strict_readiness: bool, traffic: Traffic
    ) -> None:
        self._requester = requester
        self._traffic = traffic
        self._models = requester.models
        self._strict_readiness = strict_readiness
        self._server_metadata = pb.ServerMetadataResponse(**server_metadata)

    def rpcs(self) -> dict[str, Rpc]:
        return {
            SERVICE + "ServerLive": unary(Category.HEALTH, pb.ServerLiveRequest, self._server_live),
            SERVICE + "ServerReady": replying(Category.HEALTH, pb.ServerReadyRequest, self._server_ready),
            SERVICE + "ModelReady": replying(Category.HEALTH, pb.ModelReadyRequest, self._model_ready),
            SERVICE + "ServerMetadata": unary(
                Category.METADATA, pb.ServerMetadataRequest, lambda request: self._server_metadata
            ),
            SERVICE + "ModelMetadata": unary(Category.METADATA, pb.ModelMetadataRequest, self._model_metadata),
            SERVICE + "ModelConfig": unary(Category.MODEL_CONFIG, pb.ModelConfigRequest, self._model_config),
            SERVICE + "ModelStatistics": unary_later(
                Category.STATISTICS, pb.ModelStatisticsRequest, self._model_statistics, self._traffic
            ),
        }

    def ready(self, encode: Callable[[bool], bytes]) -> bytes | Pending:
        """Whether the server is ready, through ``encode``."""
        if self._traffic.leaving or not self._models.server_ready(self._strict_readiness):
            return encode(False)
        return self._checked(self._models.server_checks(self._strict_readiness), encode)

    def _server_live(self, request: Any) -> Any:
        return pb.ServerLiveResponse(live=self._models.server_state != "exiting")

    def _server_ready(self, request: Any) -> Reply | Pending:
        def encode(ready: bool) -> bytes:
            encoded: bytes = pb.ServerReadyResponse(ready=ready).SerializeToString()
            return encoded

        return self.ready(encode)

    def _model_ready(self, request: Any) -> Reply | Pending:
        """Not ready rather than an error for a model that there is not: Triton's clients count on that."""

        def encode(ready: bool) -> bytes:
            encoded: bytes = pb.ModelReadyResponse(ready=ready).SerializeToString()
            return encoded

        try:
            if self._models.model_ready(request.name, request.version) and not self._traffic.leaving:
                return self._checked(self._models.checks(request.name, request.version), encode)
        except (NotFound, NotReady):
            pass
        return encode(False)

    def _checked(self, checks: Sequence[AskReady], encode: Callable[[bool], bytes]) -> bytes | Pending:
        return Work(self._traffic, all_ready(self._requester, checks), encode) if checks else encode(True)

    def _model_metadata(self, request: Any) -> Any:
        return pb.ModelMetadataResponse(**metadata.model_metadata(self._models, request.name, request.version))

    def _model_config(self, request: Any) -> Any:
        from google.protobuf import json_format  # 20 ms that a starting frontend does not have

        text = metadata.model_config_json(self._models, request.name, request.version)
        response = pb.ModelConfigResponse()
        json_format.Parse(text, response.config)
        return response

    async def _model_statistics(self, request: Any) -> Any:
        version = metadata.statistics_version(self._models, request.name, request.version)
        found = await self._requester.call(AskStatistics(0, request.name, version))
        return pb.ModelStatisticsResponse(model_stats=map(_model_statistics, found))


def _model_statistics(model: ModelStatistics) -> Any:
    return pb.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=model.last_inference_ms,
        inference_count=model.inference_count,
        execution_count=model.execution_count,
        inference_stats=pb.InferStatistics(**{phase: _duration(getattr(model, phase)) for phase in _PHASES}),
        batch_stats=map(_batch_statistics, model.batches),
    )


def _batch_statistics(batch: BatchStatistics) -> Any:
    return pb.InferBatchStatistics(
        batch_size=batch.batch_size,
        compute_input=_duration(batch.compute_input),
        compute_infer=_duration(batch.compute_infer),
        compute_output=_duration(batch.compute_output),
    )


def _duration(duration: Duration) -> Any:
    return pb.StatisticDuration(count=duration.count, ns=duration.ns)
