"""Which request runs where and when: the broker's view of the life of a request (docs/design.md), without any I/O.

Events come in as method calls; ``dispatch`` forms batches from everything that came in since and returns what is to be
sent, in order. Calling it once for many events is what makes batches.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from math import inf

from broker.instructions import Instruction, ToControl, ToPeer
from broker.refusals import not_ready
from broker.scheduling.batches import ALONE_S, Batches
from broker.scheduling.cycles import MAX_DEPTH, TOO_DEEP, Cycles
from broker.scheduling.exiting import EXITING, may_come
from broker.scheduling.finishing import finish_open, finish_partly
from broker.scheduling.job import GONE, QUEUED, RUNNING, Job
from broker.scheduling.queues import QUEUE_FULL, TIMED_OUT
from broker.scheduling.recovery import ModelKey, Recovery
from broker.scheduling.reports import Reports
from broker.scheduling.requesters import Requesters
from broker.scheduling.timeouts import Timeouts
from broker.scheduling.workers import BatchKey, ModelSlot, WorkerSlot
from broker.statistics import BACKEND, CANCELED, REJECTED, StatisticsKeeper
from conch.messages import (
    Awaited,
    Cancel,
    Closed,
    Done,
    Drain,
    Fault,
    Forget,
    LiveWorker,
    Rejected,
    Request,
    Running,
)
from conch.model_config import ModelConfig

logger = logging.getLogger("conch.broker.dispatcher")

#: a worker that could not be reached is tried again after this: it is connecting, or its death is on its way to us
UNREACHABLE_S = 0.02


class Dispatcher:
    """Keeps every request from ``submit`` to the end of its batch, by (requester, id).

    All ``now`` are seconds on the monotonic clock. ``wall_offset_ns``: see ``StatisticsKeeper``. ``debugged``: models
    without execution time-outs. ``retries``: how many requests came again because their worker had died.
    """

    def __init__(self, epoch: int, wall_offset_ns: int = 0, debugged: Collection[str] = ()) -> None:
        self._epoch = epoch
        self._wall_offset_ns = wall_offset_ns
        self._models: dict[ModelKey, ModelSlot] = {}
        #: what requests for a removed model are rejected with, which a requester may send until it has the new table
        self._removed: dict[ModelKey, Fault] = {}
        self._workers: dict[str, WorkerSlot] = {}
        self._requesters = Requesters()
        self._recovery = Recovery()
        #: models that may have something to do, in the order in which that came about
        self._dirty: dict[ModelSlot, None] = {}
        #: models whose queue has a timer
        self._timed: set[ModelSlot] = set()
        self._paused: set[WorkerSlot] = set()
        self._starting = True
        self._exiting = False
        self._out = self._requesters.out
        self.timeouts = Timeouts(self._workers, debugged)
        self.retries: Counter[ModelKey] = Counter()
        self._batches = Batches(epoch, self._out, self.timeouts)
        self._cycles = Cycles(self._requesters.find)
        self.reports = Reports(self._models, self._workers, self._requesters)

    # -------------------------------------------------------------------------------------------------- models

    def add_model(self, name: str, version: int, config: ModelConfig, fresh_statistics: bool = True) -> None:
        """Requests for this version are scheduled by ``config`` from now on."""
        model = self._model(name, version)
        if fresh_statistics and model.known:
            model.statistics = StatisticsKeeper(self._wall_offset_ns)
        model.known = True
        model.closing = None
        model.configure(config)
        self.timeouts.configure(model, config)
        self._removed.pop((name, version), None)
        self._dirty[model] = None

    def drain_model(self, name: str, version: int, fault: Fault) -> None:
        """New requests are rejected with ``fault``; what is queued still runs, then every worker gets ``Drain``."""
        model = self._model(name, version)
        model.closing = fault
        self._dirty[model] = None

    def remove_model(self, name: str, version: int, fault: Fault, now: float) -> None:
        """What is queued, and whatever comes, is rejected with ``fault``; what runs is left to its workers."""
        self._removed[name, version] = fault
        model = self._models.pop((name, version), None)
        if model is None:
            return
        for job in model.queued_jobs():
            self._requesters.reject(job, fault)
        self._dirty.pop(model, None)
        self._timed.discard(model)
        for worker in list(model.workers.values()):
            if worker.ready:
                self._drain_worker(worker)

    def startup_finished(self, now: float) -> None:
        """Every model that comes by itself has come: requests kept for others are rejected."""
        self._starting = False
        for key in [key for key, model in self._models.items() if not model.known and not model.workers]:
            self.remove_model(*key, not_ready(*key), now)

    def exit(self) -> None:
        """From now on only what accepted work needs is accepted, until ``is_idle``."""
        self._exiting = True

    def _why_removed(self, name: str, version: int) -> Fault:
        return self._removed.get((name, version)) or not_ready(name, version)

    def _model(self, name: str, version: int) -> ModelSlot:
        model = self._models.get((name, version))
        if model is None:
            model = self._models[name, version] = ModelSlot(name, version, StatisticsKeeper(self._wall_offset_ns))
        return model

    # ------------------------------------------------------------------------------------------------- workers

    def worker_expected(self, worker: str) -> None:
        """It is being spawned on this broker's behalf."""
        self._recovery.expect(worker)

    def launcher_hello(self, workers: Iterable[LiveWorker]) -> list[str]:
        """These workers live and no other. Returns the known ones that are not among them: the caller declares them
        lost."""
        listed = list(workers)
        self._recovery.listed(listed)
        self._settle_missing()
        alive = {worker.worker for worker in listed}
        return [worker for worker in self._workers if worker not in alive]

    def worker_hello(self, worker: str, model: str, version: int, running: Iterable[Running], now: float) -> bool:
        """A worker speaks for the first time in this epoch. False if it is not to be believed: it is dead or nobody's,
        or has spoken before (its connection broke, so that nobody knows what it holds: it has to be killed)."""
        if worker in self._workers or not self._recovery.believes(worker):
            return False
        slot = self._worker(worker, model, version)
        for item in running:
            self._adopt(slot, item, now)
        self.timeouts.begun(slot, now)
        self._recovery.heard(worker)
        self._settle_missing()
        return True

    def _worker(self, worker: str, model: str, version: int) -> WorkerSlot:
        slot = self._workers.get(worker)
        if slot is None:
            slot = self._workers[worker] = WorkerSlot(worker, self._model(model, version))
            slot.model.workers[worker] = slot
        return slot

    def _adopt(self, worker: WorkerSlot, running: Running, now: float) -> None:
        missing = self._recovery.found(running)
        job = worker.adopt(running, now)
        jobs = self._requesters.jobs.setdefault(running.requester, {})
        if running.id in jobs:
            logger.error("worker %s runs a request that is already known", worker.name)
            job.requester = ""
            return
        jobs[running.id] = job
        if missing is not None:
            job.asked_by = missing.parent
            if missing.cancelled:
                self._cancel_running(job)

    def worker_ready(self, worker: str, model: str, version: int) -> None:
        """It takes batches from now on. Repeating it is harmless, and ends its pause."""
        slot = self._worker(worker, model, version)
        home = self._model(model, version)
        if slot.model is not home and slot.holds_nothing:  # the version was removed and loaded again meanwhile
            slot.leave()
            slot.model.workers.pop(worker, None)
            slot.model = home
            home.workers[worker] = slot
        slot.ready = True
        self._resume(slot)

    def worker_draining(self, worker: str) -> None:
        """It gets no more batches, and ``Drain`` as soon as it holds nothing."""
        slot = self._workers.get(worker)
        if slot is not None:
            self._drain_worker(slot)

    def _drain_worker(self, worker: WorkerSlot) -> None:
        worker.draining = True
        worker.settle()
        if not worker.drain_sent and not worker.is_waited_for:
            worker.drain_sent = True
            self._out.append(ToControl(worker.name, Drain()))

    def worker_lost(self, worker: str, cause: Fault, now: float, memory_fault: bool = False) -> int:
        """It is dead. What it held is ``Lost``. Returns how its death counts for the model, see ``Instance.has_died``:
        not if it held a request with attempt > 1, or one in a client's memory at a ``memory_fault``, because then it
        says more about that request. The former takes its first death back, unless every request ends the model."""
        self._recovery.died(worker)
        slot = self._workers.pop(worker, None)
        counts = 1
        if slot is not None:
            jobs = slot.end()
            self._paused.discard(slot)
            self._dirty[slot.model] = None
            statistics = slot.model.statistics
            if any(job.attempt > 1 for job in jobs):
                counts = -1 if statistics.has_succeeded else 0
                if len(jobs) == 1 and not jobs[0].cancelled:
                    statistics.fail(BACKEND, jobs[0].enqueued, now)
            elif memory_fault and any(job.uses_client_memory for job in jobs):
                counts = 0
            self._requesters.lose(worker, jobs, len(jobs) == 1, cause)
        self._settle_missing()
        return counts

    def unreachable(self, worker: str, batch: int, now: float) -> None:
        """``batch`` could not be sent: its requests go back to where they were, unless nobody waits for them any more,
        and the worker is tried again soon."""
        slot = self._workers.get(worker)
        jobs = None if slot is None else slot.batches.pop(batch, None)
        if slot is None or jobs is None:
            return
        model = slot.model
        model.running -= len(jobs)
        self._requesters.finish([job for job in jobs if job.cancelled])
        jobs = [job for job in jobs if not job.cancelled]
        if jobs and jobs[0].attempt > 1:
            jobs[0].state = QUEUED
            model.retries.appendleft(jobs[0])
        else:
            model.queue.push_back(jobs)
        for job in jobs:
            self._watch(job, now)
        self._pause(slot, now + UNREACHABLE_S)
        if slot.draining:
            self._drain_worker(slot)
        else:
            slot.settle()
        self._dirty[model] = None

    def _pause(self, worker: WorkerSlot, until: float) -> None:
        """It takes no batch before."""
        worker.paused_until = until
        self._paused.add(worker)

    def _resume(self, worker: WorkerSlot) -> None:
        worker.paused_until = 0.0
        self._paused.discard(worker)
        worker.settle()
        self._dirty[worker.model] = None

    # ---------------------------------------------------------------------------------------------- requesters

    def requester_hello(
        self, requester: str, awaited: Iterable[Awaited], last_loss: int = 0, inside: bool = False
    ) -> None:
        """It is there (again), has read our ``Lost`` up to number ``last_loss``, and awaits these. What is not known
        here is looked for, or lost. ``inside``: it lives in a worker."""
        jobs = self._requesters.hello(requester, inside)
        for item in awaited:
            job = jobs.get(item.id)
            if job is not None:
                if job.request is None:
                    job.asked_by = item.parent
            elif not self._requesters.was_told(requester, item.id, item.attempt, last_loss):
                self._recovery.miss(requester, item)
        self._settle_missing()

    def requester_gone(self, requester: str) -> None:
        """It is dead: its queued requests vanish, the others are cancelled where they run, and nobody is told about any
        of them; its leases can be reclaimed."""
        for job in self._requesters.forget(requester):
            if job.state == QUEUED:
                self._unqueue(job)
            elif not job.cancelled:
                self._cancel_running(job)
        self._recovery.forget(requester)
        for worker in self._workers:
            self._out.append(ToControl(worker, Forget(requester)))

    def submit(self, requester: str, request: Request, now: float) -> None:
        """Queues a request of a requester that has said hello."""
        jobs = self._requesters.jobs[requester]
        id = request.id
        if self._requesters.is_repeated(requester, id, request.attempt):
            return
        if id in jobs:
            logger.error("requester %s submitted request %s again", requester, id)
            return
        self._recovery.submitted(requester, id)
        model = self._models.get((request.model, request.version))
        if model is None:
            if not self._starting:
                fault = self._why_removed(request.model, request.version)
                self._out.append(ToPeer(requester, Rejected(id, request.attempt, fault)))
                return
            model = self._model(request.model, request.version)
        job = Job(requester, request, id, request.attempt, now)
        if self._exiting and not may_come(self._requesters, requester, request):
            self._reject(job, EXITING, now)
            return
        if request.parent is not None:
            if request.depth > MAX_DEPTH:
                self._reject(job, TOO_DEEP, now)
                return
            self._cycles.add(job, now)
        if request.attempt > 1:
            self.retries[request.model, request.version] += 1
            if model.closing is not None and model.has_only_draining:
                self._reject(job, model.closing, now)
                return
            model.retries.append(job)
        elif model.closing is not None:
            self._reject(job, model.closing, now)
            return
        elif not model.queue.push(job):
            self._reject(job, QUEUE_FULL, now)
            return
        jobs[id] = job
        self._dirty[model] = None

    def cancel(self, requester: str, id: int, now: float) -> None:
        """Nobody waits for it any more. ``Retired`` follows, at once or when its batch is done."""
        job = self._requesters.jobs[requester].get(id)
        if job is None:
            if not self._recovery.cancel(requester, id):
                self._requesters.retire(requester, (id,))
        elif job.state == RUNNING:
            if not job.cancelled:
                self._cancel_running(job)
        else:
            model = self._unqueue(job)
            model.statistics.fail(CANCELED, job.enqueued, now)
            del self._requesters.jobs[requester][id]
            self._requesters.retire(requester, (id,))

    def _cancel_running(self, job: Job) -> None:
        assert job.worker is not None
        job.cancelled = True
        self._out.append(ToControl(job.worker.name, Cancel(job.requester, job.id)))
        if job.worker.draining:
            self._drain_worker(job.worker)

    def done(self, worker: str, done: Done, now: float) -> None:
        """A batch is finished, which frees credit. It proves nothing about delivery."""
        slot = self._workers.get(worker)
        key: BatchKey = done.batch if done.epoch == self._epoch else (done.epoch, done.batch)
        jobs = None if slot is None else slot.batches.pop(key, None)
        if slot is None or jobs is None:
            if done.epoch == self._epoch:
                logger.error("worker %s reports batch %s, which it does not hold", worker, done.batch)
            return
        model = slot.model
        model.running -= len(jobs)
        slot.executions += 1
        slot.busy_since = now
        if done.failed or done.undelivered or done.open or done.again:
            again = finish_partly(self._requesters, slot, jobs, done, now)
            if again:
                self._run_again(again, model, now)
            if slot.open and jobs[0].attempt > 1:
                self._pause(slot, now + ALONE_S)
        else:
            units, enqueued_sum = self._requesters.finish(jobs)
            model.statistics.executed(done, len(jobs), units, enqueued_sum, units)
        model.measured((done.ended_ns - done.started_ns) / 1e9)
        if slot.draining:
            self._drain_worker(slot)
        else:
            slot.settle()
        if model.queue.live or model.retries or model.closing is not None:
            self._dirty[model] = None

    def closed(self, worker: str, closed: Closed, now: float) -> None:
        """A request that was open after its batch has ended."""
        slot = self._workers.get(worker)
        if slot is None or not finish_open(self._requesters, slot, closed, now):
            logger.error("worker %s closes request %s, which it does not hold open", worker, closed.id)
        elif slot.draining:
            self._drain_worker(slot)
        elif slot.holds_nothing:
            self._resume(slot)

    def _run_again(self, jobs: list[Job], model: ModelSlot, now: float) -> None:
        """To the end of the queue, as new requests, but whatever its bound: the model goes on with them."""
        home = self._models.get((model.name, model.version))
        for former in jobs:
            job = Job(former.requester, former.request, former.id, former.attempt, now)
            if home is None:
                self._requesters.reject(job, self._why_removed(model.name, model.version))
                continue
            if home.closing is not None and home.has_only_draining:
                self._reject(job, home.closing, now)
                continue
            self._requesters.jobs[job.requester][job.id] = job
            if job.attempt > 1:
                home.retries.append(job)
            else:
                home.queue.push(job, bounded=False)
            self._dirty[home] = None
            self._watch(job, now)

    def _watch(self, job: Job, now: float) -> None:
        if job.request is not None and job.request.parent is not None:
            self._cycles.add(job, now)

    def _reject(self, job: Job, fault: Fault, now: float) -> None:
        """``job``, which has left its queue or never entered it, counts as failed and will not run."""
        assert job.request is not None
        model = self._models.get((job.request.model, job.request.version))
        if model is not None:
            model.statistics.fail(REJECTED, job.enqueued, now)
        self._requesters.reject(job, fault)

    def _unqueue(self, job: Job) -> ModelSlot:
        assert job.request is not None
        model = self._models[job.request.model, job.request.version]
        if job.attempt > 1:
            job.state = GONE
            model.retries.remove(job)
        else:
            model.queue.discard(job)
        self._dirty[model] = None
        return model

    def _settle_missing(self) -> None:
        """What the restart lost for certain: cancelled requests are retired, the others declared lost, once."""
        lost = self._recovery.decided()
        if lost:
            self._requesters.restart_lost(lost)

    # ------------------------------------------------------------------------------------------------- batches

    def dispatch(self, now: float) -> list[Instruction]:
        """Forms the batches that can leave now. Returns everything that is to be sent since the last call, in order."""
        if self._paused:
            for worker in [worker for worker in self._paused if worker.paused_until <= now]:
                self._resume(worker)
        if self._timed:
            for model in [model for model in self._timed if model.next_wakeup() <= now]:
                for job in model.queue.expire(now):
                    self._reject(job, TIMED_OUT, now)
                self._dirty[model] = None
        if self._cycles.look_at <= now:
            for job, fault in self._cycles.look(self._models, now):
                self._unqueue(job)
                self._reject(job, fault, now)
        if self._dirty:
            for model in self._dirty:
                if model.known:
                    self._fill(model, now)
            self._dirty.clear()
        out = self._out[:]
        self._out.clear()
        return out

    @property
    def next_wakeup(self) -> float | None:
        """When ``dispatch`` is to be called if nothing happens before."""
        wakeup = self._cycles.look_at
        for model in self._timed:
            wakeup = min(wakeup, model.next_wakeup())
        for worker in self._paused:
            wakeup = min(wakeup, worker.paused_until)
        return None if wakeup == inf else wakeup

    def _fill(self, model: ModelSlot, now: float) -> None:
        for job in self._batches.form(model, now):
            self._reject(job, TIMED_OUT, now)
        if model.queue.timed or self._timed or model.retries:
            if model.next_wakeup() < inf:
                self._timed.add(model)
            else:
                self._timed.discard(model)
        if model.closing is not None and not model.queued:
            for worker in list(model.workers.values()):
                if worker.ready and not worker.draining:
                    self._drain_worker(worker)

    @property
    def is_idle(self) -> bool:
        """Nothing is queued and nothing runs."""
        runs = any(worker.is_waited_for for worker in self._workers.values())
        return not runs and not any(model.queued for model in self._models.values())
