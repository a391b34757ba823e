"""Who has said HELLO to this broker, by the routing ids of their sockets."""

from collections.abc import Iterator

from conch.messages import WorkerHello


class Known:
    """A requester, an observer or the launcher. ``worker``: the one in which a requester lives, or ""."""

    __slots__ = ("name", "role", "pid", "worker")

    def __init__(self, name: str, role: str, pid: int, worker: str = "") -> None:
        self.name = name
        self.role = role
        self.pid = pid
        self.worker = worker

    def __str__(self) -> str:
        return f"the requester of worker {self.worker}" if self.worker else f"{self.role} frontend"


class Peers:
    """``workers`` by name, ``worker_sockets`` from a control socket to the worker's name."""

    def __init__(self) -> None:
        self.requesters: dict[bytes, Known] = {}
        self.observers: dict[bytes, Known] = {}
        self.launcher: tuple[bytes, Known] | None = None
        self.workers: dict[str, WorkerHello] = {}
        self.worker_sockets: dict[bytes, str] = {}

    def knows(self, peer: bytes) -> bool:
        if peer in self.requesters or peer in self.observers or peer in self.worker_sockets:
            return True
        return self.launcher is not None and self.launcher[0] == peer

    def follow_settings(self) -> Iterator[bytes]:
        """Whoever is told of settings that change: of a worker with a requester of its own, only the worker."""
        yield from (peer for peer, known in self.requesters.items() if not known.worker)
        yield from self.observers
        yield from self.worker_sockets
        if self.launcher is not None:
            yield self.launcher[0]
