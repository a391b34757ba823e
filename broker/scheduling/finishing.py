"""How requests end that do not simply end with their batch: failed, undelivered, open, or to be run again."""

from broker.scheduling.job import Job
from broker.scheduling.requesters import LOST_BY_RESTART, Requesters
from broker.scheduling.workers import WorkerSlot
from broker.statistics import BACKEND
from conch.messages import Closed, Done, Fault

_UNDELIVERED = Fault("Unavailable", "the answer could not be delivered")


def finish_partly(requesters: Requesters, worker: WorkerSlot, jobs: list[Job], done: Done, now: float) -> list[Job]:
    """``jobs``, which have left the worker's batches, were run as ``done`` says. Returns those to be queued again.

    An open request counts as a success here, as in Triton: what is measured is the batch.
    """
    statistics = worker.model.statistics
    positions = set(range(len(jobs)))  # a worker gone wrong may name others
    undelivered = positions.intersection(done.undelivered)
    again = positions.intersection(done.again) - undelivered
    opened = positions.intersection(done.open) - undelivered - again
    failed = positions.intersection(done.failed) - undelivered - again - opened
    for position in failed:
        statistics.fail(BACKEND, jobs[position].enqueued, now)
    units = requests = 0
    enqueued_sum = 0.0
    finished: list[Job] = []
    rerun: list[Job] = []
    forgotten: list[Job] = []
    for position, job in enumerate(jobs):
        if position in undelivered:
            continue
        if position in again:
            if job.cancelled or job.requester not in requesters.jobs:
                finished.append(job)
            elif job.request is None:
                forgotten.append(job)
            else:
                rerun.append(job)
            continue
        if position in opened:
            worker.open[job.requester, job.id, job.attempt] = job
            worker.model.running += 1
        else:
            finished.append(job)
        if position not in failed:
            requests += 1
            units += job.size
            enqueued_sum += job.enqueued
    requesters.finish(finished)
    statistics.executed(done, requests, sum(job.size for job in jobs), enqueued_sum, units)
    alone = len(jobs) == 1 and worker.holds_nothing
    requesters.lose(worker.name, [jobs[position] for position in sorted(undelivered)], alone, _UNDELIVERED)
    # Only the former broker knew them: their requesters submit them again.
    requesters.lose(worker.name, forgotten, False, LOST_BY_RESTART)
    return rerun


def finish_open(requesters: Requesters, worker: WorkerSlot, closed: Closed, now: float) -> bool:
    """False if the worker does not hold such a request open."""
    job = worker.open.pop((closed.requester, closed.id, closed.attempt), None)
    if job is None:
        return False
    worker.model.running -= 1
    if closed.undelivered:
        requesters.lose(worker.name, [job], worker.holds_nothing, _UNDELIVERED)
        return True
    if closed.failed:
        worker.model.statistics.fail(BACKEND, job.enqueued, now)
    requesters.finish([job])
    return True
