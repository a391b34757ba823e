"""Log and trace settings: what the flags say, what clients changed, and what follows from both.

Pure: it keeps and checks. The files of logs and traces can only be set by flags, never by a client.
"""

import re
from collections.abc import Mapping

import msgspec

from conch.errors import InvalidArgument, to_fault
from conch.messages import (
    Fault,
    LogSettings,
    ServerSettings,
    TraceSettings,
    UpdateLogSettings,
    UpdateTraceSettings,
)

_LOG_FORMATS = ("default", "ISO8601")
_LEVELS = ("TIMESTAMPS", "TENSORS")
_MAX_SIGNED_32 = 2**31 - 1
_MAX_UNSIGNED_32 = 2**32 - 1
#: how C reads a number: what comes after the digits is not looked at
_NUMBER = re.compile(r"\s*([+-]?[0-9]+)")
_FLAG_LEVELS = {
    **dict.fromkeys(("false", "off"), "OFF"),
    **dict.fromkeys(("true", "on", "min", "max", "timestamps"), "TIMESTAMPS"),
    "tensors": "TENSORS",
}
#: names in error texts
_TRACE_NAMES = {"level": "trace_level", "rate": "trace_rate", "count": "trace_count", "log_frequency": "log_frequency"}

Changes = Mapping[str, tuple[str, ...] | None]
#: a model's, or the global, fields that were set; the others follow the global ones, or the flags
_Overrides = dict[str, tuple[str, ...] | int]


class Changed(msgspec.Struct, frozen=True):
    """What clients changed, for a broker that comes after this one. It holds for a server with the same flags."""

    initial_log: LogSettings
    initial_trace: TraceSettings
    log: LogSettings
    trace: dict[str, _Overrides]


class SettingsKeeper:
    """``trace`` settings are looked up by model, ``""`` for all: what a model, or all, does not set itself follows the
    next in line."""

    def __init__(self, log: LogSettings, trace: TraceSettings, changed: Changed | None = None) -> None:
        self._initial_log = self.log = log
        self._initial_trace = trace
        self._overrides: dict[str, _Overrides] = {}
        if changed is not None and (changed.initial_log, changed.initial_trace) == (log, trace):
            self.log = changed.log
            self._overrides = changed.trace

    @property
    def changed(self) -> Changed:
        return Changed(self._initial_log, self._initial_trace, self.log, self._overrides)

    def message(self, epoch: int) -> ServerSettings:
        return ServerSettings(epoch, self.log, {name: self.trace(name) for name in ("", *self._overrides)})

    def trace(self, model: str = "") -> TraceSettings:
        return _with(self._with_global(self._overrides), self._overrides.get(model, {}) if model else {})

    def _with_global(self, overrides: Mapping[str, _Overrides]) -> TraceSettings:
        return _with(self._initial_trace, overrides.get("", {}))

    def update(
        self, call: UpdateLogSettings | UpdateTraceSettings
    ) -> tuple[Fault | None, LogSettings | TraceSettings | None]:
        """Why nothing was changed, or what the settings are now."""
        try:
            if isinstance(call, UpdateLogSettings):
                return None, self.update_log(call.changes)
            return None, self.update_trace(call.model, call.changes)
        except InvalidArgument as error:
            return to_fault(error), None

    def update_log(self, changes: Mapping[str, bool | int | str]) -> LogSettings:
        """Raises ``InvalidArgument``, and changes nothing then."""
        for field in ("info", "warning", "error"):
            if not isinstance(changes.get(field, True), bool):
                raise InvalidArgument(f"expect boolean for 'log_{field}'")
        level = changes.get("verbose_level", 0)
        if type(level) is not int or not 0 <= level <= _MAX_SIGNED_32:
            raise InvalidArgument("expect unsigned integer for 'log_verbose_level'")
        if changes.get("format", "default") not in _LOG_FORMATS:
            raise InvalidArgument(f"invalid argument for log_format, got: {changes['format']}")
        known = {field: changes[field] for field in LogSettings.__struct_fields__ if field in changes}
        self.log = msgspec.structs.replace(self.log, **known)
        return self.log

    def update_trace(self, model: str, changes: Changes) -> TraceSettings:
        """Raises ``InvalidArgument`` with Triton's texts, and changes nothing then."""
        own = dict(self._overrides.get(model, {}))
        for field in _TRACE_NAMES:
            if field not in changes:
                continue
            values = changes[field]
            if values is None:
                own.pop(field, None)
                continue
            value = _levels(values) if field == "level" else _number(field, values[0] if values else "")
            if value is not None:
                own[field] = value
        overrides = {**self._overrides, model: own}
        if model and not own:
            del overrides[model]
        new_global = self._with_global(overrides)
        for name in ("", *overrides):
            _check(_with(new_global, overrides.get(name, {}) if name else {}))
        self._overrides = overrides
        return self.trace(model)


