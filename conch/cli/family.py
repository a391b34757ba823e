"""The process tree below ``conch serve``: supervisord, its programs, and whatever they leave behind."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_CONFIG = Path(__file__).parent.parent / "supervisord.conf"


class Family:
    """``conch serve`` is a subreaper: an orphan of any of its descendants becomes its child; nothing can get away."""

    def __init__(self, environ: Mapping[str, str], log: Path) -> None:
        """Starts supervisord in a session of its own, so that Ctrl-C reaches ``conch serve`` only. Its own log goes to
        ``log``."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self.exit_code: int | None = None
        self.supervisord = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "supervisor.supervisord", "-c", str(_CONFIG)],
            {**environ, "CONCH_SERVE_PID": str(os.getpid())},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )

    def reap(self) -> bool:
        """Collects dead children; False when supervisord is not among the living, and ``exit_code`` is set then."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self.supervisord:
                self.exit_code = os.waitstatus_to_exitcode(status)
        return self.exit_code is None

    def stop(self, number: signal.Signals) -> None:
        """Asks supervisord to stop everything in order: with ``--drain-delay-secs`` by SIGTERM, without by SIGINT, also
        when it has begun."""
        if self.reap():
            os.kill(self.supervisord, number)

    def wait(self, seconds: float, is_over: Callable[[], object]) -> None:
        """Until every process has ended by itself or ``is_over``, for ``seconds`` at most."""
        deadline = time.monotonic() + seconds
        while descendants(os.getpid()) and time.monotonic() < deadline and not is_over():
            time.sleep(0.02)
            self.reap()

    def end(self, grace_seconds: float) -> int:
        """Ends every process that is left: SIGTERM, then after ``grace_seconds`` SIGKILL. Returns how many it found."""
        self.reap()
        found = descendants(os.getpid())
        _signal_all(found, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while (left := descendants(os.getpid())) and time.monotonic() < deadline:
            time.sleep(0.02)
            self.reap()
        while left:
            _signal_all(left, signal.SIGKILL)
            time.sleep(0.01)
            self.reap()
            left = descendants(os.getpid())
        return len(found)


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on, that are alive or not yet reaped."""
    found: list[int] = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                children += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return children


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
