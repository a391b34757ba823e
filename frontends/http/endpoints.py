"""What every endpoint but inference answers. A handler takes a request whose body has arrived and raises nothing but
``ConchError``."""

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from conch.errors import InvalidArgument, MalformedJson
from conch.messages import (
    AskReady,
    AskStatistics,
    BatchStatistics,
    Duration,
    ModelStatistics,
    UnloadModel,
)
from conch.settings import Settings
from frontends import metadata
from frontends.http.calls import BrokerCall
from frontends.http.errors import RETRY_AFTER
from frontends.http.exchange import JSON_TYPE, Pending, Reply, Request, error_reply, json_reply
from frontends.http.json_values import NOT_STRING, boolean, parse_members
from frontends.http.routes import Match
from frontends.readiness import all_ready
from frontends.repository import check_repository, load_message
from frontends.requesting import RequesterLike

_READY_IS_NESTED: Final = re.compile(rb'"ready"\s*:\s*[\[{]')
_EMPTY: Final = Reply(200)


class Endpoints:
    """``leaving``: the server and its models are not ready, so that nobody sends more than is on its way already."""

    def __init__(self, requester: RequesterLike, settings: Settings) -> None:
        self.leaving = False
        self._requester = requester
        self._models = requester.models
        self._metadata = json_reply(metadata.server_metadata(settings))
        self._strict_readiness = settings.strict_readiness
        self._max_input_nbytes = settings.http_max_input_size

    def server_live(self, request: Request, match: Match) -> Reply:
        return self._exiting() or _EMPTY

    def server_ready(self, request: Request, match: Match) -> Reply | Pending:
        exiting = self._exiting()
        if exiting is not None:
            return exiting
        if self.leaving or not self._models.server_ready(self._strict_readiness):
            return Reply(400)
        return self._checked(self._models.server_checks(self._strict_readiness), Reply(400))

    def _exiting(self) -> Reply | None:
        if self._models.server_state == "exiting":
            return error_reply(503, "Server exiting", RETRY_AFTER)
        return None

    def server_metadata(self, request: Request, match: Match) -> Reply:
        return self._metadata

    def model_ready(self, request: Request, match: Match) -> Reply | Pending:
        not_ready = error_reply(400, "Model version not ready")
        if not self._models.model_ready(match.model, match.version) or self.leaving:
            return not_ready
        return self._checked(self._models.checks(match.model, match.version), not_ready)

    def _checked(self, checks: Sequence[AskReady], not_ready: Reply) -> Reply | Pending:
        if not checks:
            return _EMPTY
        return BrokerCall(all_ready(self._requester, checks), lambda ready: _EMPTY if ready else not_ready)

    def model_metadata(self, request: Request, match: Match) -> Reply:
        return json_reply(metadata.model_metadata(self._models, match.model, match.version))

    def model_config(self, request: Request, match: Match) -> Reply:
        text = metadata.model_config_json(self._models, match.model, match.version)
        return Reply(200, JSON_TYPE, text.encode())

    def repository_index(self, request: Request, match: Match) -> Reply:
        try:
            body = self._body(request)
        except InvalidArgument:
            # Triton's parser has no limit on nesting here: it reads on and finds that this is no boolean
            if _READY_IS_NESTED.search(bytes(request.body)):
                raise InvalidArgument("Invalid value for 'ready': expected a boolean") from None
            raise
        ready = body.get("ready", False)
        if type(ready) is not bool:
            raise InvalidArgument("Invalid value for 'ready': expected a boolean")
        return json_reply(metadata.repository_index(self._models, ready))

    def model_load(self, request: Request, match: Match) -> Pending:
        check_repository(match.repository)
        parameters = _strings(self._parameters(request))
        return self._call(load_message(match.model, parameters, lambda _, text: text, _base64), _done)

    def model_unload(self, request: Request, match: Match) -> Pending:
        check_repository(match.repository)
        value = self._parameters(request).get("unload_dependents", False)
        dependents = boolean(value, "Unable to parse 'unload_dependents'")
        return self._call(UnloadModel(0, match.model, dependents), _done)

    def statistics(self, request: Request, match: Match) -> Pending:
        version = metadata.statistics_version(self._models, match.model, match.version)
        return self._call(AskStatistics(0, match.model, version), _statistics)

    # ------------------------------------------------------------------------------------------------------------

    def _call(self, message: Any, render: Callable[[Any], Reply]) -> Pending:
        return BrokerCall(self._requester.call(message), render)

    def _body(self, request: Request) -> dict[str, Any]:
        """A body that may be empty."""
        return parse_members(bytes(request.body), self._max_input_nbytes) if request.body else {}

    def _parameters(self, request: Request) -> dict[str, Any]:
        parameters = self._body(request).get("parameters", {})
        if type(parameters) is not dict:
            raise MalformedJson("attempt to get members for non-object")
        return parameters


def _done(result: object) -> Reply:
    return Reply(200, JSON_TYPE)


def _strings(parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in parameters.items():
        if type(value) is not str:
            raise MalformedJson(NOT_STRING)
        yield key, value


def _base64(key: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"'{key}' is not valid base64") from None


def _statistics(found: list[ModelStatistics]) -> Reply:
    return json_reply({"model_stats": [_model_statistics(model) for model in found]})


def _model_statistics(model: ModelStatistics) -> dict[str, Any]:
    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": model.last_inference_ms,
        "inference_count": model.inference_count,
        "execution_count": model.execution_count,
        "inference_stats": {kind: _duration(getattr(model, kind)) for kind in kinds},
        "response_stats": {},
        "batch_stats": [_batch_statistics(batch) for batch in model.batches],
        "memory_usage": [],
    }


def _batch_statistics(batch: BatchStatistics) -> dict[str, Any]:
    return {
        "batch_size": batch.batch_size,
        "compute_input": _duration(batch.compute_input),
        "compute_infer": _duration(batch.compute_infer),
        "compute_output": _duration(batch.compute_output),
    }


def _duration(duration: Duration) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
