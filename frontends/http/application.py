"""The HTTP API: routes requests to endpoints, and turns whatever goes wrong into Triton's errors."""

import logging
from collections.abc import Callable
from typing import Final

from conch.errors import ConchError, InvalidArgument, Unsupported
from frontends.http.compression import decompressed
from frontends.http.endpoints import AskedLike, Endpoints, RequesterLike
from frontends.http.errors import reply_to
from frontends.http.exchange import Pending, Reply, Request, error_reply
from frontends.http.json_values import too_large
from frontends.http.request_body import MAX_32, OutputFormats, decode, header_length
from frontends.http.response_body import encode
from frontends.http.routes import Endpoint, Match, resolve
from frontends.inference import InferenceResult, Outcome
from frontends.models import ReadyModel

logger = logging.getLogger("conch.frontends.http.application")

Handler = Callable[[Request, Match], Reply | Pending]

#: a member of an enumeration is slow to look up, and to hash
_INFER: Final = Endpoint.INFER
_HEADER_LENGTH: Final = b"inference-header-content-length"
_ENCODING: Final = b"content-encoding"
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
    """Implements ``frontends.http.exchange.Application`` on a requester."""

    def __init__(
        self, requester: RequesterLike, *, server_id: str, strict_readiness: bool, max_input_nbytes: int
    ) -> None:
        self._requester = requester
        self._models = requester.models
        self._max_input_nbytes = max_input_nbytes
        self._verbose = logger.isEnabledFor(logging.DEBUG)
        endpoints = Endpoints(requester, server_id, strict_readiness, max_input_nbytes)
        self._handlers: dict[Endpoint, Handler] = {
            endpoint: getattr(endpoints, endpoint.name.lower()) for endpoint in Endpoint if endpoint is not _INFER
        }

    def answer(self, request: Request) -> Reply | Pending:
        if self._verbose:
            logger.debug("HTTP request: %s %s", request.method.decode(), request.target.decode("latin-1"))
        match = resolve(request.target)
        if match is None:
            return error_reply(404, "Not Found")
        if request.method != match.method:
            return _not_allowed(match)
        try:
            if match.endpoint is _INFER:
                return self._infer(request, match)
            return self._handlers[match.endpoint](request, match)
        except ConchError as error:
            return reply_to(error)

    def refuse(self, request: Request, nbytes: int) -> Reply | None:
        match = resolve(request.target)
        if match is None:
            return error_reply(404, "Not Found")
        if request.method != match.method:
            return _not_allowed(match)
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
        fields = request.fields
        body = request.body
        if _ENCODING in fields:
            body = decompressed(body, fields[_ENCODING], self._max_input_nbytes)
        json_nbytes = header_length(fields.get(_HEADER_LENGTH), len(body))
        call, formats = decode(body, json_nbytes, model, self._max_input_nbytes)
        inference = _Inference(formats, model)
        inference.asked = self._requester.ask(model, call, inference.answered)
        return inference


def _not_allowed(match: Match) -> Reply:
    return error_reply(405, "Method Not Allowed", b"Allow: %b\r\n" % match.method)
