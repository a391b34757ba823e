"""The HTTP API: routes requests to endpoints, and turns whatever goes wrong into Triton's errors."""

import logging
from collections.abc import Callable
from typing import Final

from conch.categories import Category
from conch.errors import ConchError, Forbidden, InvalidArgument, Unsupported
from conch.messages import ServerSettings
from conch.requester.inference import InferenceCall, InferenceResult, Outcome
from conch.requester.models import ReadyModel
from conch.settings import Settings
from frontends.http.compression import Compression
from frontends.http.cross_origin import is_cross_origin
from frontends.http.docs_page import DocsEndpoints
from frontends.http.endpoints import Endpoints
from frontends.http.errors import reply_to
from frontends.http.exchange import Pending, Reply, Request, error_reply
from frontends.http.generate import Generations
from frontends.http.json_values import too_large
from frontends.http.request_body import MAX_32, Body, decode, header_length
from frontends.http.request_outputs import OutputFormats
from frontends.http.response_body import encode
from frontends.http.routes import Endpoint, Match, resolve
from frontends.http.server_settings import SettingsEndpoints
from frontends.http.shared_memory import SharedMemoryEndpoints
from frontends.requesting import AskedLike, RequesterLike

logger = logging.getLogger("conch.frontends.http.application")

Handler = Callable[[Request, Match], Reply | Pending]

#: a member of an enumeration is slow to look up, and to hash
_INFER: Final = Endpoint.INFER
_HEADER_LENGTH: Final = b"inference-header-content-length"
_ENCODING: Final = b"content-encoding"
_ACCEPT_ENCODING: Final = b"accept-encoding"
_CROSS_ORIGIN: Final = "other sites' pages may not do this; send it from a program, or from this server's page /v2/docs"
_DECOUPLED: Final = "HTTP end point doesn't support models with decoupled transaction policy"


class _Inference(Pending):
    """An inference that is on its way, and how its answer is to be shown."""

    __slots__ = ("_formats", "_model", "asked")

    asked: AskedLike

    def __init__(self, formats: OutputFormats, model: ReadyModel) -> None:
        self._formats = formats
        self._model = model

    def cancel(self) -> None:
        self.asked.cancel()

    def answered(self, outcome: Outcome) -> None:
        self.finish(self._render, outcome)

    def _render(self, outcome: Outcome) -> Reply:
        if not isinstance(outcome, InferenceResult):
            return reply_to(outcome)
        try:
            return encode(outcome, self._formats, self._model)
        except ConchError as error:
            outcome.release()
            return reply_to(error)


