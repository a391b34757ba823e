"""Log and trace settings that change while the server runs (inventory H-18, X-50, X-51, T-06, T-07)."""

from typing import Any, Final

from conch.errors import MalformedJson
from conch.settings import Settings
from frontends.http.calls import BrokerCall
from frontends.http.exchange import Pending, Reply, Request, error_reply, json_reply
from frontends.http.json_values import NOT_ARRAY, NOT_BOOLEAN, NOT_STRING, NOT_UNSIGNED, is_unsigned, parse_members
from frontends.http.routes import Match
from frontends.requesting import RequesterLike
from frontends.server_settings import (
    check_traced_model,
    current_trace,
    log_update,
    log_values,
    trace_update,
    trace_values,
)

_LOG_FORMATS: Final = ("default", "ISO8601")


class SettingsEndpoints:
    def __init__(self, requester: RequesterLike, settings: Settings) -> None:
        self._requester = requester
        self._max_input_nbytes = settings.http_max_input_size

    def log_settings(self, request: Request, match: Match) -> Reply | Pending:
        """Unlike Triton's, a request with an error changes nothing."""
        if request.method == b"GET":
            return json_reply(log_values(self._requester.server_settings.log))
        given = {name: value for name, value in self._body(request).items() if value is not None}
        update = log_update(given, _log_value)
        log_format = update.changes.get("format", "default")
        if log_format not in _LOG_FORMATS:
            return error_reply(503, f"invalid argument for --log_format, got: {log_format}")
        return BrokerCall(self._requester.call(update), lambda log: json_reply(log_values(log)))

    def trace_settings(self, request: Request, match: Match) -> Reply | Pending:
        model = match.model
        check_traced_model(self._requester.models, model)
        if request.method == b"GET":
            return json_reply(trace_values(current_trace(self._requester.server_settings, model)))
        update = trace_update(model, self._body(request), _texts)
        return BrokerCall(self._requester.call(update), lambda trace: json_reply(trace_values(trace)))

    def _body(self, request: Request) -> dict[str, Any]:
        return parse_members(bytes(request.body), self._max_input_nbytes)


def _log_value(name: str, value: Any) -> bool | int | str:
    match name:
        case "log_verbose_level":
            if not is_unsigned(value):
                raise MalformedJson(NOT_UNSIGNED)
            return int(value)
        case "log_format":
            return _text(value)
        case _:
            if type(value) is not bool:
                raise MalformedJson(NOT_BOOLEAN)
            return value


def _texts(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if name != "trace_level":
        return (_text(value),)
    if type(value) is not list:
        raise MalformedJson(NOT_ARRAY)
    return tuple(map(_text, value))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise MalformedJson(NOT_STRING)
    return value
