"""Processes of a server that are made to run short of something, for a while."""

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def limited(pid: int, kind: int, soft: int) -> Iterator[None]:
    before = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, before)


@contextlib.contextmanager
def no_new_memory(pid: int) -> Iterator[None]:
    """No file that the process writes may be larger than 64 KiB: not a segment of shared memory either."""
    with limited(pid, resource.RLIMIT_FSIZE, 64 << 10):
        yield


@contextlib.contextmanager
def no_descriptor(pid: int, more: int = 0) -> Iterator[None]:
    """The process can open ``more``, and nothing else."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    with limited(pid, resource.RLIMIT_NOFILE, min(set(range(len(used) + 1)) - used) + more):
        yield


def processor_s(pid: int) -> float:
    """User and system time that the process has had."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
