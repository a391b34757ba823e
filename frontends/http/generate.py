"""The generate extension: one JSON object in, and one out per response, as a reply or as server-sent events."""

from math import prod
from typing import Final

import orjson

from conch.errors import ConchError, InvalidArgument, Unsupported
from conch.requester.inference import InferenceCall, InferenceResult, Outcome
from conch.requester.models import ReadyModel
from frontends.http.errors import reply_to
from frontends.http.exchange import JSON_TYPE, Pending, Reply, Request, Streaming
from frontends.http.generate_request import decode
from frontends.http.routes import Match
from frontends.http.tensor_json import dumps, from_wire
from frontends.requesting import AskedLike, RequesterLike

_EVENTS_TYPE: Final = b"Content-Type: text/event-stream; charset=utf-8\r\n"


class Generations:
    """Answers requests to ``generate`` and ``generate_stream``."""

    def __init__(self, requester: RequesterLike, max_input_nbytes: int) -> None:
        self._requester = requester
        self._max_input_nbytes = max_input_nbytes

    def generate(self, request: Request, match: Match) -> Pending:
        model, call = self._read(request, match)
        generation = _Generation()
        generation.asked = self._requester.ask(model, call, generation.answered)
        return generation

    def generate_stream(self, request: Request, match: Match) -> Pending:
        """What is wrong with the request itself is an ordinary error, no event."""
        model, call = self._read(request, match)
        stream = _EventStream()
        stream.asked = self._requester.ask(model, call, lambda outcome: stream.responded(outcome, True))
        return stream

    def _read(self, request: Request, match: Match) -> tuple[ReadyModel, InferenceCall]:
        model = self._requester.models.lookup(match.model, match.version)
        if model.decoupled:
            raise Unsupported(
                f"model '{model.name}' has a decoupled transaction policy, which this server does not serve yet"
            )
        if request.fields.get(b"content-encoding", b"identity") not in (b"identity", b""):
            raise InvalidArgument("Unsupported content-encoding, only 'identity' is supported.")
        return model, decode(request.body, model, self._max_input_nbytes)


class _Generation(Pending):
    __slots__ = ("asked",)

    asked: AskedLike

    def cancel(self) -> None:
        self.asked.cancel()

    def answered(self, outcome: Outcome) -> None:
        self.finish(_reply, outcome)


class _EventStream(Streaming):
    """Responses become events as they come. The first one decides the status."""

    __slots__ = ("_begun", "asked")

    asked: AskedLike

    def __init__(self) -> None:
        self._begun = False

    def cancel(self) -> None:
        self.asked.cancel()

    def resume(self) -> None:
        """A single response is written whatever the client does."""

    def responded(self, outcome: Outcome, final: bool) -> None:
        try:
            reply = _reply(outcome)
        except Exception as error:
            reply = reply_to(error)
        if not self._begun:
            self._begun = True
            self.sink.begin(reply.status, _EVENTS_TYPE)
        self.sink.write(b"data: %b\n\n" % reply.body)
        if final:
            self.sink.end()


def _reply(outcome: Outcome) -> Reply:
    if not isinstance(outcome, InferenceResult):
        return reply_to(outcome)
    try:
        return Reply(200, JSON_TYPE, encode(outcome))
    except ConchError as error:
        return reply_to(error)
    finally:
        outcome.release()


def encode(result: InferenceResult) -> bytes:
    """Everything that the response has, by name, in one object; names that mean two things mean the first of: the
    response's own, parameter, output. A tensor of one element is that element, any other a flat list. Raises
    ``ConchError`` for a tensor that JSON cannot hold."""
    values: dict[str, bytes] = {}
    for output in result.outputs:
        elements = prod(output.shape)
        shown = dumps(from_wire(output.name, output.datatype, output.data, elements))
        values[output.name] = shown[1:-1] if elements == 1 else shown
    for name, value in result.parameters.items():
        values[name] = dumps([value])[1:-1]
    if result.client_id:
        values["id"] = orjson.dumps(result.client_id)
    values["model_name"] = orjson.dumps(result.model_name)
    values["model_version"] = orjson.dumps(str(result.model_version))
    return b"{" + b",".join(orjson.dumps(name) + b":" + values[name] for name in sorted(values)) + b"}"
