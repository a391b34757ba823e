"""RPCs about log and trace settings, which change while the server runs."""

from typing import Any, Final

from conch.categories import Category
from conch.errors import InvalidArgument
from conch.messages import LogSettings, TraceSettings
from frontends.grpc.calls import SERVICE, Rpc, Traffic, unary_later
from frontends.grpc.codec import service_pb2 as pb
from frontends.requesting import RequesterLike
from frontends.server_settings import (
    check_traced_model,
    current_trace,
    log_update,
    log_values,
    trace_update,
    trace_values,
)

_CHOICE: Final = "parameter_choice"


class SettingsRpcs:
    """Without settings a request only reads. Unlike Triton's, a request with an error changes nothing."""

    def __init__(self, requester: RequesterLike) -> None:
        self._requester = requester

    def rpcs(self, traffic: Traffic) -> dict[str, Rpc]:
        return {
            SERVICE + "LogSettings": unary_later(Category.LOGGING, pb.LogSettingsRequest, self._log, traffic),
            SERVICE + "TraceSetting": unary_later(Category.TRACE, pb.TraceSettingRequest, self._trace, traffic),
        }

    async def _log(self, request: Any) -> Any:
        update = log_update(request.settings, _log_value)
        if not update.changes:
            return _shown_log(self._requester.server_settings.log)
        return _shown_log(await self._requester.call(update))

    async def _trace(self, request: Any) -> Any:
        check_traced_model(self._requester.models, request.model_name)
        update = trace_update(request.model_name, request.settings, _texts)
        if not update.changes:
            return _shown_trace(current_trace(self._requester.server_settings, request.model_name))
        return _shown_trace(await self._requester.call(update))


def _log_value(name: str, setting: Any) -> bool | int | str:
    choice = setting.WhichOneof(_CHOICE)
    match name:
        case "log_verbose_level":
            _expect(choice, "uint32_param", "int32", name)
            level: int = setting.uint32_param
            return level
        case "log_format":
            _expect(choice, "string_param", "string", name)
            text: str = setting.string_param
            return text
        case _:
            _expect(choice, "bool_param", "boolean", name)
            return bool(setting.bool_param)


def _expect(choice: str | None, wanted: str, word: str, name: str) -> None:
    if choice != wanted:
        raise InvalidArgument(f"expect {word} for '{name}'")


def _shown_log(log: LogSettings) -> Any:
    response = pb.LogSettingsResponse()
    for name, value in log_values(log).items():
        match value:
            case bool():
                response.settings[name].bool_param = value
            case str():
                response.settings[name].string_param = value
            case _:
                response.settings[name].uint32_param = value
    return response


def _texts(name: str, setting: Any) -> tuple[str, ...] | None:
    values = tuple(setting.value)
    if len(values) > 1 and name != "trace_level":
        raise InvalidArgument(f"expect only 1 value for '{name}'")
    return values or None


def _shown_trace(trace: TraceSettings) -> Any:
    response = pb.TraceSettingResponse()
    for name, value in trace_values(trace).items():
        response.settings[name].value.extend(value if isinstance(value, list) else [value])
    return response
