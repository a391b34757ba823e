"""The generate extension: one JSON object in, and one out per response, as a reply or as server-sent events."""

from collections import deque
from math import prod
from typing import Final

import orjson

from conch.errors import ConchError, Internal, InvalidArgument
from conch.requester.inference import InferenceCall, InferenceResult, Outcome
from conch.requester.models import ReadyModel
from frontends.http.errors import reply_to
from frontends.http.exchange import JSON_TYPE, Pending, Reply, Request, Streaming
from frontends.http.generate_request import decode
from frontends.http.routes import Match
from frontends.http.tensor_json import dumps, from_wire
from frontends.requesting import MAX_WAITING, AskedLike, RequesterLike, flooded

_NOT_ONE: Final = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)
_EVENTS_TYPE: Final = b"Content-Type: text/event-stream; charset=utf-8\r\n"


class Generations:
    """Answers requests to ``generate`` and ``generate_stream``."""

    def __init__(self, requester: RequesterLike, max_input_nbytes: int) -> None:
        self._requester = requester
        self._max_input_nbytes = max_input_nbytes

    def generate(self, request: Request, match: Match) -> Pending:
        model, call = self._read(request, match)
        generation = _Generation()
        generation.asked = self._requester.stream(model, call, generation.responded)
        return generation

    def generate_stream(self, request: Request, match: Match) -> Pending:
        """What is wrong with the request itself is an ordinary error, no event."""
        model, call = self._read(request, match)
        stream = _EventStream()
        stream.asked = self._requester.stream(model, call, stream.responded)
        return stream

    def _read(self, request: Request, match: Match) -> tuple[ReadyModel, InferenceCall]:
        model = self._requester.models.lookup(match.model, match.version)
        if request.fields.get(b"content-encoding", b"identity") not in (b"identity", b""):
            raise InvalidArgument("Unsupported content-encoding, only 'identity' is supported.")
        return model, decode(request.body, model, self._max_input_nbytes)


class _Generation(Pending):
    """Answered when it is known that the first response is the only one."""

    __slots__ = ("_only", "asked")

    asked: AskedLike

    def __init__(self) -> None:
        self._only: Outcome | None = None

    def cancel(self) -> None:
        self.asked.cancel()
        self._drop()

    def responded(self, outcome: Outcome | None, final: bool) -> None:
        if outcome is not None:
            if self._only is not None:
                self._drop()
                _release(outcome)
                if not final:
                    self.asked.cancel()
                self.finish(_reply, Internal(_NOT_ONE))
                return
            self._only = outcome
        if final:
            self.finish(_reply, self._only or Internal(_NOT_ONE))

    def _drop(self) -> None:
        if self._only is not None:
            _release(self._only)


class _EventStream(Streaming):
    """Responses become events as they come and as the client reads. The first one decides the status."""

    __slots__ = ("_begun", "_paused", "_waiting", "asked")

    asked: AskedLike

    def __init__(self) -> None:
        self._begun = False
        self._paused = False
        #: what the client has no room for; as results, these count against their worker's window
        self._waiting: deque[tuple[Outcome | None, bool]] = deque()

    def cancel(self) -> None:
        self.asked.cancel()
        for outcome, _ in self._waiting:
            if outcome is not None:
                _release(outcome)
        self._waiting.clear()

    def resume(self) -> None:
        self._paused = False
        while self._waiting and not self._paused:
            self._write(*self._waiting.popleft())

    def responded(self, outcome: Outcome | None, final: bool) -> None:
        if self._paused:
            if len(self._waiting) == MAX_WAITING and not final:
                self.asked.cancel()
                outcome, final = flooded(), True
            self._waiting.append((outcome, final))
        else:
            self._write(outcome, final)

    def _write(self, outcome: Outcome | None, final: bool) -> None:
        reply = None
        if outcome is not None:
            try:
                reply = _reply(outcome)
            except Exception as error:
                reply = reply_to(error)
        if not self._begun:
            self._begun = True
            self.sink.begin(200 if reply is None else reply.status, _EVENTS_TYPE)
        if reply is not None:
            self._paused = not self.sink.write(b"data: %b\n\n" % reply.body)
        if final:
            self.sink.end()


def _release(outcome: Outcome) -> None:
    if isinstance(outcome, InferenceResult):
        outcome.release()


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
