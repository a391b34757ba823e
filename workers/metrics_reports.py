"""When a worker tells the broker of its model's metrics: no clock and no socket, those are ``workers.control``'s.

A change is reported at once if the last report is old enough, otherwise when it is. Somebody who looks at the metrics
has the broker ask for a report, so these are there for what a worker that is killed would take along.
"""

from collections.abc import Callable

from conch.messages import MetricsReport, Spawn
from workers.copies import COPIES
from workers.python_utils.metric_values import REGISTRY

#: between two reports that nobody has asked for
INTERVAL_S = 0.5


class MetricsReports:
    """``wake`` is called, by any thread, when ``wait_s`` has changed."""

    def __init__(self, spawn: Spawn, wake: Callable[[], None]) -> None:
        self._spawn = spawn
        self._earliest = 0.0
        REGISTRY.instance_name = spawn.instance_name
        REGISTRY.on_change = wake

    def wait_s(self, now: float) -> float | None:
        """Until there is something to be reported; None: for nothing that has happened yet."""
        return max(0.0, self._earliest - now) if REGISTRY.changed else None

    def due(self, now: float) -> MetricsReport | None:
        return self.take(now) if REGISTRY.changed and now >= self._earliest else None

    def take(self, now: float) -> MetricsReport:
        """Everything, changed or not."""
        self._earliest = now + INTERVAL_S
        spawn = self._spawn
        return MetricsReport(spawn.worker, REGISTRY.report() + COPIES.families(spawn.model, spawn.version))

    def last(self, now: float) -> MetricsReport | None:
        """Before the worker ends. Nobody is woken any more."""
        REGISTRY.on_change = _nobody
        report = self.take(now)
        return report if report.families else None

    def repeat(self) -> None:
        """A new broker knows nothing yet."""
        if REGISTRY.has_series:
            REGISTRY.change()


def _nobody() -> None:
    pass
