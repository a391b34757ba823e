"""Log and trace settings that change while the server runs (inventory H-18, X-50, X-51, T-06, T-07)."""

from typing import Any

from conch.errors import MalformedJson, Unsupported
from conch.messages import UpdateLogSettings, UpdateTraceSettings
from conch.settings import Settings
from frontends.http.calls import BrokerCall, RequesterLike
from frontends.http.exchange import Pending, Reply, Request, error_reply, json_reply
from frontends.http.json_values import NOT_ARRAY, NOT_BOOLEAN, NOT_STRING, NOT_UNSIGNED, is_unsigned, parse_members
from frontends.http.routes import Match
from frontends.server_settings import (
    LOG_FIELDS,
    LOG_FILE_IS_FIXED,
    LOG_FORMATS,
    MAX_VERBOSE_LEVEL,
    TRACE_FIELDS,
    TRACE_FILE_IS_FIXED,
    check_traced_model,
    current_trace,
    log_values,
    trace_values,
)


class SettingsEndpoints:
    def __init__(self, requester: RequesterLike, settings: Settings) -> None:
        self._requester = requester
        self._max_input_nbytes = settings.http_max_input_size

    def log_settings(self, request: Request, match: Match) -> Reply | Pending:
        """Unlike Triton's, a request with an error changes nothing."""
        if request.method == b"GET":
            return json_reply(log_values(self._requester.server_settings.log))
        body = self._body(request)
        if body.get("log_file") is not None:
            raise Unsupported(LOG_FILE_IS_FIXED)
        changes: dict[str, bool | int | str] = {}
        for name, field in LOG_FIELDS.items():
            value = body.get(name)
            if value is None:
                continue
            changes[field] = _log_value(name, value)
        if changes.get("format", "default") not in LOG_FORMATS:
            return error_reply(503, f"invalid argument for --log_format, got: {changes['format']}")
        call = self._requester.call(UpdateLogSettings(0, changes))
        return BrokerCall(call, lambda log: json_reply(log_values(log)))

    def trace_settings(self, request: Request, match: Match) -> Reply | Pending:
        """``null`` stands for the global setting, or the one that the server was started with."""
        model = match.model
        check_traced_model(self._requester.models, model)
        if request.method == b"GET":
            return json_reply(trace_values(current_trace(self._requester.server_settings, model)))
        body = self._body(request)
        if "trace_file" in body:
            raise Unsupported(TRACE_FILE_IS_FIXED)
        changes = {
            field: None if body[name] is None else _texts(name, body[name])
            for name, field in TRACE_FIELDS.items()
            if name in body
        }
        call = self._requester.call(UpdateTraceSettings(0, model, changes))
        return BrokerCall(call, lambda trace: json_reply(trace_values(trace)))

    def _body(self, request: Request) -> dict[str, Any]:
        return parse_members(bytes(request.body), self._max_input_nbytes)


def _log_value(name: str, value: Any) -> bool | int | str:
    match name:
        case "log_verbose_level":
            if not is_unsigned(value):
                raise MalformedJson(NOT_UNSIGNED)
            return min(int(value), MAX_VERBOSE_LEVEL)
        case "log_format":
            return _text(value)
        case _:
            if type(value) is not bool:
                raise MalformedJson(NOT_BOOLEAN)
            return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if name != "trace_level":
        return (_text(value),)
    if type(value) is not list:
        raise MalformedJson(NOT_ARRAY)
    return tuple(map(_text, value))


def _text(value: Any) -> str:
    if type(value) is not str:
        raise MalformedJson(NOT_STRING)
    return value
