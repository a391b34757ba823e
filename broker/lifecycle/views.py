"""What others may know of the life cycle's state: the table of models, the state of each instance, the memory."""

from collections.abc import Iterator
from math import inf

from broker.lifecycle.memory import Memory, RememberedConfig, RememberedLoad
from broker.lifecycle.models import Copy, Model, Slot
from broker.lifecycle.readiness import Readiness
from broker.lifecycle.roster import Roster
from broker.repository.scan import DUPLICATE_REASON, Found
from broker.repository.snapshot import Override
from conch.messages import InstanceStatus, ModelEntry

#: ``InstanceStatus`` knows fewer states: what has no worker yet is starting all the same
_STATES = {"waiting": "starting", "completed": "starting", "adopting": "starting"}


def entries(models: dict[str, Model], found: Found) -> tuple[ModelEntry, ...]:
    """Every version of every model, by name and version."""
    listed: list[ModelEntry] = []
    for name in sorted({*models, *found.names}):
        model = models.get(name)
        if name in found.duplicates and (model is None or not model.serving):
            listed.append(ModelEntry(name, 0, "UNAVAILABLE", DUPLICATE_REASON, False))
        elif model is not None and model.slots:
            listed.extend(_entry(name, slot) for _, slot in sorted(model.slots.items()))
        elif model is not None and model.poll_reason:
            listed.append(ModelEntry(name, 0, "UNAVAILABLE", model.poll_reason, False))
        elif name in found.names:
            listed.append(ModelEntry(name, 0, "UNKNOWN", "", False))
    return tuple(listed)


def _entry(name: str, slot: Slot) -> ModelEntry:
    copy = slot.serving
    if copy is None:
        return ModelEntry(name, slot.version, slot.state, slot.reason, False)
    healthy = slot.state == "READY" and copy.healthy
    return ModelEntry(
        name, slot.version, slot.state, slot.reason, healthy, copy.config_json, copy.snapshot.labels, copy.checks
    )


def note(model: Model | None, version: int, readiness: Readiness) -> str:
    """What a person should know of a version that serves, or nothing."""
    copy = model.slots[version].serving if model is not None and version in model.slots else None
    if model is None or copy is None:
        return ""
    notes = []
    if says_no(model, version, readiness):
        notes.append("not ready, the model said when it was asked last")
    if model.last_failure:
        notes.append(f"serves as it was loaded before; the last load failed: {model.last_failure.strip()}")
    return "\n".join(notes)


def says_no(model: Model | None, version: int, readiness: Readiness) -> bool:
    """Whether an instance of a version that serves said, when it was asked last, that it is not ready."""
    copy = model.slots[version].serving if model is not None and version in model.slots else None
    return copy is not None and any(readiness.says_no(instance.worker) for instance in copy.instances)


def folders(models: dict[str, Model], found: Found) -> tuple[tuple[str, str], ...]:
    """Every model's name and the folder of its Python-based backend."""
    names = sorted({*models, *found.names})
    return tuple((name, models[name].backend_dir if name in models else "") for name in names)


def instances(models: dict[str, Model], roster: Roster, now: float) -> list[InstanceStatus]:
    """Every instance, wanted or leaving. ``executions`` and whether it is busy are the dispatcher's to fill in."""
    listed = []
    for copy in _copies(models):
        for instance in copy.own:
            worker = roster.workers.get(instance.worker)
            listed.append(
                InstanceStatus(
                    model=copy.name,
                    version=copy.version,
                    instance=instance.plan.name,
                    worker=instance.worker,
                    pid=worker.pid if worker is not None else 0,
                    state=_STATES.get(instance.state, instance.state),
                    restarts=instance.restarts,
                    executions=0,
                    last_error=instance.last_error,
                    retry_in_s=max(0.0, instance.retry_at - now) if instance.state == "backed-off" else 0.0,
                    since_death_s=now - instance.died_at if instance.died_at > -inf else None,
                )
            )
    for worker in roster.workers.values():
        if worker.instance is None:
            listed.append(
                InstanceStatus(
                    worker.name, worker.version, worker.instance_name, worker.id, worker.pid, "draining", 0, 0
                )
            )
    return sorted(listed, key=lambda status: (status.model, status.version, status.instance, status.worker))


def memory(
    models: dict[str, Model],
    loads: dict[str, Override] | None,
    former: dict[str, dict[int, RememberedConfig]],
) -> Memory:
    """What the next broker has to know. ``loads``: the models that are to be loaded by name, if that is how it goes.
    ``former``: configurations of models that do not serve yet."""
    remembered = Memory(configs=dict(former))
    if loads is not None:
        remembered.loads = {name: RememberedLoad(each.config, each.folder) for name, each in sorted(loads.items())}
    for name, model in sorted(models.items()):
        serving = sorted((slot.version, slot.serving) for slot in model.serving if slot.serving is not None)
        if serving:
            remembered.configs[name] = {
                version: RememberedConfig(copy.hash, copy.config_json) for version, copy in serving
            }
    return remembered


def _copies(models: dict[str, Model]) -> Iterator[Copy]:
    for model in models.values():
        for slot in model.slots.values():
            if slot.serving is not None:
                yield slot.serving
        for operation in model.operations:
            yield from (copy for copy in operation.copies if copy.state in ("pending", "loading", "loaded"))
