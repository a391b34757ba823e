"""One model instance over the lives of its workers: restarts at once, backs off when that does not help.

waiting ──► starting ──► loading ──► ready ──► (its worker dies) ──► starting …
                │            │                        └─ too often ──► backed-off ── later ──► starting …
                └────────────┴── could not load the model ────────────────┘
completed: its worker has completed the configuration and ends, another one will load the model
adopting: a worker of the former broker is listed by the launcher, but has not spoken to this broker yet
"""

from collections import deque
from math import inf
from typing import TYPE_CHECKING, Literal

from broker.repository.snapshot import InstancePlan
from conch.messages import Fault

if TYPE_CHECKING:
    from broker.lifecycle.models import Copy

#: so many deaths within so long a time in which it was ready, and an instance is no longer restarted at once: it would
#: only burn the machine
CRASH_BUDGET = 10
CRASH_WINDOW_S = 60.0
#: nor after so many workers in a row that died before they were ready
UNREADY_BUDGET = 2
#: pauses between restarts after that: doubled each time, until it has been well for CRASH_WINDOW_S
FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 60.0
#: A worker that was ready for so long had served: its death does not count, and the next one starts at once. An
#: instance that somebody kills every few seconds goes on for ever.
WELL_S = 2.0

InstanceState = Literal["waiting", "starting", "completed", "loading", "adopting", "ready", "backed-off"]


class Instance:
    """``number`` is its place in the configuration's list, stable over restarts; ``copy`` the copy it belongs to.

    ``backed_off`` stays set while a restart after a pause is tried, until that one is ready: such an instance is not
    counted on. ``restarts`` counts workers after the first. ``fault`` is what its current worker failed with.
    ``checks``: its model is to be asked whether it is ready. ``died_at``: when a worker of it died last, ``-inf`` if
    none has.
    """

    __slots__ = (
        "number",
        "plan",
        "copy",
        "state",
        "worker",
        "backed_off",
        "retry_at",
        "restarts",
        "last_error",
        "fault",
        "checks",
        "died_at",
        "_deaths",
        "_last_death_counts",
        "_unready_deaths",
        "_pause_s",
        "_ready_since",
        "_ready_before_s",
    )

    def __init__(self, number: int, plan: InstancePlan, copy: "Copy") -> None:
        self.number = number
        self.plan = plan
        self.copy = copy
        self.state: InstanceState = "waiting"
        self.worker = ""
        self.backed_off = False
        self.retry_at = 0.0
        self.restarts = 0
        self.last_error = ""
        self.fault: Fault | None = None
        self.checks = False
        self.died_at = -inf
        #: by how long the instance had been ready in all: a model that takes long to load is not spared for that
        self._deaths: deque[float] = deque(maxlen=CRASH_BUDGET)
        self._last_death_counts = False
        self._unready_deaths = 0
        self._pause_s = FIRST_BACKOFF_S
        self._ready_since = 0.0
        self._ready_before_s = 0.0

    def is_ready(self, now: float) -> None:
        self.state = "ready"
        self.backed_off = False
        self.fault = None
        self._unready_deaths = 0
        self._ready_since = now

    def has_died(self, reason: str, counts: int, now: float) -> bool:
        """Its worker is gone. True: start the next one now. False: it is backed off until ``retry_at``, at once if it
        could not load (``fault``).

        ``counts`` is added to the deaths that are counted: 0 where the model is not to blame; -1 where a request is
        that has ended a worker before, this one's or another instance's, the last that died."""
        could_load = self.fault is None
        ready_s = now - self._ready_since if self.state == "ready" else 0.0
        if self.state != "ready":
            self._unready_deaths += 1
        self._ready_before_s += ready_s
        self.worker = ""
        self.restarts += 1
        self.last_error = reason
        self.fault = None
        if ready_s > CRASH_WINDOW_S:
            self._pause_s = FIRST_BACKOFF_S
        if ready_s >= WELL_S:
            counts = min(counts, 0)
        if counts > 0:
            self._deaths.append(self._ready_before_s)
        elif counts < 0:
            max(self.copy.instances, key=lambda each: each.died_at)._forgive()
        self._last_death_counts = counts > 0
        self.died_at = now
        often = len(self._deaths) == CRASH_BUDGET and self._ready_before_s - self._deaths[0] <= CRASH_WINDOW_S
        often = often or self._unready_deaths >= UNREADY_BUDGET
        has_recovered = self._pause_s == FIRST_BACKOFF_S
        if could_load and (counts <= 0 or (has_recovered and not often)):
            self.state = "waiting"
            return True
        self.state = "backed-off"
        self.backed_off = True
        self.retry_at = now + self._pause_s
        self._pause_s = min(self._pause_s * 2, LAST_BACKOFF_S)
        return False

    def _forgive(self) -> None:
        """Its last death does not count after all."""
        if self._last_death_counts:
            self._last_death_counts = False
            self._deaths.pop()
