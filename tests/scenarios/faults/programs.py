"""The server's own processes, to be killed, stopped and waited for."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from conch.cli.status import ask_broker
from conch.run_dir import RunDir
from tests.scenarios.faults.watch import pids_of
from tests.scenarios.harness import Server

#: supervisord starts a program again at once, or after 0.8 to 1.8 s if it had lived for less than 2 s
BACK_WITHIN_S = 10.0
#: what a client says whose connection was open when its frontend was killed, or finds nobody listening
BROKEN = ("ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected", "BrokenPipeError", "IncompleteRead")


def wait_for(server: Server, condition: Callable[[], bool], timeout_s: float = BACK_WITHIN_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, server.report()
        time.sleep(0.01)


def kill(server: Server, role: str) -> int:
    """SIGKILL for the process with this role, the first of several. Returns its pid."""
    pids = pids_of(server, role)
    assert pids, server.report()
    os.kill(pids[0], signal.SIGKILL)
    return pids[0]


def successor(server: Server, role: str, former: int) -> int:
    """Waits until another process has this role, which may not have done anything yet. Returns its pid."""
    found: list[int] = []

    def is_there() -> bool:
        found[:] = [pid for pid in pids_of(server, role) if pid != former]
        return bool(found)

    wait_for(server, is_there)
    return found[-1]


def kill_and_wait(server: Server, role: str) -> int:
    """Returns the successor's pid. For a role that only one process has."""
    return successor(server, role, kill(server, role))


def load_of(server: Server, model: str) -> tuple[int, int]:
    """How many requests are queued, and how many run; (0, 0) while there is no broker."""
    answer = ask_broker(RunDir(server.run_dir), timeout_secs=5)
    rows = answer.models if answer is not None else ()
    return next(((row.queued, row.running) for row in rows if row.model == model), (0, 0))


def runs(server: Server, model: str) -> bool:
    return load_of(server, model)[1] > 0


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP until the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
