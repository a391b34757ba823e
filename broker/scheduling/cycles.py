"""Models that ask models: requests that wait for each other for ever, found without any I/O or clock.

A worker that runs a batch waits for what the batch's requests have asked. A request that is queued at a model whose
every worker waits, directly or not, for such a request will never run.
"""

from collections.abc import Callable, Mapping
from math import inf

from broker.scheduling.job import QUEUED, RUNNING, Job
from broker.scheduling.recovery import ModelKey
from broker.scheduling.workers import ModelSlot, WorkerSlot
from conch.messages import Fault

#: how deep requests of models may be nested
MAX_DEPTH = 64
TOO_DEEP = Fault(
    "InvalidArgument",
    f"models ask each other more than {MAX_DEPTH} levels deep; a model that asks itself must stop at some level",
)
#: between two looks. What both find stuck is: a model that asks and does not wait goes on meanwhile.
LOOK_S = 0.5


class Cycles:
    """Knows the requests that models ask and that have not begun to run.

    ``look`` is to be called at ``look_at``, which is ``inf`` while there are none. ``find`` gives a job that
    is queued or runs, by requester and id.
    """

    def __init__(self, find: Callable[[str, int], Job | None]) -> None:
        self._find = find
        self._asked: dict[Job, None] = {}
        self._stuck: set[Job] = set()
        self.look_at = inf

    def add(self, job: Job, now: float) -> None:
        """``job``, whose request has a parent, is in a queue (again)."""
        self._asked[job] = None
        if self.look_at == inf:
            self.look_at = now + LOOK_S
        ancestor = self._parent_of(job)
        for _ in range(MAX_DEPTH):
            if ancestor is None or ancestor.worker is None:
                break
            ancestor.worker.model.asks = True
            ancestor = self._parent_of(ancestor)

    def look(self, models: Mapping[ModelKey, ModelSlot], now: float) -> list[tuple[Job, Fault]]:
        """The requests that have to be rejected so that the others can go on: of those that wait for each other the
        deepest, of equally deep ones the youngest."""
        waiting: dict[Job, set[WorkerSlot]] = {}
        self._asked = {job: None for job in self._asked if _waits(job)}
        for job in self._asked:
            waiting[job] = self._waiting_for(job)
        self.look_at = now + LOOK_S if waiting else inf
        former, self._stuck = self._stuck, set()
        chosen = []
        while stuck := _stuck(waiting, models):
            self._stuck.update(stuck)
            rejectable = [job for job in stuck if job.state == QUEUED and job in former]
            if not rejectable:
                break
            victim = max(rejectable, key=_depth_and_youth)
            chosen.append((victim, _fault(victim, waiting.pop(victim), models)))
        return chosen

    def _waiting_for(self, job: Job) -> set[WorkerSlot]:
        """The workers that run, in a batch, a request that waits for ``job``. A request that is open after its batch
        waits as well, but does not keep its worker from running others."""
        workers: set[WorkerSlot] = set()
        seen = {job}
        reached = [job]
        while reached:
            parent = self._parent_of(reached.pop())
            if parent is None or parent in seen or parent.state != RUNNING or parent.worker is None:
                continue
            batch = next(iter(parent.worker.batches.values()), ())
            waits_too = batch if parent in batch else (parent,)
            if parent in batch:
                workers.add(parent.worker)
            seen.update(waits_too)
            reached += waits_too
        return workers

    def _parent_of(self, job: Job) -> Job | None:
        parent = job.parent
        return None if parent is None else self._find(parent.requester, parent.id)


def _waits(job: Job) -> bool:
    """Whether it is queued, or in a worker's pipe behind another batch."""
    if job.state == RUNNING and job.worker is not None:
        batches = iter(job.worker.batches.values())
        next(batches, None)
        return any(job in batch for batch in batches)
    return job.state == QUEUED


def _key(job: Job) -> ModelKey:
    assert job.request is not None
    return job.request.model, job.request.version


def _stuck(waiting: Mapping[Job, set[WorkerSlot]], models: Mapping[ModelKey, ModelSlot]) -> list[Job]:
    """The largest set of waiting requests such that each waits for workers all of which wait for requests of this set;
    of these, the ones that such a worker waits for."""
    stuck = set(waiting)
    while True:
        busy = {worker for job in stuck for worker in waiting[job]}
        closed = {key for key in {_key(job) for job in stuck} if key in models and _all_wait(models[key], busy)}
        left = {job for job in stuck if (_key(job) in closed if job.state == QUEUED else job.worker in busy)}
        if len(left) == len(stuck):
            break
        stuck = left
    needed: set[WorkerSlot | None] = set()
    for job in stuck:
        needed.update(_instances(models[_key(job)]) if job.state == QUEUED else (job.worker,))
    return [job for job in stuck if not needed.isdisjoint(waiting[job])]


def _all_wait(model: ModelSlot, busy: set[WorkerSlot]) -> bool:
    workers = _instances(model)
    return bool(workers) and all(worker in busy for worker in workers)


def _instances(model: ModelSlot) -> list[WorkerSlot]:
    """Those that take batches; if there are none, those that have to end before others come."""
    return [worker for worker in model.workers.values() if not worker.draining] or list(model.workers.values())


def _depth_and_youth(job: Job) -> tuple[int, float]:
    assert job.request is not None
    return job.request.depth, job.enqueued


def _fault(victim: Job, waiting: set[WorkerSlot], models: Mapping[ModelKey, ModelSlot]) -> Fault:
    model = models[_key(victim)]
    count = len(_instances(model))
    instances = "its only instance waits" if count == 1 else f"all {count} instances wait"
    if any(worker.model is model for worker in waiting):
        text = (
            f"model '{model.name}' was asked by a request that '{model.name}' itself is running: {instances} for such "
            "requests; give the model more instances, or do not call it from within itself"
        )
    else:
        text = (
            f"model '{model.name}' cannot run this request: {instances} for models that wait, directly or not, for "
            f"'{model.name}'; give the models more instances, or do not let them call each other"
        )
    return Fault("InvalidArgument", text)
