"""The launcher's view of one worker process: its pidfd, and the file that the worker wrote about itself."""

import contextlib
import os
import re
import signal
from dataclasses import dataclass, field
from math import inf

from conch.messages import Died
from conch.run_dir import RunDir
from workers import worker_file
from workers.deaths import without_deaths
from workers.endings import AFTER_ABORT
from workers.worker_file import WorkerFile

OUTPUT_TAIL_NBYTES = 2048
#: a line that our logging has made
_LOGGED = re.compile(rb"(?:[EWI]\d{4} \S+|\S+Z [EWI]) (?P<pid>\d+) ")
#: how the dump of Python's fault handler begins
_FAULT = b"Fatal Python error: "
#: and how the part about the thread that crashed does
_STACK = b"Current thread 0x"
#: as much as a dump may take
_CRASH_NBYTES = 32768
_ENDS_OF_ABORT = (signal.SIGABRT, *(number for _, number in AFTER_ABORT))


@dataclass
class LiveProcess:
    """``adopted``: a former launcher's child, so that its exit status is not ours to see. ``alone_from``: from there
    on, unless there is one now, no other process of the model has written to its log. ``reason``: what it is killed
    for. ``aborted``: it was told to show what it does; ``signals`` it then gets and when, unless it has ended."""

    file: WorkerFile
    descriptor: int
    run_dir: RunDir
    adopted: bool
    killed: bool = False
    alone_from: int = 0
    reason: str = ""
    aborted: bool = False
    signals: list[tuple[float, int]] = field(default_factory=list)

    def kill(self, reason: str = "") -> None:
        self.killed = True
        self.reason = self.reason or reason
        self.signals.clear()
        self._signal(signal.SIGKILL)

    def abort(self, reason: str, now: float) -> None:
        """It shows what it is doing, and ends."""
        if self.killed:
            return
        self.killed = self.aborted = True
        self.reason = reason
        self.signals += [(now + after_s, number) for after_s, number in AFTER_ABORT]
        self._signal(signal.SIGABRT)

    @property
    def next_signal(self) -> float:
        return self.signals[0][0] if self.signals else inf

    def send_signals(self, now: float) -> None:
        """Those whose time has come."""
        while self.next_signal <= now:
            self._signal(self.signals.pop(0)[1])

    def terminate(self) -> None:
        """Asks it to finish what it holds and to end."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def bury(self, alone: bool = True) -> Died | None:
        """To be called when the pidfd is readable: ends what the worker left running, takes its exit status, and tidies
        up. None: it is still being handed over by the process in between; ask again shortly. ``alone``: no other
        process of its model lives."""
        pid = self.file.pid
        exit_code = signal_number = None
        if self.adopted:
            with contextlib.suppress(OSError):  # in doubt the number may be somebody else's by now
                if worker_file.start_time(pid) in (None, self.file.start_time):
                    _kill_group(pid)
        else:
            _kill_group(pid)  # before its status is taken, because until then nobody else can get its pid
            try:
                status = os.waitid(os.P_PIDFD, self.descriptor, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                status = None
            if status is None:
                return None
            if status.si_code == os.CLD_EXITED:
                exit_code = status.si_status
            else:
                signal_number = status.si_status
        os.close(self.descriptor)
        with contextlib.suppress(OSError):
            self.run_dir.worker_file(self.file.worker).unlink()
        tail = self._output_tail(alone, self.aborted or signal_number not in (None, signal.SIGKILL))
        obeyed = exit_code is None and signal_number in (None, *_ENDS_OF_ABORT)
        return Died(self.file.worker, pid, exit_code, signal_number, tail, self.reason if obeyed else "")

    def is_alone(self) -> None:
        """Another process of the model has ended, this may be the only one now."""
        with contextlib.suppress(OSError):
            self.alone_from = os.path.getsize(self.run_dir.model_log(self.file.model))

    def _output_tail(self, alone: bool, crashed: bool) -> str:
        """Whole lines, as far as there are any. Of what others may have written, only what is certainly its own."""
        wanted = _CRASH_NBYTES if crashed else OUTPUT_TAIL_NBYTES
        try:
            with open(self.run_dir.model_log(self.file.model), "rb") as log:
                size = log.seek(0, os.SEEK_END)
                # what is beyond the end is of before the log was cut, see ``workers.log_bounds``
                offset, alone_from = (each if each <= size else 0 for each in (self.file.log_offset, self.alone_from))
                start = log.seek(max(offset, size - wanted))
                data = log.read(wanted)
        except OSError:
            return ""
        others = max(0, alone_from - start) if alone else len(data)
        shared, own = without_deaths(data[:others]), without_deaths(data[others:])
        return _end_of(_certain(shared, self.file.pid, crashed) + own, start > offset and not shared)


def _end_of(output: bytes, is_cut: bool) -> str:
    """Where it crashed, if the end does not show that: modules are listed after a stack, and stacks are long.
    ``is_cut``: it begins somewhere in a line."""
    end = output[-OUTPUT_TAIL_NBYTES:]
    stack = output.rfind(_STACK)
    if stack >= 0 and _STACK not in end:
        end = output[stack : stack + OUTPUT_TAIL_NBYTES]
        end = end[: end.rfind(b"\n") + 1] or end
    elif is_cut or len(output) > len(end):
        end = end[end.find(b"\n", 0, -1) + 1 :]
    return end.decode(errors="replace")


def _certain(output: bytes, pid: int, crashed: bool) -> bytes:
    """Of what several processes have written: what one has logged, and where it crashed."""
    if crashed and _FAULT in output:
        return output[output.rindex(_FAULT) :]
    lines = (
        line
        for line in output.splitlines(keepends=True)
        if (match := _LOGGED.match(line)) and match["pid"] == b"%d" % pid
    )
    return b"".join(lines)


class Stillborn(Exception):
    """A new worker cannot be looked after. The text says why, without a path."""


def born(worker: str, pid: int, run_dir: RunDir) -> LiveProcess:
    """A new child of this process. Raises ``Stillborn``: it has ended, or is ended now because its end could not be
    seen."""
    descriptor = -1
    reason = "it ended at once"
    try:
        descriptor = os.pidfd_open(pid)
        file = worker_file.read(run_dir.worker_file(worker))
        if file is not None and (file.pid, file.start_time) == (pid, worker_file.start_time(pid)):
            return LiveProcess(file, descriptor, run_dir, adopted=False)
    except ProcessLookupError:
        pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if pid > 1:
            _kill_group(pid)  # until its status is taken, nobody else can have that number
    if descriptor >= 0:
        os.close(descriptor)
    with contextlib.suppress(OSError):
        run_dir.worker_file(worker).unlink()
    raise Stillborn(reason)


def adopt(run_dir: RunDir) -> list[LiveProcess]:
    """The workers that a former launcher left alive. Files of dead ones are removed, and what those left is ended.
    Raises ``OSError``: one that is taken for dead would be started a second time."""
    found = []
    for path in run_dir.workers.glob("*.new"):
        path.unlink(missing_ok=True)
    for path in run_dir.workers.glob("*.json"):
        file = worker_file.read(path)
        if file is None:
            path.unlink(missing_ok=True)
            continue
        descriptor = _open_live(file)
        if descriptor is not None:
            found.append(LiveProcess(file, descriptor, run_dir, adopted=True))
            continue
        if worker_file.start_time(file.pid) is None:
            _kill_group(file.pid)
        path.unlink(missing_ok=True)
    return found


def _open_live(file: WorkerFile) -> int | None:
    try:
        descriptor = os.pidfd_open(file.pid)
    except ProcessLookupError:
        return None
    if worker_file.start_time(file.pid) == file.start_time:  # looked at after opening: it is of this very process
        return descriptor
    os.close(descriptor)
    return None


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
