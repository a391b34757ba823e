"""The life of models: which versions are loaded, by which workers, and what everybody may know of it.

A pure machine: every public method takes an event and returns what is to be done, in order. The shell wires it so:

    at start             machine = Lifecycle(…, memory=restore(RunDir.loaded)); carry_out(machine.start(now))
    Poll, PollAll, …     see ``broker.lifecycle.effects``; results come back as polled(), polled_all(), names_found()
    LauncherHello        dispatcher.launcher_hello first (worker_lost for those that it returns), then launcher_hello()
    launcher died        launcher_gone()
    WorkerHello          dispatcher.worker_hello first; if that says False: Kill, and not a word to this machine
    Preparing, Spawned, SpawnFailed, Completed, Ready, LoadFailed      the method of that name
    Died                 dispatcher.worker_lost(worker, machine.death_fault(died), now) -> counts, then
                         died(…, counts)
    Timeouts.overdue     kill(), for each
    LoadModel, UnloadModel, AskReady, Checked      load(), unload(), ask_ready(), checked()
    next_wakeup passed   tick()
    exit                 exit(), then wait until no request is left, then drain_all(), then wait for ``drained``;
                         after the time-out drain_all() and kill_all()
    TableChanged         ModelTable(models=entries()); ``startup_finished`` says when the server leaves "starting"

All ``now`` are seconds on the monotonic clock. Times are decided here and nowhere else.
"""

from collections.abc import Callable, Collection, Iterable
from math import inf

import msgspec

from broker.instructions import CallFinished, TableChanged, WorkerReady
from broker.lifecycle import views
from broker.lifecycle.deaths import DeathCounts, describe_death, how
from broker.lifecycle.effects import FindNames, LifecycleInstruction, PollAll, Remember, Watch
from broker.lifecycle.keeper import Keeper
from broker.lifecycle.memory import Memory
from broker.lifecycle.models import Copy, has_changed
from broker.lifecycle.readiness import Readiness
from broker.lifecycle.roster import Roster
from broker.lifecycle.watching import FIND_S, LOOK_S, Watching
from broker.repository.overrides import check_model_name
from broker.repository.scan import Found
from broker.repository.snapshot import Override, Snapshot
from conch.errors import InvalidArgument, to_fault
from conch.messages import Died, Fault, InstanceStatus, LiveWorker, ModelEntry, WorkerHello
from conch.settings import ControlMode

#: how often folders that came or went are looked for where polling does not do it anyway
FIND_NAMES_S = 5.0

_EXITING = Fault("Unavailable", "the server is exiting")
_NOT_EXPLICIT = Fault("Unavailable", "explicit model load / unload is not allowed if polling is enabled")


