"""Who is killed next, and when it was."""

import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.processes import status
from tests.scenarios.faults.watch import pids_of, role, workers
from tests.scenarios.harness import Server

Scope = Literal["workers", "everything"]
#: a listening socket, in ``/proc/net/tcp``
_LISTENS = "0A"
_CORE = ("broker", "launcher", "template", "http", "grpc", "metrics")


@dataclass(frozen=True)
class Kill:
    """``role``: ``broker``, ``http``, ``worker simple_0`` … ``killed_s`` is on the monotonic clock."""

    role: str
    pid: int
    killed_s: float

    @property
    def model(self) -> str:
        """Empty if it was no worker."""
        return self.role.removeprefix("worker ").rpartition("_")[0] if self.role.startswith("worker ") else ""


class Killer:
    """Chooses among all processes of ``scope`` with the same chance for each."""

    def __init__(self, server: Server, scope: Scope, seed: int) -> None:
        self.kills: list[Kill] = []
        self._server = server
        self._scope = scope
        self._random = random.Random(seed)
        self._ports = {"http": server.http_port, "grpc": server.grpc_port}

    def kill_one(self) -> None:
        candidates = self._candidates()
        self._random.shuffle(candidates)
        for name, pid in candidates:
            here = status(pid)
            if here is None or here.state == "Z":
                continue
            killed_s = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            self.kills.append(Kill(name, pid, killed_s))
            return

    def _candidates(self) -> list[tuple[str, int]]:
        found = [(f"worker {name}", pid) for pid, name in workers(self._server).items()]
        if self._scope == "everything":
            names = workers(self._server)
            found += [
                (name, pid)
                for pid in self._server.pids()
                if (name := role(pid, names)) in _CORE and (name not in self._ports or self._has_sibling(pid, name))
            ]
        return sorted(found)

    def _has_sibling(self, pid: int, name: str) -> bool:
        """A frontend is spared while there is no other one that its clients could connect to."""
        listening = {
            fields[9]
            for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
            if (fields := line.split())[3] == _LISTENS and int(fields[1].partition(":")[2], 16) == self._ports[name]
        }
        return any(not listening.isdisjoint(_sockets(other)) for other in pids_of(self._server, name) if other != pid)


def _sockets(pid: int) -> set[str]:
    """The inodes of its sockets; none if it has just ended."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry.path).removeprefix("socket:[").removesuffix("]"))
    return found
