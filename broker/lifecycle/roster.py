"""Every worker process that this broker knows of: what it is for, and when it has waited long enough.

A worker is in ``workers`` from its ``Spawn`` (or its adoption) to its death, wanted or not, so that none is forgotten.
``strays`` are workers of the former broker that nobody has claimed yet.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from math import inf

from broker.instructions import ToControl, ToLauncher
from broker.lifecycle.effects import LifecycleInstruction
from broker.lifecycle.instances import Instance
from broker.lifecycle.models import Copy, Slot
from conch.messages import Drain, Kill, LiveWorker, Spawn, WorkerHello

logger = logging.getLogger("conch.broker.lifecycle")

#: a worker that reported a failure ends by itself, after it has printed what it had to say
EXIT_S = 5.0
#: a worker of the former broker connects within milliseconds, unless a model holds the interpreter's lock
HELLO_S = 10.0


class Worker:
    """A process. ``instance`` is None once nobody wants it; ``slot`` then counts it among those leaving.

    ``deadline``: killed if it has not come further by then, for ``kill_reason``. ``killed``: a ``Kill`` was sent,
    perhaps to a launcher that died, so that it is repeated to the next one. ``preparing``: the launcher makes its
    environment first.
    """

    __slots__ = (
        *("id", "name", "version", "instance_name", "instance", "slot", "pid"),
        *("deadline", "killed", "kill_reason", "timed_out", "preparing"),
    )

    def __init__(self, id: str, name: str, version: int, instance_name: str) -> None:
        self.id = id
        self.name = name
        self.version = version
        self.instance_name = instance_name
        self.instance: Instance | None = None
        self.slot: Slot | None = None
        self.pid = 0
        self.deadline = inf
        self.killed = False
        self.kill_reason = ""
        self.timed_out = False
        self.preparing = False


class Stray:
    """A worker of the former broker: ``live`` as the launcher lists it, ``hello`` as it introduced itself."""

    __slots__ = ("live", "hello", "deadline")

    def __init__(self, deadline: float) -> None:
        self.live: LiveWorker | None = None
        self.hello: WorkerHello | None = None
        self.deadline = deadline


class Roster:
    """Instructions go to ``out``. ``unload_timeout_s`` is from the unloading of a worker's model to its end, but not
    for the models in ``debugged``, whose first instances may also take any time to load."""

    def __init__(
        self,
        out: list[LifecycleInstruction],
        new_id: Callable[[], str],
        unload_timeout_s: float,
        debugged: Collection[str] = (),
    ) -> None:
        self._out = out
        self._new_id = new_id
        self._unload_timeout_s = unload_timeout_s
        self._debugged = debugged
        self.launcher_present = False
        self.workers: dict[str, Worker] = {}
        self.strays: dict[str, Stray] = {}

    # --------------------------------------------------------------------------------------------------- wanted workers

    def spawn(self, instance: Instance, now: float) -> None:
        """Starts the instance's next worker; without a launcher the instance waits for one. A configuration that is not
        complete yet is completed by this worker."""
        if not self.launcher_present:
            instance.state = "waiting"
            return
        copy = instance.copy
        worker = self._enlist(self._new_id(), instance)
        self._is_to_load(worker, instance, now)
        instance.state = "loading" if copy.is_complete else "starting"
        self._out.append(
            ToLauncher(
                Spawn(
                    worker=worker.id,
                    model=copy.name,
                    version=copy.version,
                    instance=instance.number,
                    instance_name=instance.plan.name,
                    kind=instance.plan.kind,
                    device=instance.plan.device,
                    config=copy.config_json,
                    config_hash=copy.hash,
                    complete=not copy.is_complete,
                    model_dir=copy.snapshot.model_dir,
                    version_dir=f"{copy.snapshot.model_dir}/{copy.version}",
                    backend_config=copy.snapshot.backend_config,
                    backend_dir=copy.snapshot.backend_dir,
                    memory_limit_nbytes=copy.config.memory_limit_nbytes,
                )
            )
        )

    def instance_of(self, worker: str) -> Instance | None:
        """The instance that this worker runs; None for one that nobody wants."""
        found = self.workers.get(worker)
        return found.instance if found is not None else None

    def instance_name(self, worker: str) -> str:
        """What a worker is called in messages, also one that nobody has claimed yet."""
        if worker in self.workers:
            return self.workers[worker].instance_name
        stray = self.strays.get(worker)
        known = None if stray is None else stray.live or stray.hello
        return "unknown" if known is None else f"{known.model}_{known.instance}"

    def is_ready(self, instance: Instance, now: float) -> None:
        self.workers[instance.worker].deadline = inf
        instance.is_ready(now)

    def is_preparing(self, worker: Worker) -> None:
        """The launcher sees to it that this ends."""
        worker.preparing = True
        worker.deadline = inf

    def is_prepared(self, worker: Worker, now: float) -> None:
        """It has been started. It may have come further by itself meanwhile."""
        instance = worker.instance
        if worker.preparing and instance is not None and instance.state in ("starting", "loading"):
            self._is_to_load(worker, instance, now)
        worker.preparing = False

    def _is_to_load(self, worker: Worker, instance: Instance, now: float) -> None:
        timeout_s = instance.copy.config.load_timeout_s
        worker.deadline = inf if self._stops(instance) else now + timeout_s
        worker.kill_reason = f"was not ready within its LOAD_TIMEOUT_S of {timeout_s:g} s and was killed"

    def _stops(self, instance: Instance) -> bool:
        """In a debugger, where everything takes as long as a person thinks."""
        return instance.copy.name in self._debugged and instance.number == 0

    def _enlist(self, id: str, instance: Instance) -> Worker:
        worker = Worker(id, instance.copy.name, instance.copy.version, instance.plan.name)
        worker.instance = instance
        instance.worker = id
        self.workers[id] = worker
        return worker

    # ------------------------------------------------------------------------------------------------- unwanted workers

    def kill(self, worker: Worker, reason: str = "") -> None:
        """``reason``: see ``Kill``. One that is being killed for a reason already is killed at once without one."""
        worker.killed = True
        worker.kill_reason = reason
        worker.deadline = inf
        if self.launcher_present:
            self._out.append(ToLauncher(Kill(worker.id, reason)))

    def end(self, worker: Worker, now: float, by_itself: bool) -> None:
        """Ends a worker that serves nobody. One that is about to exit ``by_itself`` gets the time to say why."""
        if by_itself:
            worker.deadline = now + EXIT_S
            worker.kill_reason = ""
        else:
            self.kill(worker)

    def kill_unknown(self, worker: str, reason: str = "") -> None:
        """A worker that should not exist; whoever reports it lives."""
        if self.launcher_present:
            self._out.append(ToLauncher(Kill(worker, reason)))

    def dismiss(self, instance: Instance, slot: Slot) -> Worker | None:
        """Parts an instance from its worker, which then counts among those leaving ``slot``. The caller says how."""
        worker = self.workers.get(instance.worker)
        instance.worker = ""
        if worker is None:
            return None
        worker.instance = None
        worker.slot = slot
        worker.deadline = inf
        slot.leaving.add(worker.id)
        return worker

    def unloads(self, worker: Worker, now: float) -> None:
        """Its model is unloaded: it may finish what it holds, but it may also hang."""
        if worker.deadline == inf and not worker.killed and worker.name not in self._debugged:
            worker.deadline = now + self._unload_timeout_s
            worker.kill_reason = f"had not ended {self._unload_timeout_s:g} s after its model's unload and was killed"

    def expire(self, now: float) -> None:
        """Kills workers whose time is up."""
        for worker in self.workers.values():
            if worker.deadline <= now:
                worker.timed_out = True
                logger.error("worker %s of model '%s' takes too long, it is killed", worker.id, worker.name)
                self.kill(worker, worker.kill_reason)

    def next_deadline(self) -> float:
        workers = min((worker.deadline for worker in self.workers.values()), default=inf)
        return min(workers, min((stray.deadline for stray in self.strays.values()), default=inf))

    # ----------------------------------------------------------------------------------------------------- the launcher

    def launcher_hello(self, workers: Iterable[LiveWorker], now: float) -> list[Worker]:
        """Takes the launcher's list for the truth. Returns our workers that are not on it, which are dead or were never
        started."""
        self.launcher_present = True
        listed = {worker.worker: worker for worker in workers}
        for id, live in listed.items():
            known = self.workers.get(id)
            if known is not None:
                known.pid = live.pid
                if known.killed:
                    self._out.append(ToLauncher(Kill(id, known.kill_reason)))
            else:
                self._stray(id, now).live = live
        for id in [id for id, stray in self.strays.items() if stray.live is not None and id not in listed]:
            del self.strays[id]
        return [worker for id, worker in self.workers.items() if id not in listed]

    # ---------------------------------------------------------------------------------------------- the former broker's

    def stray_hello(self, hello: WorkerHello, now: float) -> None:
        self._stray(hello.worker, now).hello = hello

    def claim(self, copy: Copy, now: float) -> None:
        """Gives the copy's waiting instances workers of the former broker that run exactly this."""
        for instance in copy.own:
            if instance.state != "waiting":
                continue
            found = self._candidate(copy, instance.number)
            if found is None:
                return
            stray = self.strays.pop(found)
            worker = self._enlist(found, instance)
            if stray.live is not None:
                worker.pid = stray.live.pid
            if stray.hello is not None:
                self.is_ready(instance, now)
            else:
                instance.state = "adopting"
                worker.deadline = now + HELLO_S
                worker.kill_reason = ""

    def has_candidate(self, copy: Copy) -> bool:
        return self._candidate(copy, 0) is not None

    def _candidate(self, copy: Copy, number: int) -> str | None:
        fitting = [
            (stray.live.instance != number, id)
            for id, stray in self.strays.items()
            if stray.live is not None
            and (stray.live.model, stray.live.version, stray.live.config_hash) == (copy.name, copy.version, copy.hash)
            and (stray.hello is None or stray.hello.state == "ready")
        ]
        return min(fitting)[1] if fitting else None

    def strays_of(self) -> Iterator[tuple[str, str]]:
        """Every stray's id and model."""
        for id, stray in self.strays.items():
            known = stray.live or stray.hello
            if known is not None:
                yield id, known.model

    def send_away(self, id: str, now: float, patiently: bool = True) -> None:
        """A stray that nobody will claim: it may finish what it holds. One that has not spoken yet cannot be told to,
        so it has some time to do so first."""
        stray = self.strays[id]
        if stray.live is None:  # it connected, but the launcher does not know it
            del self.strays[id]
            self.kill_unknown(id)
            return
        if patiently and stray.hello is None and stray.deadline > now:
            return
        known = stray.live
        del self.strays[id]
        worker = Worker(id, known.model, known.version, f"{known.model}_{known.instance}")
        worker.pid = known.pid
        self.workers[id] = worker
        if stray.hello is not None and stray.hello.state in ("ready", "draining"):
            self._out.append(ToControl(id, Drain()))
        else:
            self.kill(worker)

    def postpone_strays(self, now: float) -> None:
        """Those whose time is up, but that a load which goes on may still want, are looked at again later."""
        for stray in self.strays.values():
            if stray.deadline <= now:
                stray.deadline = now + HELLO_S

    def _stray(self, id: str, now: float) -> Stray:
        stray = self.strays.get(id)
        if stray is None:
            stray = self.strays[id] = Stray(now + HELLO_S)
        return stray