class Lifecycle:
    """See the module for how to drive it.

    ``new_id`` makes the ids of workers. ``load_at_start``: model names in mode ``explicit``, ``*`` alone for all.
    ``parallel_loads``: versions that load at a time. ``memory`` is what the former broker left. ``watch``: models whose
    files change are loaded again, those whose folders are gone are unloaded, and with control mode ``none`` new ones
    are loaded. ``debugged``: models whose first instances may take any time to load.
    """

    def __init__(
        self,
        *,
        new_id: Callable[[], str],
        control_mode: ControlMode = "none",
        load_at_start: Iterable[str] = (),
        poll_interval_s: float = 15.0,
        parallel_loads: int = 4,
        load_retries: int = 0,
        unload_timeout_s: float = 30.0,
        memory: Memory | None = None,
        watch: bool = False,
        debugged: Collection[str] = (),
    ) -> None:
        self._control_mode = control_mode
        self._load_at_start = tuple(dict.fromkeys(load_at_start))
        self._scan_interval_s = poll_interval_s if control_mode == "poll" else FIND_S if watch else FIND_NAMES_S
        self._former = memory or Memory()
        self._out: list[LifecycleInstruction] = []
        self._watching = Watching() if watch else None
        self._roster = Roster(self._out, new_id, unload_timeout_s, debugged)
        self.deaths = DeathCounts()
        self._readiness = Readiness(self._out)
        self._keeper = Keeper(
            self._roster,
            self._out,
            parallel_loads=parallel_loads,
            load_retries=load_retries,
            recall=self._recall,
            has_served=self._has_served,
        )
        self._found = Found((), frozenset())
        #: what is to be loaded by name, for the next broker
        self._loads: dict[str, Override] = {}
        self._remembered = b""
        #: operations that the start consists of
        self._startup: set[int] = set()
        self._scanned = False
        self._next_scan = inf
        self._next_look = inf
        self._exiting = False

    # ---------------------------------------------------------------------------------------------------------- reading

    def entries(self) -> tuple[ModelEntry, ...]:
        """The table of models."""
        return views.entries(self._keeper.models, self._found)

    def instances(self, now: float) -> list[InstanceStatus]:
        """Every instance; whether it is busy and its executions are the dispatcher's to fill in."""
        return views.instances(self._keeper.models, self._roster, now)

    def note(self, name: str, version: int) -> str:
        """What a person should know of a version that is READY all the same, or nothing."""
        return views.note(self._keeper.models.get(name), version, self._readiness)

    def says_no(self, name: str, version: int) -> bool:
        """Whether a version that is READY said, when it was asked last, that it is not."""
        return views.says_no(self._keeper.models.get(name), version, self._readiness)

    @property
    def startup_finished(self) -> bool:
        """Every model that is to be loaded at start is READY or has failed. Never becomes False again."""
        return self._scanned and not self._startup

    @property
    def drained(self) -> bool:
        """No worker is left."""
        return not self._roster.workers and not self._roster.strays

    @property
    def next_wakeup(self) -> float | None:
        """When ``tick`` is to be called if nothing happens before."""
        wakeup = min(self._roster.next_deadline(), self._readiness.next_deadline())
        if not self._exiting:
            wakeup = min(
                wakeup,
                self._next_scan,
                self._next_look,
                min((each.retry_at for each in self._keeper.backed_off()), default=inf),
            )
        return None if wakeup == inf else wakeup

    def death_fault(self, died: Died) -> Fault:
        """What the requests that a worker held are answered with if they cannot run again."""
        name = self._roster.instance_name(died.worker)
        return Fault("WorkerDied", f"the worker of instance '{name}' {how(self._explained(died))}")

    def _explained(self, died: Died) -> Died:
        """Of a launcher that died while it killed a worker nobody hears how it ended, nor what for."""
        worker = self._roster.workers.get(died.worker)
        if died.reason or died.exit_code is not None or died.signal is not None or worker is None or not worker.killed:
            return died
        return msgspec.structs.replace(died, reason=worker.kill_reason)

    # --------------------------------------------------------------------------------------------------- start and stop

    def start(self, now: float) -> list[LifecycleInstruction]:
        """Looks for models and loads those that come by themselves. To be called once, before anything else."""
        self._remembered = self._former.encode()
        by_name = self._control_mode == "explicit"
        if by_name and self._former.loads is not None:
            loads = {
                name: Override(config=each.config, folder=each.folder) for name, each in self._former.loads.items()
            }
        elif by_name and self._load_at_start != ("*",):
            loads = {name: Override() for name in self._load_at_start}
        else:
            self._out.append(PollAll())
            return self._take(now)
        self._loads = loads
        self._scanned = True
        self._out.append(FindNames())
        for name, override in loads.items():
            self._startup.add(self._keeper.enqueue(name, load=True, override=override).number)
        return self._take(now)

    def exit(self, now: float) -> list[LifecycleInstruction]:
        """Nothing is loaded or unloaded any more. What serves goes on: models that run may need it to finish."""
        self._exiting = True
        self._scanned = True
        self._startup.clear()
        self._loads = {}
        self._keeper.give_up_all(_EXITING, now)
        return self._take(now)

    def drain_all(self, now: float) -> list[LifecycleInstruction]:
        """After ``exit``: everything is unloaded. ``drained`` says when the workers have ended."""
        self._keeper.unload_all(now)
        for id in list(self._roster.strays):
            self._roster.send_away(id, now, patiently=False)
        return self._take(now)

    def kill_all(self, now: float) -> list[LifecycleInstruction]:
        """There is no more time: ends every worker."""
        for worker in self._roster.workers.values():
            self._roster.kill(worker)
        return self._take(now)

    # ------------------------------------------------------------------------------------------------------------ calls

    def load(
        self, name: str, now: float, peer: str, call: int, override: Override | None = None
    ) -> list[LifecycleInstruction]:
        """``LoadModel``. Answered by ``CallFinished`` when the model is READY or has failed, or is as it was."""
        fault = self._refuse()
        if fault is None:
            try:
                check_model_name(name)
            except InvalidArgument as error:
                fault = to_fault(error)
        if fault is not None:
            self._keeper.answers.append(CallFinished(peer, call, fault))
        else:
            self._keeper.enqueue(name, load=True, peer=peer, call=call, override=override)
        return self._take(now)

    def unload(self, name: str, now: float, peer: str, call: int) -> list[LifecycleInstruction]:
        """``UnloadModel``. Answered once no request reaches the model any more; unknown names are a success."""
        fault = self._refuse()
        if fault is not None or name not in self._keeper.models:
            self._keeper.answers.append(CallFinished(peer, call, fault))
        else:
            self._keeper.enqueue(name, load=False, peer=peer, call=call)
        return self._take(now)

    def ask_ready(self, name: str, version: int, now: float, peer: str, call: int) -> list[LifecycleInstruction]:
        """``AskReady``. Answered when every instance of the version that runs has said something, or not in time."""
        model = self._keeper.models.get(name)
        copy = model.slot(version).serving if model is not None and version in model.slots else None
        instances = copy.instances if copy is not None and copy.healthy else []
        workers = [instance.worker for instance in instances if instance.state == "ready"]
        self._readiness.ask(peer, call, workers, now)
        return self._take(now)

    # ----------------------------------------------------------------------------------------------- results of effects

    def polled(self, operation: int, result: Snapshot | Fault, now: float) -> list[LifecycleInstruction]:
        """A ``Poll``'s result."""
        self._keeper.polled(operation, result, now)
        return self._take(now)

    def polled_all(
        self, found: Found, snapshots: dict[str, Snapshot | Fault], now: float
    ) -> list[LifecycleInstruction]:
        """A ``PollAll``'s result: at start everything is loaded, later (mode ``poll``) what has changed."""
        self._update_names(found, now)
        if self._exiting:
            return self._take(now)
        at_start = not self._scanned
        self._scanned = True
        models = self._keeper.models
        for name, snapshot in snapshots.items():
            model = models.get(name)
            if at_start:
                self._startup.add(self._keeper.enqueue(name, load=True, snapshot=snapshot).number)
                self._loads[name] = Override()
            elif model is None or (not model.operations and has_changed(model, snapshot)):
                self._keeper.enqueue(name, load=True, snapshot=snapshot)
        if not at_start and found.complete:
            for name, model in models.items():
                if name not in snapshots and model.wanted and not model.operations:
                    self._keeper.enqueue(name, load=False)
        return self._take(now)

    def names_found(self, found: Found, now: float) -> list[LifecycleInstruction]:
        """A ``FindNames``' result."""
        self._update_names(found, now)
        if self._watching is not None and not self._exiting:
            for name in self._watching.deleted(found, self._keeper.models):
                self._keeper.enqueue(name, load=False)
        return self._take(now)

    def watched(self, digests: dict[str, bytes], now: float) -> list[LifecycleInstruction]:
        """A ``Watch``'s result. Models that are being loaded or unloaded are looked at later."""
        self._next_look = now + LOOK_S
        if self._watching is not None and not self._exiting:
            models = self._keeper.models
            new = self._found.names if self._control_mode == "none" else ()
            for name in self._watching.looked(digests, models, set(new) - self._found.duplicates):
                override = models[name].override if name in models else None
                self._keeper.enqueue(name, load=True, override=override)
        return self._take(now)

    # ----------------------------------------------------------------------------------------------------- the launcher

    def launcher_hello(self, workers: Iterable[LiveWorker], now: float) -> list[LifecycleInstruction]:
        """A launcher is there and lists every worker that lives."""
        for worker in self._roster.launcher_hello(workers, now):
            instance = worker.instance
            if instance is None or instance.state == "ready" or worker.killed:
                self._worker_died(Died(worker.id, 0, None, None), counts=0, now=now)
            else:
                self._keeper.never_started(worker)
        for instance in self._keeper.serving_instances():
            if instance.state == "waiting":
                self._roster.spawn(instance, now)
        return self._take(now)

    def launcher_gone(self, now: float) -> list[LifecycleInstruction]:
        """The launcher died: workers live on, new ones wait for its successor."""
        self._roster.launcher_present = False
        return self._take(now)

    def preparing(self, worker: str, now: float) -> list[LifecycleInstruction]:
        """The launcher makes an environment for it: its time begins when it is started."""
        known = self._roster.workers.get(worker)
        if known is not None:
            self._roster.is_preparing(known)
        return self._take(now)

    def spawned(self, worker: str, pid: int, now: float) -> list[LifecycleInstruction]:
        known = self._roster.workers.get(worker)
        if known is not None:
            known.pid = pid
            self._roster.is_prepared(known, now)
        elif worker not in self._roster.strays:
            self._roster.kill_unknown(worker)
        return self._take(now)

    def spawn_failed(self, worker: str, fault: Fault, now: float) -> list[LifecycleInstruction]:
        """The launcher could not start it: nothing will be heard of it again."""
        known = self._roster.workers.get(worker)
        if known is not None:
            instance = known.instance
            if instance is not None and instance.state != "ready":
                if fault.kind != "Internal":
                    self._keeper.instance_failed(instance, fault, now)
                else:
                    instance.fault = fault
            self._keeper.worker_died(known, fault.message, counts=1, now=now)
        return self._take(now)

    def died(self, died: Died, counts: int, now: float) -> list[LifecycleInstruction]:
        """A worker is gone. ``counts``: see ``Instance.has_died``."""
        self._worker_died(died, counts, now)
        return self._take(now)

    def _worker_died(self, died: Died, counts: int, now: float) -> None:
        self._readiness.gone(died.worker)
        known = self._roster.workers.get(died.worker)
        if known is None:
            self._roster.strays.pop(died.worker, None)
            return
        died = self._explained(died)
        if known.instance is not None and known.instance.state != "completed":
            self.deaths.count(known.name, known.version, died)
        self._keeper.worker_died(known, describe_death(known, died), counts, now)

    def kill(self, worker: str, reason: str, now: float) -> list[LifecycleInstruction]:
        """It has taken too long for what it runs, or nobody knows any more what that is."""
        known = self._roster.workers.get(worker)
        if known is None:
            self._roster.kill_unknown(worker, reason)
        elif not known.killed:
            self._roster.kill(known, reason)
        return self._take(now)

    # ---------------------------------------------------------------------------------------------------------- workers

    def worker_hello(self, hello: WorkerHello, now: float) -> list[LifecycleInstruction]:
        """A worker's first words to this broker; those of a worker that is not ours may mean a reunion."""
        known = self._roster.workers.get(hello.worker)
        if known is None:
            self._roster.stray_hello(hello, now)
        elif known.instance is not None and known.instance.state == "adopting":
            if hello.state == "ready":
                self._keeper.instance_ready(known.instance, now)
            else:  # the former broker died while it was loading, and what it completed is not known
                self._roster.kill(known)
        return self._take(now)

    def completed(self, worker: str, config_json: str, now: float, ends: bool = False) -> list[LifecycleInstruction]:
        """The backend completed the configuration. ``ends``: in a process that must not serve."""
        instance = self._roster.instance_of(worker)
        if instance is not None and instance.state == "starting":
            self._keeper.completed(instance, config_json, ends, now)
        return self._take(now)

    def ready(self, worker: str, now: float, checks: bool = False) -> list[LifecycleInstruction]:
        """A worker has loaded its model. ``checks``: that is to be asked whether it is ready."""
        instance = self._roster.instance_of(worker)
        if instance is not None and instance.checks != checks:
            instance.checks = checks
            self._keeper.table_changed = True
        if instance is not None and instance.state == "loading":
            self._keeper.instance_ready(instance, now)
        elif instance is not None and instance.state == "ready" and instance.copy.state == "serving":
            self._out.append(WorkerReady(worker, instance.copy.name, instance.copy.version))  # it connected again
            self._readiness.connected_again(worker)
        return self._take(now)

    def checked(self, worker: str, number: int, ready: bool, now: float) -> list[LifecycleInstruction]:
        """What a model said to ``CheckReady``."""
        self._readiness.checked(worker, number, ready)
        return self._take(now)

    def load_failed(self, worker: str, fault: Fault, now: float) -> list[LifecycleInstruction]:
        """A worker could not complete or load its model, and is about to exit."""
        instance = self._roster.instance_of(worker)
        if instance is not None and instance.state != "ready":
            self._keeper.instance_failed(instance, fault, now)
        return self._take(now)

    def tick(self, now: float) -> list[LifecycleInstruction]:
        """Time has passed."""
        self._roster.expire(now)
        self._readiness.expire(now)
        if self._next_scan <= now and not self._exiting:
            self._next_scan = inf
            self._out.append(PollAll() if self._control_mode == "poll" else FindNames())
        if self._next_look <= now and not self._exiting:
            self._next_look = inf
            self._out.append(Watch(views.folders(self._keeper.models, self._found)))
        out = self._take(now)
        self._roster.postpone_strays(now)
        return out

    # -------------------------------------------------------------------------------------------------------- internals

    def _take(self, now: float) -> list[LifecycleInstruction]:
        """Ends every event: begins what can begin, then hands over all instructions in an order that makes sense."""
        keeper = self._keeper
        keeper.run(now)
        for instance in self._keeper.backed_off():
            if instance.retry_at <= now and not self._exiting:
                self._roster.spawn(instance, now)
        for operation, fault in keeper.finished:
            self._startup.discard(operation.number)
            if not operation.load:
                self._loads.pop(operation.name, None)
            elif fault is None:
                self._loads[operation.name] = keeper.models[operation.name].override
            if operation.name not in self._found.names and operation.name not in self._load_at_start:
                keeper.forget(operation.name)
        keeper.finished.clear()
        self._send_strays_away(now)
        if keeper.table_changed:
            self._out.append(TableChanged())
            keeper.table_changed = False
        if keeper.memory_changed:
            keeper.memory_changed = False
            loads = self._loads if self._control_mode == "explicit" and not self._exiting else None
            # until then some models may not have been taken over: this broker's successor might have to do that
            former = {} if self.startup_finished else self._former.configs
            data = views.memory(keeper.models, loads, former).encode()
            if data != self._remembered:
                self._remembered = data
                self._out.append(Remember(data))
        out = [*self._out, *keeper.answers]
        self._out.clear()
        keeper.answers.clear()
        return out

    def _refuse(self) -> Fault | None:
        """Why calls are not possible, if they are not."""
        if self._exiting:
            return _EXITING
        return None if self._control_mode == "explicit" else _NOT_EXPLICIT

    def _update_names(self, found: Found, now: float) -> None:
        self._next_scan = now + self._scan_interval_s
        if self._watching is not None and self._next_look == inf:
            self._next_look = now + LOOK_S
        if found != self._found:
            for name in set(self._found.names) - {*found.names, *self._load_at_start}:
                self._keeper.forget(name)
            self._found = found
            self._keeper.table_changed = True

    def _recall(self, copy: Copy) -> str | None:
        """The completed configuration that the former broker had for this copy, if a worker of it is there to adopt."""
        if not self._has_served(copy) or not self._roster.has_candidate(copy):
            return None
        return self._former.configs[copy.name][copy.version].config

    def _has_served(self, copy: Copy) -> bool:
        """Whether exactly this was loaded when the former broker died."""
        remembered = self._former.configs.get(copy.name, {}).get(copy.version)
        return remembered is not None and remembered.hash == copy.hash

    def _send_strays_away(self, now: float) -> None:
        """Workers of the former broker that no load can want any more."""
        if not (self._roster.launcher_present and self._scanned):
            return
        models = self._keeper.models
        for id, name in list(self._roster.strays_of()):
            model = models.get(name)
            if model is None or not model.operations:
                self._roster.send_away(id, now)
