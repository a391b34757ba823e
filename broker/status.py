"""What the broker says about itself: the answers to ``AskStatus`` and to statistics that do not exist."""

from collections.abc import Iterable

import msgspec

from broker.lifecycle import Lifecycle
from broker.scheduling.reports import Reports
from conch.messages import AskStatistics, Fault, PeerStatus, QueueStatus, ServerState, ServerStatus


def server_status(
    epoch: int,
    server: ServerState,
    started_ms: int,
    processes: Iterable[PeerStatus],
    lifecycle: Lifecycle,
    work: Reports,
    now: float,
) -> ServerStatus:
    """Joins what the life cycle knows of models and instances with what is known of their ``work``."""
    models = []
    for entry in lifecycle.entries():
        queued, running = work.load_of(entry.name, entry.version)
        reason = entry.reason or lifecycle.note(entry.name, entry.version)
        models.append(QueueStatus(entry.name, entry.version, entry.state, reason, queued, running))
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
