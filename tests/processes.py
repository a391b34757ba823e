"""Processes as ``/proc`` shows them, for the tests."""

import os
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """``started``, in clock ticks since boot, tells it from a later process of the same pid."""

    pid: int
    started: int


class Status(NamedTuple):
    """``state``: ``"Z"`` is a zombie."""

    process: Process
    parent: int
    state: str


def status(pid: int) -> Status | None:
    """None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Status(Process(pid, int(fields[19])), parent=int(fields[1]), state=fields[0])


def is_gone(pid: int) -> bool:
    """Whether no thread of it is left: while one is, also behind a main thread that is a zombie already, descriptors
    are open and locks are held."""
    here = status(pid)
    if here is None:
        return True
    try:
        return here.state == "Z" and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except OSError:
        return True


def all_processes() -> dict[int, Status]:
    found = (status(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {each.process.pid: each for each in found if each is not None}


def environment(pid: int) -> dict[str, str]:
    """What the process was started with; empty if it is gone, a zombie, or somebody else's."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in raw.decode(errors="replace").split("\0") if "=" in entry)


def command_line(pid: int) -> str:
    """Empty for a zombie and for what is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def ancestors(pid: int, processes: dict[int, Status]) -> list[Process]:
    """From the parent upwards."""
    found = []
    while (here := processes.get(pid)) is not None and (parent := processes.get(here.parent)) is not None:
        found.append(parent.process)
        pid = parent.process.pid
    return found