class HttpApplication:
    """Implements ``frontends.http.exchange.Application`` on a requester. Raises ``InvalidArgument`` for settings that
    are none. ``forwards_headers``: the engine is to keep headers as clients spell them."""

    def __init__(self, requester: RequesterLike, settings: Settings) -> None:
        self._requester = requester
        self._models = requester.models
        self._regions = requester.regions
        self._max_input_nbytes = settings.http_max_input_size
        self._restrictions = settings.restrictions("http")
        self._restricts = bool(self._restrictions)
        self._forwarding = settings.forwarding("http")
        self.forwards_headers = bool(self._forwarding)
        self._compression = Compression(settings.http_max_input_size)
        self._verbose = logger.isEnabledFor(logging.DEBUG)
        requester.on_settings = self._settings_changed
        self._general = Endpoints(requester, settings)
        self._handlers = _handlers(requester, settings, self._general)

    def _settings_changed(self, settings: ServerSettings) -> None:
        self._verbose = settings.log.verbose_level > 0

    def leave(self) -> None:
        """From now on the server and its models are not ready, and everything else is as before."""
        self._general.leaving = True

    def answer(self, request: Request) -> Reply | Pending:
        if self._verbose:
            logger.debug("HTTP request: %s %s", request.method.decode(), request.target.decode("latin-1"))
        match = resolve(request.target)
        if match is None or match.endpoint is not _INFER or self._restricts or request.method not in match.methods:
            # otherwise there is nothing to ask, and a call saved
            admitted = self._admit(request)
            if isinstance(admitted, Reply):
                return admitted
            match = admitted
        try:
            if match.endpoint is _INFER:
                return self._infer(request, match)
            return self._handlers[match.endpoint](request, match)
        except ConchError as error:
            return reply_to(error)

    def _admit(self, request: Request) -> Match | Reply:
        """What every request has to pass, before its body is read if that is large, and again when it is there."""
        match = resolve(request.target)
        if match is None:
            return error_reply(404, "Not Found")
        if self._restricts:
            try:
                self._restrictions.check(match.category, lambda name: _field(request, name))
            except Forbidden as error:
                return reply_to(error)
        if request.method not in match.methods:
            return error_reply(405, "Method Not Allowed", b"Allow: %b\r\n" % b", ".join(match.methods))
        if request.method == b"POST" and match.category is not Category.INFERENCE and is_cross_origin(request.fields):
            return error_reply(403, _CROSS_ORIGIN)
        return match

    def refuse(self, request: Request, nbytes: int) -> Reply | None:
        match = self._admit(request)
        if isinstance(match, Reply):
            return match
        length = request.fields.get(_HEADER_LENGTH)
        try:
            if match.endpoint is _INFER and nbytes > MAX_32:
                raise InvalidArgument(
                    f"Unable to parse Content-Length, value is out of range [ {-MAX_32 - 1}, {MAX_32} ], got: {nbytes}"
                )
            if match.endpoint is not _INFER or length is None:
                if nbytes > self._max_input_nbytes:
                    raise too_large(nbytes, self._max_input_nbytes)
            elif request.content_length is not None and _ENCODING not in request.fields:
                json_nbytes = header_length(length, request.content_length)
                if json_nbytes > self._max_input_nbytes:
                    raise too_large(json_nbytes, self._max_input_nbytes)
        except ConchError as error:
            return reply_to(error)
        return None

    def _infer(self, request: Request, match: Match) -> Reply | Pending:
        model = self._models.lookup(match.model, match.version)
        if model.decoupled:
            raise Unsupported(_DECOUPLED)
        if _ENCODING in request.fields or _ACCEPT_ENCODING in request.fields:
            return self._compression.answer(request, lambda body: self._ask(request, body, model))
        return self._ask(request, request.body, model)

    def _ask(self, request: Request, body: Body, model: ReadyModel) -> Pending:
        json_nbytes = header_length(request.fields.get(_HEADER_LENGTH), len(body))
        call, formats = decode(body, json_nbytes, model, self._regions, self._max_input_nbytes)
        if self.forwards_headers:
            self._forward(request, call)
        inference = _Inference(formats, model)
        inference.asked = self._requester.ask(model, call, inference.answered)
        return inference

    def _forward(self, request: Request, call: InferenceCall) -> None:
        headers = ((name.decode("latin-1"), value.decode(errors="replace")) for name, value in request.headers)
        forwarded = self._forwarding.parameters(headers)
        if forwarded:
            call.parameters = {**call.parameters, **forwarded}


def _field(request: Request, name: str) -> str | None:
    value = request.fields.get(name.encode(errors="replace"))
    return None if value is None else value.decode(errors="surrogateescape")


def _handlers(requester: RequesterLike, settings: Settings, general: Endpoints) -> dict[Endpoint, Handler]:
    """Every endpoint but inference."""
    regions = SharedMemoryEndpoints(requester, settings)
    current = SettingsEndpoints(requester, settings)
    docs = DocsEndpoints(requester.models, settings.server_id)
    generations = Generations(requester, settings.http_max_input_size)
    return {
        Endpoint.SERVER_LIVE: general.server_live,
        Endpoint.SERVER_READY: general.server_ready,
        Endpoint.SERVER_METADATA: general.server_metadata,
        Endpoint.MODEL_READY: general.model_ready,
        Endpoint.MODEL_METADATA: general.model_metadata,
        Endpoint.MODEL_CONFIG: general.model_config,
        Endpoint.STATISTICS: general.statistics,
        Endpoint.REPOSITORY_INDEX: general.repository_index,
        Endpoint.MODEL_LOAD: general.model_load,
        Endpoint.MODEL_UNLOAD: general.model_unload,
        Endpoint.SYSTEM_REGIONS: regions.system_regions,
        Endpoint.SYSTEM_REGION_REGISTER: regions.system_region_register,
        Endpoint.SYSTEM_REGION_UNREGISTER: regions.system_region_unregister,
        Endpoint.CUDA_REGIONS: regions.cuda_regions,
        Endpoint.CUDA_REGION_REGISTER: regions.cuda_region_register,
        Endpoint.CUDA_REGION_UNREGISTER: regions.cuda_region_unregister,
        Endpoint.TRACE_SETTINGS: current.trace_settings,
        Endpoint.LOG_SETTINGS: current.log_settings,
        Endpoint.GENERATE: generations.generate,
        Endpoint.GENERATE_STREAM: generations.generate_stream,
        Endpoint.DOCS: docs.docs,
        Endpoint.OPENAPI: docs.openapi,
    }
