"""Who awaits what, and how they are told that it has ended."""

from broker.instructions import Instruction, ToPeer
from broker.scheduling.job import GONE, RUNNING, Job
from broker.scheduling.recovery import Missing
from conch.messages import Fault, Lost, Rejected, Retired

LOST_BY_RESTART = Fault("Unavailable", "the request was lost when a part of the server was restarted")


class Requesters:
    """``jobs`` holds every queued and running job by requester and id. A requester that is not in it is dead, and is
    told nothing. ``inside``: those that live in workers. Messages are appended to ``out``."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[int, Job]] = {}
        self.inside: set[str] = set()
        self.out: list[Instruction] = []
        #: what runs on although its requester is dead
        self._orphans: dict[tuple[str, int], Job] = {}
        #: (requester, id, attempt) told lost by a restart: the number of that ``Lost``, 0 once it was submitted again
        self._told: dict[tuple[str, int, int], int] = {}
        self._last_loss = 0

    def is_repeated(self, requester: str, id: int, attempt: int) -> bool:
        """Whether a request that comes in was submitted before, in this epoch, under the same attempt. A requester may
        hear of the loss twice: from us, and in what it had not yet read of our predecessor."""
        if not self._told:
            return False
        key = (requester, id, attempt)
        if key not in self._told:
            return False
        repeated = self._told[key] == 0
        self._told[key] = 0
        return repeated

    def was_told(self, requester: str, id: int, attempt: int, last_loss: int) -> bool:
        """Whether the requester, which has read our ``Lost`` up to number ``last_loss``, is still to act on its loss by
        a restart. If it had read of it and we have not seen it again, it was lost once more."""
        told = self._told.get((requester, id, attempt))
        return told is not None and (told == 0 or told > last_loss)

    def hello(self, requester: str, inside: bool) -> dict[int, Job]:
        """It is there (again). Returns what it has here."""
        if inside:
            self.inside.add(requester)
        return self.jobs.setdefault(requester, {})

    def forget(self, requester: str) -> list[Job]:
        """It is dead; returns what it had."""
        self._told = {told: number for told, number in self._told.items() if told[0] != requester}
        self.inside.discard(requester)
        jobs = list(self.jobs.pop(requester, {}).values())
        self._orphans.update({(requester, job.id): job for job in jobs if job.state == RUNNING})
        return jobs

    def find(self, requester: str, id: int) -> Job | None:
        """A job that is queued or runs, also of a dead requester."""
        job = self.jobs.get(requester, {}).get(id)
        return self._orphans.get((requester, id)) if job is None else job

    def finish(self, jobs: list[Job]) -> tuple[int, float]:
        """``jobs`` ran. Returns the sums of their sizes and of the times when they were queued."""
        units = 0
        enqueued_sum = 0.0
        cancelled = None
        for job in jobs:
            job.state = GONE
            units += job.size
            enqueued_sum += job.enqueued
            known = self.jobs.get(job.requester)
            if known is not None:
                known.pop(job.id, None)
                if job.cancelled:
                    cancelled = cancelled or []
                    cancelled.append(job)
        if cancelled is not None:
            self._retire(cancelled)
        if self._orphans:
            self._bury(jobs)
        return units, enqueued_sum

    def retire(self, requester: str, ids: tuple[int, ...]) -> None:
        """No worker reads their inputs any more, and no answer will come."""
        self.out.append(ToPeer(requester, Retired(ids)))

    def _retire(self, jobs: list[Job]) -> None:
        for requester, group in _by_requester(jobs).items():
            self.retire(requester, tuple([job.id for job in group]))

    def lose(self, worker: str, jobs: list[Job], alone: bool, cause: Fault) -> None:
        """``worker`` held ``jobs`` and will not answer them: cancelled ones are retired, the others ``Lost``."""
        lost: list[Job] = []
        retired: list[Job] = []
        for job in jobs:
            job.state = GONE
            known = self.jobs.get(job.requester)
            if known is not None:
                known.pop(job.id, None)
                (retired if job.cancelled else lost).append(job)
        self._bury(jobs)
        self._retire(retired)
        for requester, group in _by_requester(lost).items():
            ids = tuple([job.id for job in group])
            attempts = tuple([job.attempt for job in group])
            self.out.append(ToPeer(requester, Lost(worker, ids, alone, cause, attempts, self._next_loss())))

    def _bury(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._orphans.pop((job.requester, job.id), None)

    def restart_lost(self, missing: list[Missing]) -> None:
        """A former broker had these and no worker has them: cancelled ones are retired, the others ``Lost``, once."""
        retired: dict[str, list[int]] = {}
        lost: dict[str, list[Missing]] = {}
        for item in missing:
            if item.cancelled:
                retired.setdefault(item.requester, []).append(item.id)
            else:
                lost.setdefault(item.requester, []).append(item)
        for requester, numbers in retired.items():
            self.retire(requester, tuple(numbers))
        for requester, items in lost.items():
            ids = tuple([item.id for item in items])
            attempts = tuple([item.attempt for item in items])
            number = self._next_loss()
            for item in items:
                self._told[requester, item.id, item.attempt] = number
            self.out.append(ToPeer(requester, Lost("", ids, False, LOST_BY_RESTART, attempts, number)))

    def _next_loss(self) -> int:
        self._last_loss += 1
        return self._last_loss

    def reject(self, job: Job, fault: Fault) -> None:
        """``job``, which has left its queue or never entered it, will not run."""
        job.state = GONE
        known = self.jobs.get(job.requester)
        if known is not None:
            known.pop(job.id, None)
            self.out.append(ToPeer(job.requester, Rejected(job.id, job.attempt, fault)))


def _by_requester(jobs: list[Job]) -> dict[str, list[Job]]:
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.requester, []).append(job)
    return groups