def _with(base: TraceSettings, overrides: _Overrides) -> TraceSettings:
    return msgspec.structs.replace(base, **overrides) if overrides else base


def _check(trace: TraceSettings) -> None:
    """The only settings without sense that are taken are those that trace nothing."""
    if trace.level == ("OFF",):
        return
    if trace.rate == 0 and trace.mode == "triton":
        raise InvalidArgument("Attempting to set invalid trace setting :sample rate must be non-zero")
    if not trace.file and trace.mode == "triton":
        raise InvalidArgument("Attempting to set invalid trace setting :trace file name is not given")
    if trace.count == 0:
        raise InvalidArgument("Attempting to set invalid trace setting :")


def _levels(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """None when there is none that is known: then nothing changes."""
    if "OFF" in names:
        if len(names) > 1:
            raise InvalidArgument("Expect only one trace level 'OFF' is specified")
        return ("OFF",)
    return tuple(level for level in _LEVELS if level in names) or None


def _number(field: str, text: str) -> int:
    name = _TRACE_NAMES[field]
    found = _NUMBER.match(text)
    if found is None:
        raise InvalidArgument(f"Unable to parse '{name}', got: {text}")
    least, most = (-1, _MAX_SIGNED_32) if field == "count" else (0, _MAX_UNSIGNED_32)
    digits = found[1]
    number = int(digits) if len(digits) <= 11 else _MAX_UNSIGNED_32
    if not -_MAX_SIGNED_32 - 1 <= number <= _MAX_SIGNED_32:
        raise InvalidArgument(f"Unable to parse '{name}', value is out of range [ {least}, {most} ], got: {text}")
    if field == "count" and number < least:
        raise InvalidArgument(f"Unable to parse '{name}'. Expecting value >= {least}, got:{text}")
    return number & _MAX_UNSIGNED_32 if number < least else number


# ---------------------------------------------------------------------------------------------------------- the flags


def initial_trace(trace_config: tuple[str, ...]) -> TraceSettings:
    """From the values of ``--trace-config``: ``level=``, ``rate=``, ``count=``, ``mode=``, ``triton,file=``,
    ``triton,log-frequency=``. Raises ``InvalidArgument``."""
    fields: dict[str, str | int] = {}
    levels: list[str] = []
    for text in trace_config:
        mode, comma, rest = text.partition(",")
        name, _, value = (rest if comma else text).partition("=")
        if (comma and not mode) or not name or not value:
            raise InvalidArgument(f"--trace-config option format is '<trace mode>,<setting>=<value>'. Got {text}")
        match mode if comma else "", name:
            case "", "level":
                if value.lower() not in _FLAG_LEVELS:
                    raise InvalidArgument(f"--trace-config: invalid value for trace level option: {value}")
                levels.append(_FLAG_LEVELS[value.lower()])
            case "", ("rate" | "count"):
                fields[name] = _flag_number(name, value)
            case "", "mode":
                if value.lower() not in ("triton", "opentelemetry"):
                    raise InvalidArgument(f"--trace-config: invalid value for trace mode option: {value}")
                fields["mode"] = value.lower()
            case "triton", "file":
                fields["file"] = value
            case "triton", "log-frequency":
                fields["log_frequency"] = _flag_number("log_frequency", value)
    level = ("OFF",) if "OFF" in levels else tuple(known for known in _LEVELS if known in levels)
    return msgspec.structs.replace(TraceSettings(), **fields, level=level or ("OFF",))


def _flag_number(field: str, text: str) -> int:
    try:
        return _number(field, text)
    except InvalidArgument as error:
        raise InvalidArgument(f"--trace-config: {error.message}") from None
