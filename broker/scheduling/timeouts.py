"""Batches that run longer than their model allows (``EXECUTION_TIMEOUT_S``), and the workers that are to die of it."""

from collections.abc import Collection
from math import inf
from typing import NamedTuple

from broker.scheduling.workers import ModelSlot, WorkerSlot
from conch.model_config import ModelConfig


class Overdue(NamedTuple):
    """``reason``: see ``Kill``."""

    worker: str
    reason: str


class Timeouts:
    """Looks at ``workers`` when the first batch may be overdue: a batch costs a comparison and nothing more.

    A batch begins when it is sent to a worker that has none, or with the end of the one before it. ``exempt``: models
    without a time-out whatever their configuration says, because a debugger stops them.
    """

    def __init__(self, workers: dict[str, WorkerSlot], exempt: Collection[str] = ()) -> None:
        self._workers = workers
        self._exempt = exempt
        #: not after the first moment at which a batch is overdue
        self.look_at = inf

    def configure(self, model: ModelSlot, config: ModelConfig) -> None:
        model.timeout_s = inf if model.name in self._exempt else config.execution_timeout_s
        if model.timeout_s < inf and model.workers:
            self.look_at = 0.0

    def begun(self, worker: WorkerSlot, now: float) -> None:
        """It has a batch, and had none before."""
        worker.busy_since = now
        overdue_at = now + worker.model.timeout_s
        if overdue_at < self.look_at:
            self.look_at = overdue_at

    def overdue(self, now: float) -> list[Overdue]:
        """To be called at ``look_at``, after everything that has come was read. These get no more batches; each is
        named once."""
        self.look_at = inf
        found = []
        for worker in self._workers.values():
            timeout_s = worker.model.timeout_s
            if timeout_s == inf or not worker.batches or worker.condemned:
                continue
            if worker.busy_since + timeout_s <= now:
                worker.condemn()
                reason = f"ran longer than its EXECUTION_TIMEOUT_S of {timeout_s:g} s and was killed"
                found.append(Overdue(worker.name, reason))
            else:
                self.look_at = min(self.look_at, worker.busy_since + timeout_s)
        return found
