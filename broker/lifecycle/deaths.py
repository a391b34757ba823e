"""Deaths of workers: in words, and counted by cause."""

import re
import signal
from collections import Counter

from conch.messages import Died

#: of a worker's last line of output, as much as a reason may show
_MAX_LINE = 300
#: in what ``faulthandler`` writes, the innermost frame of the thread that crashed; its other lines say little
_FAULT = re.compile(
    r"^Current thread[^\n]*\(most recent call first\):\n"
    r'  File "(?:[^"\n]*/)?(?P<file>[^"/\n]+)", line (?P<line>\d+) in (?P<function>[^\n]+)\n',
    re.MULTILINE,
)
#: parameter of a model that the reason of a ``Kill`` names -> cause
_CAUSES = {"EXECUTION_TIMEOUT_S": "execution_timeout", "MEMORY_LIMIT_MIB": "memory_limit"}

#: model, version, cause
DeathKey = tuple[str, int, str]


class DeathCounts:
    """Deaths of workers that were to go on, since this broker's start. A ``cause`` is a signal's name or ``exit``; what
    the worker was killed for, ``execution_timeout`` or ``memory_limit``; or ``unknown``."""

    def __init__(self) -> None:
        self.by_cause: Counter[DeathKey] = Counter()

    def count(self, model: str, version: int, died: Died) -> None:
        self.by_cause[model, version, _cause(died)] += 1


def how(died: Died) -> str:
    """``was killed by SIGKILL``: what also clients may know."""
    if died.reason:
        return died.reason
    if died.signal is not None:
        return f"was killed by {_signal_name(died.signal)}"
    return f"exited with code {died.exit_code}" if died.exit_code is not None else "is gone"


def describe_death(instance: str, died: Died) -> str:
    """Why an instance's worker is gone: where Python's fault handler found it, or the last line that it printed."""
    text = f"the worker of instance '{instance}' {how(died)}"
    fault = _FAULT.search(died.output_tail)
    if fault is not None:
        comma = "," if died.reason else ""
        return f"{text}{comma} in {fault['function']}, {fault['file']} line {fault['line']}"
    lines = [line.strip() for line in died.output_tail.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if len(last) > _MAX_LINE:
        last = "…" + last[-_MAX_LINE:]
    return f"{text}; its last output: {last}" if last else text


def _signal_name(number: int) -> str:
    """``"SIGSEGV"``; ``"signal 40"`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _cause(died: Died) -> str:
    for parameter, cause in _CAUSES.items():
        if parameter in died.reason:
            return cause
    if died.signal is not None:
        return _signal_name(died.signal)
    return "exit" if died.exit_code is not None else "unknown"
