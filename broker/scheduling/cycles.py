"""Models that ask models: requests that wait for each other for ever, found without any I/O or clock.

A worker that runs a batch waits for what the batch's requests have asked. A request that is queued at a model whose
every worker waits, directly or not, for such a request will never run.
"""

from collections.abc import Callable, Mapping, Sequence
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


class _Group:
    """Requests with one parent that wait for an instance of one model, or in the pipe of ``worker``. ``holders``: the
    workers that wait for them."""

    __slots__ = ("model", "worker", "holders", "jobs")

    def __init__(self, model: ModelSlot, worker: WorkerSlot | None, holders: set[WorkerSlot]) -> None:
        self.model = model
        self.worker = worker
        self.holders = holders
        self.jobs: list[Job] = []

    def depth_and_youth(self) -> tuple[int, float]:
        return max((job.request.depth, job.enqueued) for job in self.jobs if job.request is not None)


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
        deepest, of equally deep ones the youngest; and what else the same parent waits for in that queue."""
        self._asked = {job: None for job in self._asked if _waits(job)}
        self.look_at = now + LOOK_S if self._asked else inf
        groups = self._groups(models)
        former, self._stuck = self._stuck, set()
        chosen = []
        while stuck := _stuck(groups):
            self._stuck.update(job for group in stuck for job in group.jobs)
            rejectable = [group for group in stuck if group.worker is None and not former.isdisjoint(group.jobs)]
            if not rejectable:
                break
            victim = max(rejectable, key=_Group.depth_and_youth)
            groups.remove(victim)
            fault = _fault(victim)
            chosen += [(job, fault) for job in victim.jobs if job in former]
        return chosen

    def _groups(self, models: Mapping[ModelKey, ModelSlot]) -> list[_Group]:
        groups: dict[tuple[Job | None, ModelSlot, WorkerSlot | None], _Group] = {}
        holders: dict[Job | None, set[WorkerSlot]] = {}
        for job in self._asked:
            assert job.request is not None
            model = models.get((job.request.model, job.request.version))
            if model is None:
                continue
            parent = self._parent_of(job)
            if parent not in holders:
                holders[parent] = self._held_up(parent)
            worker = job.worker if job.state == RUNNING else None
            group = groups.get((parent, model, worker))
            if group is None:
                group = groups[parent, model, worker] = _Group(model, worker, holders[parent])
            group.jobs.append(job)
        return list(groups.values())

    def _held_up(self, parent: Job | None) -> set[WorkerSlot]:
        """The workers that run, in a batch, ``parent`` or a request that waits for it. A request that is open after its
        batch waits as well, but does not keep its worker from running others."""
        workers: set[WorkerSlot] = set()
        seen = {parent}
        reached = [parent]
        while reached:
            job = reached.pop()
            if job is None or job.state != RUNNING or job.worker is None:
                continue
            batch: Sequence[Job] = next(iter(job.worker.batches.values()), ())
            if job in batch:
                workers.add(job.worker)
            for other in batch if job in batch else (job,):
                ancestor = self._parent_of(other)
                if ancestor not in seen:
                    seen.add(ancestor)
                    reached.append(ancestor)
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


def _stuck(groups: list[_Group]) -> list[_Group]:
    """The largest set of groups such that each waits for workers all of which wait for groups of this set; of these,
    the ones that such a worker waits for."""
    stuck = groups
    while True:
        busy = {worker for group in stuck for worker in group.holders}
        closed = {model for model in {group.model for group in stuck} if _all_wait(model, busy)}
        left = [group for group in stuck if (group.model in closed if group.worker is None else group.worker in busy)]
        if len(left) == len(stuck):
            break
        stuck = left
    needed: set[WorkerSlot] = set()
    for group in stuck:
        needed.update(_instances(group.model) if group.worker is None else (group.worker,))
    return [group for group in stuck if not needed.isdisjoint(group.holders)]


def _all_wait(model: ModelSlot, busy: set[WorkerSlot]) -> bool:
    workers = _instances(model)
    return bool(workers) and all(worker in busy for worker in workers)


def _instances(model: ModelSlot) -> list[WorkerSlot]:
    """Those that take batches; if there are none, those that have to end before others come."""
    return [worker for worker in model.workers.values() if not worker.draining] or list(model.workers.values())


def _fault(victim: _Group) -> Fault:
    name = victim.model.name
    count = len(_instances(victim.model))
    instances = "its only instance waits" if count == 1 else f"all {count} instances wait"
    if any(worker.model is victim.model for worker in victim.holders):
        text = (
            f"model '{name}' was asked by a request that '{name}' itself is running: {instances} for such requests; "
            "give the model more instances, or do not call it from within itself"
        )
    else:
        text = (
            f"model '{name}' cannot run this request: {instances} for models that wait, directly or not, for '{name}'; "
            "give the models more instances, or do not let them call each other"
        )
    return Fault("InvalidArgument", text)
