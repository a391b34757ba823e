"""Log and trace settings as every protocol shows them, in Triton's order (inventory X-50, T-06)."""

from typing import Any

from conch.errors import InvalidArgument
from conch.messages import LogSettings, ServerSettings, TraceSettings
from frontends.models import ModelTableView

#: what may be said about logs -> the field of ``LogSettings``; ``log_file`` cannot be changed by a client
LOG_FIELDS = {
    "log_info": "info",
    "log_warning": "warning",
    "log_error": "error",
    "log_verbose_level": "verbose_level",
    "log_format": "format",
}
LOG_FORMATS = ("default", "ISO8601")
#: Triton keeps it in 32 bits, signed
MAX_VERBOSE_LEVEL = 2**31 - 1
LOG_FILE_IS_FIXED = "log file location can not be updated through network protocol"

#: the same for tracing; ``trace_level`` is a list, the others are one value as text
TRACE_FIELDS = {
    "trace_level": "level",
    "trace_rate": "rate",
    "trace_count": "count",
    "log_frequency": "log_frequency",
}
TRACE_FILE_IS_FIXED = "trace file location can not be updated through network protocol"


def log_values(log: LogSettings) -> dict[str, bool | int | str]:
    return {"log_file": "", **{name: getattr(log, field) for name, field in LOG_FIELDS.items()}}


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
