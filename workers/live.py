"""The launcher's view of one worker process: its pidfd, and the file that the worker wrote about itself."""

import contextlib
import os
import re
import signal
from dataclasses import dataclass

from conch.messages import Died
from conch.run_dir import RunDir
from workers import worker_file
from workers.worker_file import WorkerFile

OUTPUT_TAIL_NBYTES = 2048
#: a line that our logging has made
_LOGGED = re.compile(rb"(?:[EWI]\d{4} \S+|\S+Z [EWI]) (?P<pid>\d+) ")
#: how the dump of Python's fault handler begins
_FAULT = b"Fatal Python error: "


@dataclass
class LiveProcess:
    """``adopted``: a former launcher's child, so that its exit status is not ours to see. ``alone_from``: from there
    on, unless there is one now, no other process of the model has written to its log."""

    file: WorkerFile
    descriptor: int
    run_dir: RunDir
    adopted: bool
    killed: bool = False
    alone_from: int = 0

    def kill(self) -> None:
        self.killed = True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def terminate(self) -> None:
        """Asks it to finish what it holds and to end."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, signal.SIGTERM)

    def bury(self, alone: bool = True) -> Died | None:
        """To be called when the pidfd is readable: ends what the worker left running, takes its exit status, and tidies
        up. None: it is still being handed over by the process in between; ask again shortly. ``alone``: no other
        process of its model lives."""
        pid = self.file.pid
        exit_code = signal_number = None
        if self.adopted:
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
        self.run_dir.worker_file(self.file.worker).unlink(missing_ok=True)
        return Died(
            self.file.worker, pid, exit_code, signal_number, self._output_tail(alone, signal_number is not None)
        )

    def is_alone(self) -> None:
        """Another process of the model has ended, this may be the only one now."""
        with contextlib.suppress(OSError):
            self.alone_from = os.path.getsize(self.run_dir.model_log(self.file.model))

    def _output_tail(self, alone: bool, crashed: bool) -> str:
        """Whole lines, as far as there are any. Of what others may have written, only what is certainly its own."""
        try:
            with open(self.run_dir.model_log(self.file.model), "rb") as log:
                size = log.seek(0, os.SEEK_END)
                offset = self.file.log_offset if self.file.log_offset <= size else 0
                start = log.seek(max(offset, size - OUTPUT_TAIL_NBYTES))
                data = log.read(OUTPUT_TAIL_NBYTES)
        except OSError:
            return ""
        others = max(0, self.alone_from - start) if alone else len(data)
        shared, own = data[:others], data[others:]
        tail = _certain(shared, self.file.pid, crashed) + own
        if start > offset and not shared:
            tail = tail[tail.find(b"\n", 0, -1) + 1 :]
        return tail.decode(errors="replace")


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


def born(worker: str, pid: int, run_dir: RunDir) -> LiveProcess | None:
    """A new child of this process. None if it is gone without a trace."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    file = worker_file.read(run_dir.worker_file(worker))
    if file is None or (file.pid, file.start_time) != (pid, worker_file.start_time(pid)):
        os.close(descriptor)
        return None
    return LiveProcess(file, descriptor, run_dir, adopted=False)


def adopt(run_dir: RunDir) -> list[LiveProcess]:
    """The workers that a former launcher left alive. Files of dead ones are removed, and what those left is ended."""
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
