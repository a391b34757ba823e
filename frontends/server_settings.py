"""Log and trace settings as every protocol shows them, in Triton's order (inventory X-50, T-06)."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from conch.errors import InvalidArgument, Unsupported
from conch.messages import LogSettings, ServerSettings, TraceSettings, UpdateLogSettings, UpdateTraceSettings
from conch.requester.models import ModelTableView

#: what may be said about logs -> the field of ``LogSettings``; ``log_file`` cannot be changed by a client
_LOG_FIELDS: Final = {
    "log_info": "info",
    "log_warning": "warning",
    "log_error": "error",
    "log_verbose_level": "verbose_level",
    "log_format": "format",
}
#: Triton keeps it in 32 bits, signed
_MAX_VERBOSE_LEVEL: Final = 2**31 - 1

#: the same for tracing; ``trace_level`` is a list, the others are one value as text
_TRACE_FIELDS: Final = {
    "trace_level": "level",
    "trace_rate": "rate",
    "trace_count": "count",
    "log_frequency": "log_frequency",
}

Value = TypeVar("Value")


def log_update(values: Mapping[str, Value], read: Callable[[str, Value], bool | int | str]) -> UpdateLogSettings:
    """``read`` turns a setting of this name and value into what the setting must be, or raises. Raises ``Unsupported``
    for ``log_file``."""
    if "log_file" in values:
        raise Unsupported("log file location can not be updated through network protocol")
    changes = {field: read(name, values[name]) for name, field in _LOG_FIELDS.items() if name in values}
    if "verbose_level" in changes:
        changes["verbose_level"] = min(int(changes["verbose_level"]), _MAX_VERBOSE_LEVEL)
    return UpdateLogSettings(0, changes)


def trace_update(
    model: str, values: Mapping[str, Value], read: Callable[[str, Value], tuple[str, ...] | None]
) -> UpdateTraceSettings:
    """``read`` as for logs; None stands for the global setting, or the one that the server was started with. Raises
    ``Unsupported`` for ``trace_file``."""
    if "trace_file" in values:
        raise Unsupported("trace file location can not be updated through network protocol")
    changes = {field: read(name, values[name]) for name, field in _TRACE_FIELDS.items() if name in values}
    return UpdateTraceSettings(0, model, changes)


def log_values(log: LogSettings) -> dict[str, bool | int | str]:
    return {"log_file": "", **{name: getattr(log, field) for name, field in _LOG_FIELDS.items()}}


def trace_values(trace: TraceSettings) -> dict[str, Any]:
    """``trace_level`` is a list of strings, everything else a string."""
    values: dict[str, Any] = {
        "trace_level": list(trace.level),
        "trace_rate": str(trace.rate),
        "trace_count": str(trace.count),
    }
    if trace.mode == "triton":
        values |= {"log_frequency": str(trace.log_frequency), "trace_file": trace.file}
    return {**values, "trace_mode": trace.mode}


def current_trace(settings: ServerSettings, model: str) -> TraceSettings:
    """Those of a model, or the global ones for ``""``."""
    return settings.trace.get(model) or settings.trace[""]


def check_traced_model(models: ModelTableView, model: str) -> None:
    """Raises ``InvalidArgument`` for a model that is not ready; ``""`` stands for all."""
    if model and not models.ready_versions(model):
        raise InvalidArgument(f"Request for unknown model : {model}")
