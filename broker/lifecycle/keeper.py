"""Carries out loads and unloads and looks after the instances of what serves: the inner part of ``Lifecycle``.

All versions of a load become READY together or not at all, as in Triton: what served before goes on serving until then.
"""

import logging
from collections.abc import Callable, Iterable, Iterator

from broker.instructions import CallFinished, ModelDraining, ModelGone, ModelReady, WorkerDraining, WorkerReady
from broker.lifecycle.deaths import see_log
from broker.lifecycle.effects import DropFolder, LifecycleInstruction, Poll
from broker.lifecycle.instances import Instance
from broker.lifecycle.loading import Loader
from broker.lifecycle.models import Copy, Model, Operation, Slot, reason_of
from broker.lifecycle.roster import Roster, Worker
from broker.refusals import keeps_crashing, not_ready
from broker.repository.completion import with_instances_of
from broker.repository.snapshot import Override, Snapshot
from conch.messages import Fault

logger = logging.getLogger("conch.broker.lifecycle")


class Keeper:
    """``finished``: operations that ended since somebody looked, with how. ``answers`` leave after the table of models,
    so that whoever is told of a load finds the model there."""

    def __init__(
        self,
        roster: Roster,
        out: list[LifecycleInstruction],
        *,
        parallel_loads: int,
        load_retries: int,
        recall: Callable[[Copy], str | None],
        has_served: Callable[[Copy], bool],
    ) -> None:
        self._roster = roster
        self._out = out
        self._has_served = has_served
        self._loader = Loader(roster, out, parallel_loads, load_retries, recall)
        self.models: dict[str, Model] = {}
        self.answers: list[CallFinished] = []
        self.finished: list[tuple[Operation, Fault | None]] = []
        self.table_changed = False
        self.memory_changed = False
        self._last_operation = 0
        self._polls: dict[int, Operation] = {}
        self._runnable: list[Model] = []

    # ------------------------------------------------------------------------------------------------------- operations

    def enqueue(
        self,
        name: str,
        load: bool,
        peer: str = "",
        call: int = 0,
        override: Override | None = None,
        snapshot: Snapshot | Fault | None = None,
    ) -> Operation:
        """Another operation on a model; it begins (in ``run``) when those before it are done."""
        model = self.models.get(name)
        if model is None:
            model = self.models[name] = Model(name)
        self._last_operation += 1
        operation = Operation(self._last_operation, name, load, peer, call, override, snapshot)
        model.operations.append(operation)
        if len(model.operations) == 1:
            self._runnable.append(model)
        return operation

    def run(self, now: float) -> None:
        """Begins every operation whose turn it is, loads what there is room for, ends the loads that are complete."""
        while True:
            while self._runnable:
                self._begin(self._runnable.pop(0), now)
            self._loader.admit(now)
            loaded = self._loader.take_loaded()
            if not loaded:
                return
            for name in dict.fromkeys(copy.name for copy in loaded):
                self._check(self.models[name], now)

    def _begin(self, model: Model, now: float) -> None:
        operation = model.operations[0]
        if not operation.load:
            self._unload(model, operation, now)
        elif operation.snapshot is not None:
            self._begin_loading(model, operation, operation.snapshot, now)
        else:
            self._polls[operation.number] = operation
            self._out.append(Poll(operation.number, operation.name, operation.override))

    def polled(self, number: int, result: Snapshot | Fault, now: float) -> None:
        operation = self._polls.pop(number, None)
        if operation is not None:
            self._begin_loading(self.models[operation.name], operation, result, now)
        elif isinstance(result, Snapshot):  # asked for before everything was stopped
            self._drop_folders({result.override.folder} - {model.override.folder for model in self.models.values()})

    def _finish(self, model: Model, operation: Operation, fault: Fault | None) -> None:
        model.operations.popleft()
        if model.operations:
            self._runnable.append(model)
        if operation.peer:
            self.answers.append(CallFinished(operation.peer, operation.call, fault))
        self.finished.append((operation, fault))
        self.table_changed = True
        self.memory_changed = True
        self._settle(model)

    # ------------------------------------------------------------------------------------------------------------ loads

    def _begin_loading(self, model: Model, operation: Operation, result: Snapshot | Fault, now: float) -> None:
        if isinstance(result, Fault):
            model.poll_reason = reason_of(result)
            self._goes_on(model, model.poll_reason)
            text = f"failed to load '{model.name}', failed to poll from model repository"
            self._finish(model, operation, Fault("PollFailed", text))
            return
        model.poll_reason = ""
        operation.snapshot = result
        model.digest, model.backend_dir = result.digest, result.backend_dir
        if result.fault is not None:
            self._refuse(model, operation, result, result.fault)
            return
        for version in result.versions:
            copy = self._prepare(model.slot(version), result, now)
            if copy is not None:
                operation.copies.append(copy)
                self._loader.add(copy)
        self.table_changed = True
        self._check(model, now)

    def _refuse(self, model: Model, operation: Operation, snapshot: Snapshot, fault: Fault) -> None:
        """The model was found but cannot be loaded, whatever its backend may say."""
        logger.error("failed to load '%s': %s", model.name, fault.message)
        self._goes_on(model, reason_of(fault))
        if not snapshot.versions:
            model.poll_reason = reason_of(fault)
            self._finish(model, operation, _load_failed(model.name, fault.message))
            return
        failures = []
        for version in snapshot.versions:
            slot = model.slot(version)
            if slot.serving is None:
                slot.state, slot.reason = "UNAVAILABLE", reason_of(fault)
            failures.append((version, fault))
        self._finish(model, operation, _load_failed(model.name, *failures))

    def _prepare(self, slot: Slot, snapshot: Snapshot, now: float) -> Copy | None:
        """The copy that is to be loaded for a version; None if what serves is exactly that."""
        serving = slot.serving
        copy = Copy(snapshot, slot.version)
        if serving is not None and slot.state == "READY" and serving.hash == copy.hash:
            if serving.snapshot.config_json == snapshot.config_json:
                return None
            copy.configure(with_instances_of(serving.config_json, snapshot))
            copy.reuse(serving)
            return copy
        if serving is None:
            slot.state, slot.reason = "LOADING", ""
        elif slot.state != "READY":
            self._pause(slot, serving, now)
        return copy

    def _pause(self, slot: Slot, copy: Copy, now: float) -> None:
        """A version that keeps crashing is not started beside a load, which may need what it needs; if the load fails,
        it is started again."""
        for instance in copy.instances:
            worker = self._roster.dismiss(instance, slot)
            if worker is not None:
                self._roster.kill(worker)
            if instance.state != "backed-off":
                instance.state = "backed-off"
                instance.retry_at = now
                instance.fault = None

    def _check(self, model: Model, now: float) -> None:
        """Ends the current load once none of its versions is on its way any more."""
        operation = model.operations[0]
        if any(copy.state in ("pending", "loading") for copy in operation.copies):
            return
        assert isinstance(operation.snapshot, Snapshot)
        failures = [(copy.version, copy.fault) for copy in operation.copies if copy.fault is not None]
        if not failures:
            self._commit(model, operation, operation.snapshot, now)
            return
        self._goes_on(model, "; ".join(reason_of(fault) for _, fault in failures))
        for copy in operation.copies:
            self._give_up(model, copy, "unloaded" if copy.fault is None else reason_of(copy.fault), now)
        model.stale_folders.add(operation.snapshot.override.folder)
        self._finish(model, operation, _load_failed(model.name, *failures))

    def _goes_on(self, model: Model, reason: str) -> None:
        """A load has failed: what was loaded before stays."""
        for slot in model.serving:
            does = "serving" if slot.state == "READY" else "being started again"
            logger.warning("'%s' version %s goes on %s as it was loaded before", model.name, slot.version, does)
        model.last_failure = reason

    def _give_up(self, model: Model, copy: Copy, reason: str, now: float) -> None:
        slot = model.slot(copy.version)
        self._loader.stop(copy, slot, now)
        if slot.serving is None:
            slot.state, slot.reason = "UNAVAILABLE", reason
            self._out.append(ModelGone(model.name, slot.version, not_ready(model.name, slot.version)))
        elif slot.state != "READY":  # it may have become so during the load
            self._out.append(ModelGone(model.name, slot.version, keeps_crashing(model.name, slot.version)))

    def _commit(self, model: Model, operation: Operation, snapshot: Snapshot, now: float) -> None:
        """Every version is loaded: they take over, all at once."""
        for copy in operation.copies:
            self._take_over(model.slot(copy.version), copy)
        for slot in model.serving:
            if slot.version not in snapshot.versions:
                self._unload_version(model, slot, now)
        self._forget_failures(slot for slot in model.slots.values() if slot.version not in snapshot.versions)
        if operation.copies:
            logger.info("successfully loaded '%s'", model.name)
        model.last_failure = ""
        model.stale_folders.add(model.override.folder)
        model.override = snapshot.override
        self._finish(model, operation, None)

    def _take_over(self, slot: Slot, copy: Copy) -> None:
        former = slot.serving
        fresh = not copy.reused
        own = copy.own
        for id in slot.leaving:  # of an earlier unload: the version is back, they are not
            self._out.append(WorkerDraining(id))
        slot.serving = copy
        copy.state = "serving"
        for number, instance in enumerate(copy.instances):
            instance.number = number
            instance.plan = copy.snapshot.instances[number]
            instance.copy = copy
        copy.reused = []
        if copy.healthy:
            slot.state, slot.reason = "READY", ""
            self._out.append(ModelReady(copy.name, copy.version, copy.config, fresh_statistics=fresh))
            self._out.extend(WorkerReady(instance.worker, copy.name, copy.version) for instance in own)
        if former is not None:
            self._retire(slot, [instance for instance in former.instances if instance.copy is not copy])

    # ---------------------------------------------------------------------------------------------------------- unloads

    def _unload(self, model: Model, operation: Operation, now: float) -> None:
        for slot in model.serving:
            self._unload_version(model, slot, now)
        self._forget_failures(model.slots.values())
        model.poll_reason = ""
        model.stale_folders.add(model.override.folder)
        model.override = Override()
        self._finish(model, operation, None)

    def _forget_failures(self, slots: Iterable[Slot]) -> None:
        """Nobody wants these versions any more, so that nobody misses those that could not be loaded."""
        for slot in slots:
            if slot.state == "UNAVAILABLE":
                slot.reason = "unloaded"

    def _unload_version(self, model: Model, slot: Slot, now: float) -> None:
        copy = slot.serving
        assert copy is not None
        slot.serving = None
        slot.state, slot.reason = "UNLOADING", ""
        copy.state = "gone"
        self._out.append(ModelDraining(copy.name, copy.version, not_ready(copy.name, copy.version)))
        for instance in copy.instances:
            was_ready = instance.state == "ready"
            worker = self._roster.dismiss(instance, slot)
            if worker is not None and not was_ready:  # the dispatcher drains only those that it was given
                self._roster.kill(worker)
        for id in slot.leaving:  # those of former copies too, which had no reason to hurry before
            self._roster.unloads(self._roster.workers[id], now)
        self.table_changed = True
        self.memory_changed = True
        self._settle(model)

    def _retire(self, slot: Slot, instances: list[Instance]) -> None:
        """These instances are replaced: they finish what they hold and get nothing more."""
        for instance in instances:
            was_ready = instance.state == "ready"
            worker = self._roster.dismiss(instance, slot)
            if worker is None:
                continue
            if was_ready:
                self._out.append(WorkerDraining(worker.id))
            else:
                self._roster.kill(worker)

    def forget(self, name: str) -> None:
        """Drops what is known of a name that never led to a model: names come from clients, there is no end to them."""
        model = self.models.get(name)
        if model is not None and not model.slots and not model.operations:
            del self.models[name]

    def _settle(self, model: Model) -> None:
        """Nobody of an unloaded version is left: it is gone. Nobody at all is leaving: old overrides can go."""
        for slot in model.slots.values():
            if slot.state == "UNLOADING" and not slot.leaving:
                slot.state, slot.reason = "UNAVAILABLE", "unloaded"
                self._out.append(ModelGone(model.name, slot.version, not_ready(model.name, slot.version)))
                self.table_changed = True
                logger.info("successfully unloaded '%s' version %s", model.name, slot.version)
        if model.stale_folders and not model.leaving:
            self._drop_folders(model.stale_folders - {model.override.folder})
            model.stale_folders = set()

    def _drop_folders(self, folders: set[str]) -> None:
        self._out.extend(DropFolder(folder) for folder in sorted(folders) if folder)

    def give_up_all(self, fault: Fault, now: float) -> None:
        """Ends every operation, answering with ``fault``. What serves goes on serving."""
        self._polls.clear()
        self._runnable.clear()
        for model in self.models.values():
            for operation in model.operations:
                if operation.peer:
                    self.answers.append(CallFinished(operation.peer, operation.call, fault))
                for copy in operation.copies:
                    self._give_up(model, copy, "unloaded", now)
            model.operations.clear()
            self._settle(model)
        self.table_changed = True

    def unload_all(self, now: float) -> None:
        for model in self.models.values():
            for slot in model.serving:
                self._unload_version(model, slot, now)
            model.stale_folders.add(model.override.folder)
            model.override = Override()
            self._settle(model)
        self.table_changed = True
        self.memory_changed = True

    # -------------------------------------------------------------------------------------------------------- instances

    def serving_instances(self) -> Iterator[Instance]:
        for model in self.models.values():
            for slot in model.serving:
                if slot.serving is not None:
                    yield from slot.serving.instances

    def backed_off(self) -> list[Instance]:
        """Those to be started again. They wait while a load is under way that may replace them."""
        return [
            instance
            for instance in self.serving_instances()
            if instance.state == "backed-off" and not self.models[instance.copy.name].is_loading(instance.copy.version)
        ]

    def completed(self, instance: Instance, config_json: str, ends: bool, now: float) -> None:
        fault = self._loader.completed(instance, config_json, ends, now)
        if fault is not None:
            self._failed(instance.copy, fault, now)

    def instance_ready(self, instance: Instance, now: float) -> None:
        """Its worker has loaded the model, or turned out to have had it loaded all the time."""
        copy = instance.copy
        self._roster.is_ready(instance, now)
        if copy.state == "serving":
            slot = self.models[copy.name].slot(copy.version)
            if slot.state == "UNAVAILABLE":
                slot.state, slot.reason = "READY", ""
                self._out.append(ModelReady(copy.name, copy.version, copy.config, fresh_statistics=False))
                self.table_changed = True
                logger.info("'%s' version %s is available again", copy.name, copy.version)
            self._out.append(WorkerReady(instance.worker, copy.name, copy.version))

    def instance_failed(self, instance: Instance, fault: Fault, now: float) -> None:
        """Its worker cannot load the model and says so, before it ends by itself."""
        instance.fault = fault
        if instance.copy.state == "serving":
            self._roster.end(self._roster.workers[instance.worker], now, by_itself=True)
        else:
            self._failed(instance.copy, fault, now)

    def worker_died(self, worker: Worker, reason: str, counts: int, now: float) -> None:
        """``reason`` says how. Wanted workers are replaced, unless they were still to show that they can load."""
        del self._roster.workers[worker.id]
        slot, instance = worker.slot, worker.instance
        if slot is not None:
            slot.leaving.discard(worker.id)
            self._settle(self.models[worker.name])
        if instance is None:
            return
        copy = instance.copy
        if copy.state == "serving":
            if worker.timed_out and instance.fault is None:
                instance.fault = Fault("Internal", reason)
            if instance.fault is not None:
                reason = instance.fault.message
            logger.error("%s", reason)
            if instance.has_died(reason, counts, now):
                self._roster.spawn(instance, now)
            else:
                pause_s = instance.retry_at - now
                logger.error(
                    "instance '%s' is backed off: it is started again in %g s; %s",
                    *(instance.plan.name, pause_s, see_log(copy.name)),
                )
                self._is_unavailable(copy, instance)
        elif instance.state in ("adopting", "completed"):
            instance.worker = ""
            instance.state = "waiting"
            self._loader.advance(copy, now)
        elif self._can_load(instance) and instance.has_died(reason, counts, now):
            self._loader.reopen(copy)
            self._loader.advance(copy, now)
        else:
            instance.worker = ""
            text = f"{reason} (while the model was being loaded; {see_log(copy.name)})"
            self._failed(copy, Fault("Internal", text), now)

    def _can_load(self, instance: Instance) -> bool:
        """Whether it has shown it, so that one death of its worker is no reason to give a load up: before the others
        were ready, or under a former broker."""
        return instance.state == "ready" or self._has_served(instance.copy)

    def never_started(self, worker: Worker) -> None:
        """Its ``Spawn`` was lost with a launcher: the instance waits for the next one."""
        instance = worker.instance
        assert instance is not None
        del self._roster.workers[worker.id]
        instance.worker = ""
        instance.state = "waiting"

    def _failed(self, copy: Copy, fault: Fault, now: float) -> None:
        model = self.models[copy.name]
        if self._loader.failed(copy, fault, model.slot(copy.version), now):
            self._check(model, now)

    def _is_unavailable(self, copy: Copy, instance: Instance) -> None:
        """An instance was backed off; if it was the last one to count on, the version is unavailable.

        Unless a reload that may be the cure is under way, what is queued is rejected.
        """
        slot = self.models[copy.name].slot(copy.version)
        if copy.healthy:
            return
        slot.state = "UNAVAILABLE"
        slot.reason = f"Unavailable: it keeps crashing ({see_log(copy.name)}): {instance.last_error}"
        self.table_changed = True
        if not self.models[copy.name].is_loading(copy.version):
            self._out.append(ModelGone(copy.name, copy.version, keeps_crashing(copy.name, copy.version)))


def _load_failed(name: str, *failures: tuple[int, Fault] | str) -> Fault:
    """Triton's text, with the line end that it has."""
    parts = [
        failure
        if isinstance(failure, str)
        else f"version {failure[0]} is at UNAVAILABLE state: {reason_of(failure[1])};"
        for failure in failures
    ]
    return Fault("InvalidArgument", f"load failed for model '{name}': {''.join(parts)}\n")
