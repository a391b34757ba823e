"""Gives what a model has queued to its workers that are free."""

from math import inf

from broker.instructions import Instruction, ToData
from broker.scheduling.job import RUNNING, Job
from broker.scheduling.timeouts import Timeouts
from broker.scheduling.workers import ModelSlot, WorkerSlot
from conch.messages import Batch, Dispatch

#: a worker gets a second batch only if a batch takes less than this: then waiting for ``Done`` and the next batch costs
#: a noticeable part of its time, and little is bound to it too early
FAST_EXECUTION_S = 0.001
#: a request with attempt > 1 waits so long for a worker that holds no open request, and if it is open itself after its
#: batch, keeps its worker to itself so long: in this time most that end a worker have done so
ALONE_S = 2.0


class Batches:
    """Batches are appended to ``out``."""

    def __init__(self, epoch: int, out: list[Instruction], timeouts: Timeouts) -> None:
        self._epoch = epoch
        self._out = out
        self._begun = timeouts.begun
        self._last_batch = 0

    def form(self, model: ModelSlot, now: float) -> list[Job]:
        """Returns what it found too late to run; that has left the queue."""
        queue = model.queue
        idle = model.idle
        expired: list[Job] = []
        if model.retries:
            self._send_retries(model, now, expired)
        while idle:
            jobs = queue.take(now, False, expired)
            if jobs is None:
                break
            self._send(idle.popleft(), jobs, model, now)
        if model.partial and queue.live and not model.retries and model.execution_s < FAST_EXECUTION_S:
            # behind a request that waits for another model, one that this other needs might wait for ever, unseen
            while model.partial and not model.asks:
                jobs = queue.take(now, True, expired)
                if jobs is None:
                    break
                self._send(model.partial.popleft(), jobs, model, now)
        return expired

    def _send_retries(self, model: ModelSlot, now: float, expired: list[Job]) -> None:
        """A request that may have ended a worker runs where it harms no other, if such a worker is free in time."""
        retries, idle = model.retries, model.idle
        model.retry_at = inf
        while retries and idle:
            job = retries[0]
            if job.expires <= now:
                expired.append(retries.popleft())
                continue
            worker = next((worker for worker in idle if not worker.open), None)
            if worker is None:
                if now < job.enqueued + ALONE_S:
                    model.retry_at = job.enqueued + ALONE_S
                    return
                worker = idle[0]
            retries.popleft()
            idle.remove(worker)
            self._send(worker, [job], model, now)

    def _send(self, worker: WorkerSlot, jobs: list[Job], model: ModelSlot, now: float) -> None:
        worker.place = None
        self._last_batch = number = self._last_batch + 1
        items = []
        for job in jobs:
            job.state = RUNNING
            job.worker = worker
            assert job.request is not None
            items.append(Dispatch(job.requester, job.request))
        if not worker.batches:
            self._begun(worker, now)
        worker.batches[number] = jobs
        model.running += len(jobs)
        if jobs[0].attempt > 1:
            worker.alone = True
        elif len(worker.batches) == 1 and model.queue.closes_early:
            worker.place = model.partial
            model.partial.append(worker)
        self._out.append(ToData(worker.name, Batch(self._epoch, number, tuple(items))))
