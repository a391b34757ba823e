"""The dispatcher's view of one model version and of its workers."""

from collections import deque
from collections.abc import Iterator
from math import inf

from broker.scheduling.job import QUEUED, Job
from broker.scheduling.queues import MAX_QUEUED, ModelQueue
from broker.statistics import StatisticsKeeper
from conch.messages import Fault
from conch.model_config import ModelConfig

#: a worker gets a second batch only if a batch takes less than this: then waiting for ``Done`` and the next batch costs
#: a noticeable part of its time, and little is bound to it too early
FAST_EXECUTION_S = 0.001
#: weight of the newest execution in the running mean
_NEWEST = 0.1
#: a batch: its number in this epoch, or (epoch, number) of a former one
BatchKey = int | tuple[int, int]


class WorkerSlot:
    """One worker. ``batches`` holds what it was given and has not reported done, in order.

    It lies in its model's ``idle`` (holds nothing) or ``partial`` (holds one batch, may perhaps take another), or in
    neither: not ready, draining, full, unreachable for the moment, or holding a request that must be alone.
    """

    __slots__ = (
        "name",
        "model",
        "batches",
        "ready",
        "draining",
        "drain_sent",
        "alone",
        "place",
        "unreachable_until",
        "executions",
    )

    def __init__(self, name: str, model: "ModelSlot") -> None:
        self.name = name
        self.model = model
        self.batches: dict[BatchKey, list[Job]] = {}
        self.ready = False
        self.draining = False
        self.drain_sent = False
        self.alone = False
        self.place: deque[WorkerSlot] | None = None
        self.unreachable_until = 0.0
        self.executions = 0

    def jobs(self) -> Iterator[Job]:
        for jobs in self.batches.values():
            yield from jobs

    def leave(self) -> None:
        if self.place is not None:
            self.place.remove(self)
            self.place = None

    def settle(self) -> None:
        """Takes the place that fits what it holds, behind those that were free earlier."""
        self.leave()
        if not self.ready or self.draining or self.unreachable_until:
            return
        if not self.batches:
            self.alone = False
            self.place = self.model.idle
            self.model.idle.append(self)
        elif len(self.batches) == 1 and not self.alone and self.model.queue.closes_early:
            self.place = self.model.partial
            self.model.partial.append(self)


class ModelSlot:
    """One model version: its queue, its workers, its statistics.

    ``known`` is False while requests are kept for a model that a restarted broker has not taken over yet. ``closing``
    is what new requests are rejected with once the version is being unloaded.
    """

    __slots__ = (
        "name",
        "version",
        "known",
        "closing",
        "queue",
        "retries",
        "workers",
        "idle",
        "partial",
        "running",
        "execution_s",
        "statistics",
    )

    def __init__(self, name: str, version: int, statistics: StatisticsKeeper) -> None:
        self.name = name
        self.version = version
        self.known = False
        self.closing: Fault | None = None
        self.queue = ModelQueue(None)
        #: attempt > 1: ahead of the queue, each a batch of its own on a worker that holds nothing else
        self.retries: deque[Job] = deque()
        self.workers: dict[str, WorkerSlot] = {}
        self.idle: deque[WorkerSlot] = deque()
        self.partial: deque[WorkerSlot] = deque()
        self.running = 0
        #: running mean of how long a batch takes, unknown until the first
        self.execution_s = inf
        self.statistics = statistics

    def configure(self, config: ModelConfig) -> None:
        """New rules; what is queued is queued again by them, whatever their bound."""
        former, self.queue = self.queue, ModelQueue(config)
        for job in former:
            if not self.queue.push(job):
                job.source = self.queue.levels[0].active
                self.queue.push_back([job])
        for worker in self.workers.values():
            worker.settle()

    def measured(self, execution_s: float) -> None:
        if self.execution_s == inf:
            self.execution_s = execution_s
        else:
            self.execution_s += _NEWEST * (execution_s - self.execution_s)

    def queued_jobs(self) -> list[Job]:
        return [job for job in self.retries if job.state == QUEUED] + list(self.queue)

    @property
    def queued(self) -> int:
        return self.queue.live + len(self.retries)

    @property
    def full(self) -> bool:
        return self.queued >= MAX_QUEUED
