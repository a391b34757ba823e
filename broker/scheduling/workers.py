"""The dispatcher's view of one model version and of its workers."""

from collections import deque
from collections.abc import Iterator
from math import inf

from broker.scheduling.job import QUEUED, RUNNING, Job
from broker.scheduling.queues import MAX_QUEUED, ModelQueue
from broker.statistics import StatisticsKeeper
from conch.messages import Fault, Running
from conch.model_config import ModelConfig

#: weight of the newest execution in the running mean
_NEWEST = 0.1
#: an open request: requester, id, attempt
OpenKey = tuple[str, int, int]
#: a batch: its number in this epoch, or (epoch, number) of a former one
BatchKey = int | tuple[int, int]


class WorkerSlot:
    """One worker. ``batches`` holds what it was given and has not reported done, in order; ``open`` the requests that
    it goes on answering after their batch, which take no credit.

    It lies in its model's ``idle`` (holds no batch) or ``partial`` (holds one batch, may perhaps take another), or in
    neither: not ready, draining, full, paused for the moment, or holding a batch that must be alone. ``busy_since`` is
    when the first of ``batches`` began, if there is one. ``condemned``: it is being killed.
    """

    __slots__ = (
        "name",
        "model",
        "batches",
        "open",
        "ready",
        "draining",
        "drain_sent",
        "alone",
        "place",
        "paused_until",
        "executions",
        "busy_since",
        "condemned",
    )

    def __init__(self, name: str, model: "ModelSlot") -> None:
        self.name = name
        self.model = model
        self.batches: dict[BatchKey, list[Job]] = {}
        self.open: dict[OpenKey, Job] = {}
        self.ready = False
        self.draining = False
        self.drain_sent = False
        self.alone = False
        self.place: deque[WorkerSlot] | None = None
        self.paused_until = 0.0
        self.executions = 0
        self.busy_since = 0.0
        self.condemned = False

    def jobs(self) -> Iterator[Job]:
        for jobs in self.batches.values():
            yield from jobs
        yield from self.open.values()

    @property
    def holds_nothing(self) -> bool:
        return not self.batches and not self.open

    @property
    def is_waited_for(self) -> bool:
        """Nobody waits for what is open and cancelled: it was answered, perhaps, and its model still has its inputs."""
        return bool(self.batches) or not all(job.cancelled for job in self.open.values())

    def adopt(self, running: Running, now: float) -> Job:
        """It says that it has held this since before a broker's restart."""
        job = Job(running.requester, None, running.id, running.attempt, now)
        job.state = RUNNING
        job.worker = self
        if running.batch:
            self.batches.setdefault((running.epoch, running.batch), []).append(job)
            self.alone |= running.attempt > 1
        else:
            self.open[running.requester, running.id, running.attempt] = job
        self.model.running += 1
        return job

    def end(self) -> list[Job]:
        """It is dead. Returns what it held."""
        jobs = list(self.jobs())
        self.ready = False
        self.leave()
        self.model.workers.pop(self.name, None)
        self.model.running -= len(jobs)
        self.batches.clear()
        self.open.clear()
        return jobs

    def condemn(self) -> None:
        """It is being killed and gets nothing more: what it were given now would die with it."""
        self.condemned = True
        self.leave()

    def leave(self) -> None:
        if self.place is not None:
            self.place.remove(self)
            self.place = None

    def settle(self) -> None:
        """Takes the place that fits what it holds, behind those that were free earlier."""
        self.leave()
        if not self.ready or self.draining or self.paused_until or self.condemned:
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
    is what new requests are rejected with once the version is being unloaded. ``asks``: a request that it ran has asked
    a model. ``timeout_s``: how long a batch may run.
    """

    __slots__ = (
        "name",
        "version",
        "timeout_s",
        "known",
        "closing",
        "asks",
        "queue",
        "retries",
        "retry_at",
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
        self.timeout_s = inf
        self.known = False
        self.closing: Fault | None = None
        self.asks = False
        self.queue = ModelQueue(None)
        #: attempt > 1: ahead of the queue, each a batch of its own on a worker that holds nothing else
        self.retries: deque[Job] = deque()
        #: until when the first of them waits for a worker without open requests
        self.retry_at = inf
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

    def next_wakeup(self) -> float:
        """When there may be something to do without a new event; ``inf`` for never."""
        wakeup = self.queue.next_wakeup()
        return min(wakeup, self.retry_at) if self.retries else wakeup

    def queued_jobs(self) -> list[Job]:
        return [job for job in self.retries if job.state == QUEUED] + list(self.queue)

    @property
    def has_only_draining(self) -> bool:
        return all(worker.draining for worker in self.workers.values())

    @property
    def queued(self) -> int:
        return self.queue.live + len(self.retries)

    @property
    def full(self) -> bool:
        return self.queued >= MAX_QUEUED
