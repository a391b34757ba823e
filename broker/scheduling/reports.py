"""What others may know of the dispatcher's work."""

from broker.scheduling.recovery import ModelKey
from broker.scheduling.requesters import Requesters
from broker.scheduling.workers import ModelSlot, WorkerSlot
from conch.messages import ModelStatistics


class Reports:
    """Reads what the dispatcher keeps, and changes nothing."""

    def __init__(
        self, models: dict[ModelKey, ModelSlot], workers: dict[str, WorkerSlot], requesters: Requesters
    ) -> None:
        self._models = models
        self._workers = workers
        self._requesters = requesters

    def statistics(self, name: str = "", version: int = 0) -> list[ModelStatistics]:
        """Of all known versions that fit, by name and version; ``""`` and 0 fit all."""
        return [
            model.statistics.report(model.name, model.version, model.queued)
            for _, model in sorted(self._models.items())
            if model.known and name in ("", model.name) and version in (0, model.version)
        ]

    def load_of(self, name: str, version: int) -> tuple[int, int]:
        """How many requests are queued and how many run."""
        model = self._models.get((name, version))
        return (0, 0) if model is None else (model.queued, model.running)

    def work_of(self, worker: str, now: float) -> tuple[bool, int, float]:
        """Whether it holds something, how many batches it has done for this broker, and for how long it has run its
        present batch."""
        slot = self._workers.get(worker)
        if slot is None:
            return False, 0, 0.0
        return not slot.holds_nothing, slot.executions, now - slot.busy_since if slot.batches else 0.0

    def busy_s(self, now: float) -> dict[ModelKey, float]:
        """Of every version with a batch that runs: for how long the one that has run longest has."""
        longest: dict[ModelKey, float] = {}
        for worker in self._workers.values():
            if worker.batches:
                key = worker.model.name, worker.model.version
                longest[key] = max(longest.get(key, 0.0), now - worker.busy_since)
        return longest

    def inflight_of(self, requester: str) -> int:
        return len(self._requesters.jobs.get(requester, ()))
