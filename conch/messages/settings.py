"""Settings that can change while the server runs, and the calls that change them."""

from conch.messages.base import Message, Record


class LogSettings(Record, frozen=True):
    """``verbose_level`` 0 is off; ``format`` is ``default`` or ``ISO8601``."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose_level: int = 0
    format: str = "default"


class TraceSettings(Record, frozen=True):
    """``level``: ``OFF``, or ``TIMESTAMPS`` and ``TENSORS``. One request in ``rate`` is traced, ``count`` in all
    (-1: no end)."""

    level: tuple[str, ...] = ("OFF",)
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0
    file: str = ""
    mode: str = "triton"


class ServerSettings(Message, frozen=True):
    """Broker to requesters, launcher and workers, on every change and after each ``Welcome``. ``trace`` maps a model
    that has settings of its own to them; "" holds the global ones."""

    epoch: int
    log: LogSettings
    trace: dict[str, TraceSettings]


class UpdateLogSettings(Message, frozen=True):
    """``changes`` maps names of fields of ``LogSettings`` to values. The result is a ``LogSettings``."""

    call: int
    changes: dict[str, bool | int | str]


class UpdateTraceSettings(Message, frozen=True):
    """``changes`` maps names of fields of ``TraceSettings`` to values as text; None resets the field to the global
    value, or to the one that the server was started with. ``model`` empty: the global settings. The result is a
    ``TraceSettings``."""

    call: int
    model: str
    changes: dict[str, tuple[str, ...] | None]
