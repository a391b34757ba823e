"""Finds workers that have more memory than their model may, before the kernel is out of it.

What counts is private memory, resident or swapped out, of the worker and of the processes in its session. Tensors in
shared memory are not private, and have limits of their own. Pages that a model's processes share since a fork count in
each: to tell them apart, the kernel would have to walk all of their page tables, 25 ms for 400 MiB.
"""

import contextlib
import logging
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import inf

from workers.live import LiveProcess
from workers.looks import next_look_s

logger = logging.getLogger("conch.workers.launcher")

#: a look takes 0.15 ms with 80 processes on the machine
LOOK_S = 0.1
#: a thread takes over 2 MiB a millisecond
SOONEST_LOOK_S = 0.005
_FIELD = re.compile(rb"^(RssAnon|VmSwap|VmHWM):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True)
class Memory:
    """``private_nbytes``: of all ``processes``. ``peak_nbytes``: what was resident of the worker itself at most, with
    the shared memory that it maps."""

    private_nbytes: int
    processes: int
    peak_nbytes: int


class _Watched:
    def __init__(self, worker: LiveProcess, now: float) -> None:
        self.worker = worker
        self.nbytes = 0
        self.looked_at = now
        self.next_look = now


class MemoryLimits:
    """Of those workers that have one."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}  # by pid

    def watch(self, worker: LiveProcess, now: float) -> None:
        if worker.file.memory_limit_nbytes:
            self._watched[worker.file.pid] = _Watched(worker, now)

    def forget(self, worker: LiveProcess) -> None:
        self._watched.pop(worker.file.pid, None)

    @property
    def next_look(self) -> float:
        """``inf`` while there is nothing to look at."""
        return min((watched.next_look for watched in self._watched.values()), default=inf)

    def look(self, now: float) -> list[tuple[LiveProcess, Memory]]:
        """Those that have too much, once each."""
        due = [watched for watched in self._watched.values() if watched.next_look <= now]
        if not due:
            return []
        members = _sessions({watched.worker.file.pid for watched in due})
        found = []
        for watched in due:
            worker = watched.worker
            memory = _memory(worker.file.pid, members[worker.file.pid])
            limit = worker.file.memory_limit_nbytes
            if memory.private_nbytes > limit:
                self.forget(worker)
                found.append((worker, memory))
                continue
            elapsed_s = now - watched.looked_at
            watched.next_look = now + next_look_s(
                memory.private_nbytes, watched.nbytes, elapsed_s, limit, SOONEST_LOOK_S, LOOK_S
            )
            watched.nbytes, watched.looked_at = memory.private_nbytes, now
        return found


def reason(memory: Memory, limit_nbytes: int) -> str:
    """What the worker did, for whoever had a request there."""
    had = _mib(memory.private_nbytes)
    return f"had {had} MiB of memory, more than its MEMORY_LIMIT_MIB of {_mib(limit_nbytes)}, and was killed"


def tell(worker: LiveProcess, memory: Memory) -> None:
    """For the operator."""
    file = worker.file
    logger.error(
        "worker %s of '%s', pid %s, has %d MiB of private memory in %d processes, more than its MEMORY_LIMIT_MIB of "
        "%d: it is killed. At most %d MiB were resident in the worker's process, shared memory included",
        *(file.worker, file.instance_name or file.model, file.pid, _mib(memory.private_nbytes), memory.processes),
        *(_mib(file.memory_limit_nbytes), _mib(memory.peak_nbytes)),
    )


def _mib(nbytes: int) -> int:
    """Rounded up, so that too much never looks like just enough."""
    return -(-nbytes >> 20)


def _sessions(leaders: Collection[int]) -> dict[int, list[int]]:
    """The processes in each leader's session. Without ``/proc`` the leaders alone."""
    members: dict[int, list[int]] = {leader: [leader] for leader in leaders}
    with contextlib.suppress(OSError):
        for pid in [int(name) for name in os.listdir("/proc") if name.isdecimal()]:
            with contextlib.suppress(OSError):
                leader = os.getsid(pid)
                if leader in members and pid != leader:
                    members[leader].append(pid)
    return members


def _memory(leader: int, pids: Iterable[int]) -> Memory:
    private = processes = peak = 0
    for pid in pids:
        found = _status(pid)
        private += found.get(b"RssAnon", 0) + found.get(b"VmSwap", 0)
        processes += bool(found)
        if pid == leader:
            peak = found.get(b"VmHWM", 0)
    return Memory(private, processes, peak)


def _status(pid: int) -> dict[bytes, int]:
    """Sizes in bytes; none of a process that is ending or cannot be looked at."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            text = file.read()
    except OSError:
        return {}
    return {match[1]: int(match[2]) << 10 for match in _FIELD.finditer(text)}
