"""The queue of one model version: priority levels, queue policies, forming batches (inventory, Appendix B)."""

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf

from broker.scheduling.job import GONE, QUEUED, Job
from conch.messages import Fault
from conch.model_config import DynamicBatching, ModelConfig, QueuePolicy

#: the bound for a model without ``max_queue_size``: a queue this long is minutes of work, and its requests hold memory
MAX_QUEUED = 65_536
QUEUE_FULL = Fault("Overloaded", "Exceeds maximum queue size")
TIMED_OUT = Fault("QueueTimeout", "Request timeout expired")
#: a queue is cleared of jobs that left it out of turn once they outnumber the others by this many
_MAX_GARBAGE = 64


class Level:
    """One priority level: ``active`` in order of arrival, behind it ``delayed``, whose time-out action was DELAY."""

    __slots__ = ("active", "delayed", "expiry", "live", "max_size", "timeout_s", "override", "delays", "_entered")

    def __init__(self, policy: QueuePolicy | None) -> None:
        policy = policy or QueuePolicy()
        self.active: deque[Job] = deque()
        self.delayed: deque[Job] = deque()
        #: (time, order, job) of the jobs that are rejected at that time, also while no instance is free
        self.expiry: list[tuple[float, int, Job]] = []
        self.live = 0
        self.max_size = policy.max_queue_size or MAX_QUEUED
        self.timeout_s = policy.default_timeout_microseconds / 1e6
        self.override = policy.allow_timeout_override
        self.delays = policy.timeout_action.upper() == "DELAY"
        self._entered = 0

    def set_expiry(self, job: Job, timeout_us: int) -> None:
        """A request's own time-out counts only if the policy allows it, has a default, and the default is longer."""
        timeout_s = self.timeout_s
        if self.override and 0 < timeout_us < timeout_s * 1e6:
            timeout_s = timeout_us / 1e6
        expires = job.enqueued + timeout_s
        if expires < job.expires:
            job.expires = expires
        if self.delays:
            return
        self._entered += 1
        heappush(self.expiry, (job.expires, self._entered, job))
        if len(self.expiry) > 2 * self.live + _MAX_GARBAGE:
            self.expiry = [item for item in self.expiry if item[2].state == QUEUED]
            heapify(self.expiry)


