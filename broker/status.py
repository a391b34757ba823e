"""What the broker says about itself: the answers to ``AskStatus`` and to statistics that do not exist."""

from collections.abc import Iterable

import msgspec

from broker.lifecycle import Lifecycle
from broker.scheduling.dispatcher import Dispatcher
from conch.messages import AskStatistics, Fault, PeerStatus, QueueStatus, ServerState, ServerStatus


def server_status(
    epoch: int,
    server: ServerState,
    started_ms: int,
    processes: Iterable[PeerStatus],
    lifecycle: Lifecycle,
    dispatcher: Dispatcher,
) -> ServerStatus:
    """Joins what the life cycle knows of models and instances with what the dispatcher knows of their work."""
    models = []
    for entry in lifecycle.entries():
        queued, running = dispatcher.load_of(entry.name, entry.version)
        reason = entry.reason or lifecycle.note(entry.name, entry.version)
        models.append(QueueStatus(entry.name, entry.version, entry.state, reason, queued, running))
    instances = []
    for instance in lifecycle.instances():
        busy, executions = dispatcher.work_of(instance.worker)
        state = "busy" if busy and instance.state == "ready" else instance.state
        instances.append(msgspec.structs.replace(instance, state=state, executions=executions))
    return ServerStatus(epoch, server, started_ms, tuple(processes), tuple(models), tuple(instances))


def why_no_statistics(asked: AskStatistics, dispatcher: Dispatcher) -> Fault | None:
    """Triton's words; None where an empty answer is right: nothing in particular was asked for."""
    if not asked.name:
        return None
    if dispatcher.statistics(asked.name):
        return Fault("InvalidArgument", f"requested model version is not available for model '{asked.name}'")
    return Fault("InvalidArgument", f"requested model '{asked.name}' is not available")
