"""Deaths of workers: in words, and counted by cause."""

import os
import re
from collections import Counter

from broker.lifecycle.roster import Worker
from conch.exits import how_it_ended, signal_name
from conch.messages import Died

#: of a worker's last line of output, as much as a reason may show
_MAX_LINE = 300
#: in what ``faulthandler`` writes, the frames of the thread that crashed, innermost first
_FAULT = re.compile(
    r'^Current thread[^\n]*\(most recent call first\):\n(?P<frames>(?:  File "[^"\n]+", line \d+ in [^\n]+\n)+)',
    re.MULTILINE,
)
#: a line of a log that says that something went well
_INFORMATION = re.compile(r"I\d{4} |\S+Z I ")
_FRAME = re.compile(r'  File "(?P<path>[^"\n]+)", line (?P<line>\d+) in (?P<function>[^\n]+)\n')
#: parameter of a model that the reason of a ``Kill`` names -> cause
_CAUSES = {
    "EXECUTION_TIMEOUT_S": "execution_timeout",
    "LOAD_TIMEOUT_S": "load_timeout",
    "MEMORY_LIMIT_MIB": "memory_limit",
}

#: model, version, cause
DeathKey = tuple[str, int, str]


class DeathCounts:
    """Deaths of workers that were to go on, since this broker's start. A ``cause`` is a signal's name or ``exit``; what
    the worker was killed for, ``execution_timeout``, ``load_timeout`` or ``memory_limit``; or ``unknown``."""

    def __init__(self) -> None:
        self.by_cause: Counter[DeathKey] = Counter()

    def count(self, model: str, version: int, died: Died) -> None:
        self.by_cause[model, version, _cause(died)] += 1


def how(died: Died) -> str:
    """``was killed by SIGKILL``: what also clients may know."""
    if died.reason:
        return died.reason
    if died.signal is not None:
        return f"was {how_it_ended(-died.signal)}"
    return how_it_ended(died.exit_code) if died.exit_code is not None else "is gone"


def see_log(model: str) -> str:
    """What operators are told to do about a death."""
    return f"`conch logs {model}` shows its output"


def describe_death(worker: Worker, died: Died) -> str:
    """Why a worker is gone: where Python's fault handler found it, or the last line that it printed."""
    text = f"the worker of instance '{worker.instance_name}' {how(died)}"
    fault = _FAULT.search(died.output_tail)
    if fault is not None:
        comma = "," if died.reason else ""
        return f"{text}{comma} in {_place(fault['frames'], worker)}"
    lines = [line.strip() for line in died.output_tail.splitlines() if line.strip() and not _INFORMATION.match(line)]
    last = lines[-1] if lines else ""
    if len(last) > _MAX_LINE:
        last = "…" + last[-_MAX_LINE:]
    return f"{text}; its last output: {last}" if last else text


def _place(frames: str, worker: Worker) -> str:
    """The innermost frame, and the innermost one of the model's own code: libraries crash where models call them."""
    found = list(_FRAME.finditer(frames))
    text = _frame(found[0])
    if worker.instance is None:
        return text
    snapshot = worker.instance.copy.snapshot
    folders = tuple(os.path.join(folder, "") for folder in (snapshot.model_dir, snapshot.backend_dir) if folder)
    own = next((frame for frame in found if frame["path"].startswith(folders)), found[0])
    return text if own is found[0] else f"{text}, called in {_frame(own)}"


def _frame(frame: re.Match[str]) -> str:
    return f"{frame['function']}, {os.path.basename(frame['path'])} line {frame['line']}"


def _cause(died: Died) -> str:
    for parameter, cause in _CAUSES.items():
        if parameter in died.reason:
            return cause
    if died.signal is not None:
        return signal_name(died.signal)
    return "exit" if died.exit_code is not None else "unknown"
