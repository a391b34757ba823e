"""Who is killed next, and when it was."""

import os
import random
import signal
import time
from dataclasses import dataclass
from typing import Literal

from tests.processes import status
from tests.scenarios.faults.watch import role, workers
from tests.scenarios.harness import Server

Scope = Literal["workers", "everything"]
#: a frontend is spared while its sibling may not be back: then there would be nobody to reconnect to
_FRONTEND_REST_S = 6.0
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
                if (name := role(pid, names)) in _CORE and not self._rests(name)
            ]
        return sorted(found)

    def _rests(self, name: str) -> bool:
        now = time.monotonic()
        return name in ("http", "grpc") and any(
            kill.role == name and now - kill.killed_s < _FRONTEND_REST_S for kill in self.kills
        )