class ModelQueue:
    """Jobs that wait for an instance. All methods are O(1) but ``take``, which is O(size of a batch).

    ``live`` counts jobs and ``units`` their batch sizes. ``held_until`` > 0: the last ``take`` found that waiting until
    then, or until ``held_units`` are there, may make a better batch. ``closes_early``: no delay, preferred size,
    priority or policy can change a batch once it is full, so that it may wait in a worker's pipe. Never of a model
    that must not run a request again.
    """

    def __init__(self, config: ModelConfig | None) -> None:
        batching = None if config is None else config.dynamic_batching
        self.merges = batching is not None
        batching = batching or DynamicBatching()
        self.max_units = max(1, config.max_batch_size) if config is not None else 1
        self.preferred = frozenset(batching.preferred_batch_size or (self.max_units,))
        self.max_preferred = max(self.preferred)
        self.delay_s = batching.max_queue_delay_microseconds / 1e6
        default = batching.default_queue_policy
        policies = batching.priority_queue_policy
        self.levels = [
            Level(policies.get(str(number), default)) for number in range(1, max(1, batching.priority_levels) + 1)
        ]
        self.default_level = min(max(1, batching.default_priority_level), len(self.levels))
        self._sources: list[tuple[deque[Job], Level]] = []
        for level in self.levels:
            self._sources.append((level.active, level))
            if level.delays:
                self._sources.append((level.delayed, level))
        self._simple = len(self.levels) == 1 and not policies and default is None
        self.closes_early = self._simple and self.delay_s == 0 and self.preferred == {self.max_units}
        if config is not None and not config.idempotent:  # nobody knows what ran of a dead worker's pipe
            self.closes_early = False
        #: whether ``next_wakeup`` may be finite
        self.timed = self.delay_s > 0 or any(level.timeout_s > 0 and not level.delays for level in self.levels)
        self._last_shape_key = ""
        self._garbage = 0
        self.live = 0
        self.units = 0
        self.held_until = 0.0
        self.held_units = 0

    def push(self, job: Job, bounded: bool = True) -> bool:
        """False if the queue is full, unless ``bounded`` is False: the job was admitted before and comes again."""
        request = job.request
        assert request is not None
        if self._simple:
            level = self.levels[0]
        else:
            known = 1 <= request.priority <= len(self.levels)
            level = self.levels[(request.priority if known else self.default_level) - 1]
        if bounded and (level.live >= level.max_size or self.live >= MAX_QUEUED):
            return False
        level.live += 1
        if level.timeout_s:
            level.set_expiry(job, request.timeout_us)
        if self.held_until and (len(self.levels) > 1 or job.shape_key != self._last_shape_key):
            self.held_until = 0.0
        self._last_shape_key = job.shape_key
        job.source = level.active
        level.active.append(job)
        self.live += 1
        self.units += job.size
        return True

    def push_back(self, jobs: list[Job]) -> None:
        """Puts ``jobs``, in order, where ``take`` got them, whatever the queue's bound."""
        for job in reversed(jobs):
            assert job.source is not None
            job.state = QUEUED
            job.source.appendleft(job)
            self._level_of(job).live += 1
            self.live += 1
            self.units += job.size
        self.held_until = 0.0

    def discard(self, job: Job) -> None:
        """The queued ``job`` goes out of turn: cancelled, or its requester is dead."""
        self._leave(job, self._level_of(job))
        self._garbage += 1
        if self._garbage > self.live + _MAX_GARBAGE:
            for source, _ in self._sources:
                kept = [job for job in source if job.state == QUEUED]
                source.clear()
                source.extend(kept)
            self._garbage = 0

    def expire(self, now: float) -> list[Job]:
        """Takes out the jobs whose queue time-out has passed and that are to be rejected for it."""
        expired = []
        for level in self.levels:
            while level.expiry and (level.expiry[0][0] <= now or level.expiry[0][2].state != QUEUED):
                job = heappop(level.expiry)[2]
                if job.state == QUEUED:
                    self.discard(job)
                    expired.append(job)
        return expired

    def next_wakeup(self) -> float:
        """When ``expire`` or ``take`` may have something without a new event; ``inf`` for never."""
        wakeup = self.held_until or inf
        for level in self.levels:
            if level.expiry and level.expiry[0][0] < wakeup:
                wakeup = level.expiry[0][0]
        return wakeup

    def take(self, now: float, full_only: bool, expired: list[Job]) -> list[Job] | None:
        """The next batch, or None if there is none yet. ``full_only``: only one that no later request could join.

        What is reached after its time is appended to ``expired`` and has left the queue.
        """
        if not self.live:
            return None
        if self.merges and (self.live > 1 or not self.closes_early or full_only):
            if now < self.held_until and self.units < self.held_units:
                return None
            if full_only and self.units < self.max_units:
                return None
            return self._take_merged(now, full_only, expired)
        active = self.levels[0].active
        while active:
            job = active.popleft()
            if self._reached(job, self.levels[0], active, now, expired):
                self.levels[0].live -= 1
                self.live -= 1
                self.units -= job.size
                return [job]
        return None

    def _take_merged(self, now: float, full_only: bool, expired: list[Job]) -> list[Job] | None:
        pending: list[Job] = []
        total = best = 0
        oldest = inf
        stopped = False
        preferred = self.preferred
        for source, level in self._sources:
            while source and total < self.max_units:
                job = source.popleft()
                if not self._reached(job, level, source, now, expired):
                    continue
                grown = total + job.size
                if pending:
                    if grown > self.max_preferred and not best:
                        best = len(pending)
                    if grown > self.max_units or job.shape_key != pending[0].shape_key:
                        source.appendleft(job)
                        stopped = True
                        break
                pending.append(job)
                total = grown
                if job.enqueued < oldest:
                    oldest = job.enqueued
                if total in preferred:
                    best = len(pending)
            if stopped or total >= self.max_units:
                break
        self.held_until = 0.0
        if not pending:
            return None
        overdue = self.delay_s > 0 and now >= oldest + self.delay_s
        if full_only and not (stopped or total >= self.max_units):
            taken = 0
        elif best and not overdue:
            taken = best
        elif stopped or total >= self.max_preferred or self.delay_s == 0 or overdue:
            taken = len(pending)
        else:
            taken = 0
            self.held_until = oldest + self.delay_s
            self.held_units = min(size for size in preferred if size > total)
        for job in reversed(pending[taken:]):
            assert job.source is not None
            job.source.appendleft(job)
        del pending[taken:]
        self._remove(pending)
        return pending or None

    def _reached(self, job: Job, level: Level, source: deque[Job], now: float, expired: list[Job]) -> bool:
        """Whether ``job``, just taken out of ``source``, may run now."""
        if job.state != QUEUED:
            self._garbage -= 1
            return False
        if now < job.expires:
            return True
        assert job.request is not None
        deadline = inf if job.request.deadline is None else job.request.deadline
        if level.delays and source is level.active and now < deadline:
            job.expires = deadline
            job.source = level.delayed
            level.delayed.append(job)
        else:
            self._leave(job, level)
            expired.append(job)
        return False

    def _remove(self, jobs: list[Job]) -> None:
        if len(self.levels) == 1:
            self.levels[0].live -= len(jobs)
        else:
            for job in jobs:
                self._level_of(job).live -= 1
        self.live -= len(jobs)
        for job in jobs:
            self.units -= job.size

    def _leave(self, job: Job, level: Level) -> None:
        job.state = GONE
        level.live -= 1
        self.live -= 1
        self.units -= job.size

    def _level_of(self, job: Job) -> Level:
        if len(self.levels) == 1:
            return self.levels[0]
        return next(level for level in self.levels if job.source is level.active or job.source is level.delayed)

    def __iter__(self) -> Iterator[Job]:
        """Every queued job, in the order in which they would run."""
        for source, _ in self._sources:
            for job in source:
                if job.state == QUEUED:
                    yield job
