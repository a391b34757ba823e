"""After the broker's restart: where the requests are that the former broker had.

A requester's HELLO lists what it awaits, a worker's HELLO what it runs. What nobody runs is lost, but that is known
only once every worker of the model has spoken or is dead; and which workers there are, only the launcher knows.
"""

from collections.abc import Iterable

from conch.messages import Awaited, LiveWorker, Running

ModelKey = tuple[str, int]


class Missing:
    """An awaited request that no worker has named so far."""

    __slots__ = ("requester", "id", "attempt", "model", "parent", "cancelled")

    def __init__(self, requester: str, awaited: Awaited) -> None:
        self.requester = requester
        self.id = awaited.id
        self.attempt = awaited.attempt
        self.model = (awaited.model, awaited.version)
        self.parent = awaited.parent
        self.cancelled = False


class Recovery:
    def __init__(self) -> None:
        self.launcher_spoke = False
        self._alive: set[str] = set()
        self._heard: set[str] = set()
        self._silent: dict[ModelKey, set[str]] = {}
        self._missing: dict[tuple[str, int], Missing] = {}

    # ------------------------------------------------------------------------------------------------ workers

    def listed(self, workers: Iterable[LiveWorker]) -> None:
        """The launcher's HELLO: these workers live and no other."""
        self.launcher_spoke = True
        self._alive = set()
        self._silent = {}
        for worker in workers:
            self._alive.add(worker.worker)
            if worker.worker not in self._heard:
                self._silent.setdefault((worker.model, worker.version), set()).add(worker.worker)

    def expect(self, worker: str) -> None:
        """This broker has it spawned: it lives, and it cannot hold anything of a former broker."""
        self._alive.add(worker)

    def believes(self, worker: str) -> bool:
        """False for a worker that is dead or nobody's: what it says must not count any more."""
        return worker in self._alive or not self.launcher_spoke

    def heard(self, worker: str) -> None:
        self._heard.add(worker)
        self._no_longer_silent(worker)

    def died(self, worker: str) -> None:
        self._alive.discard(worker)
        self._heard.discard(worker)
        self._no_longer_silent(worker)

    def _no_longer_silent(self, worker: str) -> None:
        for key, silent in list(self._silent.items()):
            silent.discard(worker)
            if not silent:
                del self._silent[key]

    # ------------------------------------------------------------------------------------------------ requests

    def miss(self, requester: str, awaited: Awaited) -> None:
        self._missing.setdefault((requester, awaited.id), Missing(requester, awaited))

    def found(self, running: Running) -> Missing | None:
        return self._missing.pop((running.requester, running.id), None)

    def cancel(self, requester: str, id: int) -> bool:
        """Whether ``id`` is missing; it is then retired as soon as it is known where it is not."""
        missing = self._missing.get((requester, id))
        if missing is None:
            return False
        missing.cancelled = True
        return True

    def submitted(self, requester: str, id: int) -> None:
        """It is here, so it is not missing."""
        if self._missing:
            self._missing.pop((requester, id), None)

    def forget(self, requester: str) -> None:
        for key in [key for key in self._missing if key[0] == requester]:
            del self._missing[key]

    def decided(self) -> list[Missing]:
        """Takes out what is lost for certain."""
        if not self._missing or not self.launcher_spoke:
            return []
        lost = [missing for missing in self._missing.values() if missing.model not in self._silent]
        for missing in lost:
            del self._missing[missing.requester, missing.id]
        return lost
