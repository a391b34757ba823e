"""What the broker says about itself: the answers to ``AskStatus`` and to statistics that do not exist."""

from collections.abc import Iterable

import msgspec

from broker.lifecycle import Lifecycle
from broker.scheduling.reports import Reports
from conch.messages import (
    AskStatistics,
    Fault,
    ModelEntry,
    ModelState,
    PeerStatus,
    QueueStatus,
    ServerState,
    ServerStatus,
)
from conch.readiness import lets_server_be_ready


class StateTimes:
    """Since when each model version has been in its state."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, int], tuple[ModelState, float]] = {}

    def update(self, entries: Iterable[ModelEntry], now: float) -> None:
        """``entries``: every version, after some of them may have changed."""
        former = self._since
        self._since = {}
        for entry in entries:
            key = (entry.name, entry.version)
            known = former.get(key)
            self._since[key] = known if known is not None and known[0] == entry.state else (entry.state, now)

    def seconds(self, name: str, version: int, now: float) -> float:
        known = self._since.get((name, version))
        return now - known[1] if known is not None else 0.0


def server_status(
    epoch: int,
    server: ServerState,
    started_ms: int,
    processes: Iterable[PeerStatus],
    lifecycle: Lifecycle,
    state_times: StateTimes,
    work: Reports,
    now: float,
) -> ServerStatus:
    """Joins what the life cycle knows of models and instances with what is known of their ``work``."""
    models = []
    for entry in lifecycle.entries():
        queued, running = work.load_of(entry.name, entry.version)
        reason = entry.reason or lifecycle.note(entry.name, entry.version)
        ready = lets_server_be_ready(entry) and not lifecycle.says_no(entry.name, entry.version)
        in_state_s = state_times.seconds(entry.name, entry.version, now)
        models.append(QueueStatus(entry.name, entry.version, entry.state, reason, queued, running, ready, in_state_s))
    instances = []
    for instance in lifecycle.instances(now):
        busy, executions, busy_s = work.work_of(instance.worker, now)
        state = "busy" if busy and instance.state == "ready" else instance.state
        instances.append(msgspec.structs.replace(instance, state=state, executions=executions, busy_s=busy_s))
    return ServerStatus(epoch, server, started_ms, tuple(processes), tuple(models), tuple(instances))


def why_no_statistics(asked: AskStatistics, work: Reports) -> Fault | None:
    """Triton's words; None where an empty answer is right: nothing in particular was asked for."""
    if not asked.name:
        return None
    if work.statistics(asked.name):
        return Fault("InvalidArgument", f"requested model version is not available for model '{asked.name}'")
    return Fault("InvalidArgument", f"requested model '{asked.name}' is not available")
