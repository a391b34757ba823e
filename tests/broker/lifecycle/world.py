"""A world for ``Lifecycle`` to live in: launcher, workers, dispatcher and repository, simulated, one event at a time.

Whatever the machine asks for is carried out at once; what follows from it (a worker reports, dies, a poll has a result)
waits in ``due`` until the test lets it happen, in any order.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from broker.instructions import (
    CallFinished,
    ModelDraining,
    ModelGone,
    ModelReady,
    TableChanged,
    ToControl,
    ToLauncher,
    ToPeer,
    WorkerDraining,
    WorkerReady,
)
from broker.lifecycle import (
    DropFolder,
    FindNames,
    Lifecycle,
    LifecycleInstruction,
    Memory,
    Poll,
    PollAll,
    Remember,
    Watch,
)
from broker.repository import config_file
from broker.repository.host import Host
from broker.repository.normalise import instance_plans, normalise, normalise_instance_groups
from broker.repository.scan import Found
from broker.repository.snapshot import Override, Snapshot
from conch.messages import (
    Answer,
    CheckReady,
    Configured,
    Died,
    Drain,
    Fault,
    Kill,
    LiveWorker,
    ModelEntry,
    Spawn,
    WorkerHello,
)
from conch.protos import model_config_pb2

_NONE = Override()


def snapshot(
    name: str = "m",
    *,
    versions: tuple[int, ...] = (1,),
    count: int = 1,
    files: str = "a",
    complete: bool = True,
    fault: Fault | None = None,
    override: Override = _NONE,
    load_timeout_s: str = "",
) -> Snapshot:
    """A model as a poll may find it; another ``files`` means that something in its folders changed."""
    config = model_config_pb2.ModelConfig(name=name, backend="python", default_model_filename="model.py")
    config.instance_group.add(count=count)
    if load_timeout_s:
        config.parameters["LOAD_TIMEOUT_S"].string_value = load_timeout_s
    normalise(config)
    normalise_instance_groups(config, Host())
    config_json = config_file.to_json(config)
    return Snapshot(
        name=name,
        config_json=config_json,
        config=config_file.decode(config_json),
        versions=versions,
        hashes={version: f"{name}/{version}/{files}" for version in versions},
        model_dir=override.folder or f"/models/{name}",
        instances=instance_plans(config) if fault is None else (),
        complete=complete,
        digest=files.encode(),
        fault=fault,
        override=override,
    )


def completed(config_json: str) -> str:
    """What the simulated backend makes of a configuration: a batch size, an input and an output."""
    config = config_file.parse_json(config_json)
    config.max_batch_size = 4
    for tensors, tensor in ((config.input, "IN"), (config.output, "OUT")):
        if not tensors:
            tensors.add(name=tensor, data_type=model_config_pb2.TYPE_FP32, dims=[1])
    return config_file.to_json(config)


class Process:
    """A worker process. ``state`` is that of a ``WorkerHello``, or "dead"."""

    def __init__(self, spawn: Spawn, pid: int) -> None:
        self.spawn = spawn
        self.id = spawn.worker
        self.pid = pid
        self.state: Any = "completing" if spawn.complete else "loading"
        self.config = spawn.config
        #: whether it has told the present broker that it is there
        self.greeted = True

    @property
    def live(self) -> LiveWorker:
        spawn = self.spawn
        return LiveWorker(self.id, self.pid, spawn.model, spawn.version, spawn.instance, spawn.config_hash)

    @property
    def hello(self) -> WorkerHello:
        spawn = self.spawn
        return WorkerHello(
            1, self.id, self.pid, spawn.model, spawn.version, spawn.instance, spawn.config_hash, self.state
        )


def source_of(what: str) -> str:
    """Who an event comes from: events of one source keep their order."""
    kind, _, about = what.partition(" ")
    if kind in ("launcher", "spawned", "died"):
        return "launcher"
    return "repository" if kind in ("poll", "find", "watch") else about


class World:
    """``completes_apart``: a process that has completed a configuration ends."""

    def __init__(
        self,
        models: Iterable[Snapshot] = (),
        *,
        control_mode: Any = "explicit",
        completes_apart: bool = False,
        **options: Any,
    ) -> None:
        self.completes_apart = completes_apart
        self.now = 1000.0
        self.models: dict[str, Snapshot | Fault] = {model.name: model for model in models}
        self.options = {"control_mode": control_mode, **options}
        self._ids = itertools.count(1)
        self._pids = itertools.count(100)
        self.launcher = True
        self.processes: dict[str, Process] = {}
        self.memory = b""
        self.dropped: list[str] = []
        self.answers: dict[int, list[Fault | None]] = {}
        self._calls = itertools.count(1)
        self.all_spawns: list[Spawn] = []
        self._reset()

    def _reset(self) -> None:
        """What a broker's death takes with it."""
        self.due: list[tuple[str, Callable[[], list[LifecycleInstruction]]]] = []
        self.log: list[LifecycleInstruction] = []
        #: the dispatcher's knowledge: versions it accepts requests for, workers it may use, workers it is draining
        self.accepting: set[tuple[str, int]] = set()
        self.usable: dict[str, tuple[str, int]] = {}
        self.draining: set[str] = set()
        self.table: tuple[ModelEntry, ...] = ()
        #: workers that are being asked whether they are ready, and what calls about that were answered with
        self.checks: list[tuple[str, int]] = []
        self.said: list[tuple[int, Any]] = []

    # ---------------------------------------------------------------------------------------------------- broker's life

    def start(self, launcher: bool = True) -> "World":
        memory = msgspec.json.decode(self.memory, type=Memory) if self.memory else None
        self.machine = Lifecycle(new_id=lambda: f"w{next(self._ids)}", memory=memory, **self.options)
        self.do(self.machine.start(self.now))
        if launcher:
            self.launcher_hello()
        return self

    def exit(self) -> None:
        """Without a request that would have to finish first."""
        self.do(self.machine.exit(self.now))
        self.do(self.machine.drain_all(self.now))

    def restart_broker(self) -> None:
        """The broker dies and comes back; launcher and workers are still there and will say so."""
        self._reset()
        self.answers = {call: answers for call, answers in self.answers.items() if answers}
        for process in self.alive:
            process.greeted = False
        self.start(launcher=False)
        if self.launcher:
            self.due.append(("launcher", self._launcher_hello))
        for process in self.alive:
            self._greet_later(process)

    def _greet_later(self, process: Process) -> None:
        def greet() -> list[LifecycleInstruction]:
            if process.state == "dead":
                return []
            process.greeted = True
            return self.machine.worker_hello(process.hello, self.now)

        self.due.append((f"hello {process.id}", greet))

    # --------------------------------------------------------------------------------------------------------- launcher

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes.values() if process.state != "dead"]

    def _launcher_hello(self) -> list[LifecycleInstruction]:
        return self.machine.launcher_hello([process.live for process in self.alive], self.now)

    def launcher_hello(self) -> None:
        self.launcher = True
        self.do(self._launcher_hello())

    def launcher_dies(self) -> None:
        self.launcher = False
        # what it had not passed on is lost with it
        self.due = [(what, event) for what, event in self.due if source_of(what) != "launcher"]
        self.do(self.machine.launcher_gone(self.now))

    # ---------------------------------------------------------------------------------------------------------- workers

    def _spawn(self, spawn: Spawn) -> None:
        assert self.launcher, "a Spawn without a launcher"
        assert spawn.worker not in self.processes, "a worker's id was used twice"
        process = self.processes[spawn.worker] = Process(spawn, next(self._pids))
        self.all_spawns.append(spawn)
        self.due.append((f"spawned {process.id}", lambda: self.machine.spawned(process.id, process.pid, self.now)))
        self._step_later(process)

    def _step_later(self, process: Process) -> None:
        """The next thing that a healthy worker reports."""

        def step() -> list[LifecycleInstruction]:
            if process.state == "completing" and process.config == process.spawn.config:
                return self.machine.completed(
                    process.id, completed(process.config), self.now, ends=self.completes_apart
                )
            if process.state == "loading":
                process.state = "ready"
                return self.machine.ready(process.id, self.now)
            return []

        if process.state in ("completing", "loading"):
            self.due.append((f"step {process.id}", step))

    def die(
        self,
        process: Process,
        exit_code: int | None = None,
        signal: int | None = 9,
        tail: str = "",
        reason: str = "",
    ) -> None:
        """Its death is on its way to the broker."""
        if process.state == "dead":
            return
        process.state = "dead"
        self.usable.pop(process.id, None)
        self.draining.discard(process.id)
        self.due = [(what, event) for what, event in self.due if source_of(what) != process.id]
        if self.launcher:
            died = Died(process.id, process.pid, exit_code, signal, tail, reason)
            self.due.append((f"died {process.id}", lambda: self.machine.died(died, 1, self.now)))

    def fail_load(self, process: Process, fault: Fault) -> None:
        """The worker reports why it cannot load, then exits."""
        self.do(self.machine.load_failed(process.id, fault, self.now))
        self.die(process, exit_code=1, signal=None)

    def drain(self, process: Process) -> None:
        if process.state != "dead":
            process.state = "draining"
            self.due.append((f"exit {process.id}", lambda: self._exit(process)))

    def _exit(self, process: Process) -> list[LifecycleInstruction]:
        self.die(process, exit_code=0, signal=None)
        return []

    def workers_of(self, name: str, version: int = 1) -> list[Process]:
        return [p for p in self.alive if (p.spawn.model, p.spawn.version) == (name, version)]

    # ------------------------------------------------------------------------------------------------------ the machine

    def load(self, name: str = "m", override: Override | None = None) -> int:
        call = next(self._calls)
        self.answers[call] = []
        self.do(self.machine.load(name, self.now, "peer", call, override))
        return call

    def unload(self, name: str = "m") -> int:
        call = next(self._calls)
        self.answers[call] = []
        self.do(self.machine.unload(name, self.now, "peer", call))
        return call

    def answer(self, call: int) -> Fault | None:
        """What a call was answered with; it was, once."""
        assert len(self.answers[call]) == 1, f"call {call} was answered {len(self.answers[call])} times"
        return self.answers[call][0]

    def do(self, instructions: list[LifecycleInstruction]) -> None:
        self.log.extend(instructions)
        for instruction in instructions:
            self._do(instruction)

    def _do(self, instruction: LifecycleInstruction) -> None:
        match instruction:
            case ToLauncher(Spawn() as spawn):
                self._spawn(spawn)
            case ToLauncher(Kill(id, reason)):
                assert self.launcher, "a Kill without a launcher"
                if id in self.processes:
                    self.die(self.processes[id], reason=reason)
            case ToControl(id, Configured(config)):
                self.processes[id].config = config
                if self.processes[id].state == "completing":
                    self.processes[id].state = "loading"
                    self._step_later(self.processes[id])
            case ToControl(id, Drain()):
                assert self.processes[id].greeted, "a message to a worker that is not connected"
                self.drain(self.processes[id])
            case ModelReady(name, version):
                self.accepting.add((name, version))
            case WorkerReady(id, name, version):
                assert (name, version) in self.accepting, "a worker for a version that is not served"
                assert self.usable.get(id, (name, version)) == (name, version)
                if self.processes[id].state != "dead":  # its death may be on its way
                    self.usable[id] = (name, version)
            case WorkerDraining(id):
                self._stop_using(id)
            case ModelDraining(name, version) | ModelGone(name, version):
                self.accepting.discard((name, version))
                for id in [id for id, served in self.usable.items() if served == (name, version)]:
                    self._stop_using(id)
            case Poll(operation, name, override):
                self.due.append((f"poll {name}", lambda: self._polled(operation, name, override)))
            case PollAll():
                self.due.append(("poll all", self._polled_all))
            case FindNames():
                self.due.append(("find", lambda: self.machine.names_found(self._found(), self.now)))
            case Watch(models):
                self.due.append(("watch", lambda: self.machine.watched(self._digests(models), self.now)))
            case Remember(data):
                self.memory = data
            case DropFolder(folder):
                self.dropped.append(folder)
            case CallFinished(_, call, fault):
                self.answers[call].append(fault)
            case ToControl(id, CheckReady(number)):
                self.checks.append((id, number))
            case ToPeer(_, Answer(call, None, ready)):
                self.said.append((call, ready))
            case TableChanged():
                self.table = self.machine.entries()
            case _:
                raise AssertionError(f"unexpected: {instruction}")

    def _stop_using(self, id: str) -> None:
        self.usable.pop(id, None)
        if self.processes[id].state == "ready" and id not in self.draining:
            self.draining.add(id)
            self.drain(self.processes[id])

    def _found(self) -> Found:
        return Found(tuple(sorted(self.models)), frozenset())

    def _digests(self, models: tuple[tuple[str, str], ...]) -> dict[str, bytes]:
        found = {name: self.models[name] for name, _ in models if name in self.models}
        return {name: each.digest if isinstance(each, Snapshot) else b"fault" for name, each in found.items()}

    def _polled(self, operation: int, name: str, override: Override) -> list[LifecycleInstruction]:
        result = self.models.get(name, Fault("PollFailed", "model not found in any model repository."))
        if isinstance(result, Snapshot) and override:
            folder = override.folder or (f"/overrides/{operation}" if override.files else "")
            hashes = {version: f"{hash}+{override.config}{folder}" for version, hash in result.hashes.items()}
            written = Override(config=override.config, folder=folder)
            result = msgspec.structs.replace(result, hashes=hashes, override=written)
        return self.machine.polled(operation, result, self.now)

    def _polled_all(self) -> list[LifecycleInstruction]:
        return self.machine.polled_all(self._found(), dict(self.models), self.now)

    # ----------------------------------------------------------------------------------------------------------- events

    def happen(self, index: int = 0) -> None:
        """Lets one due event happen."""
        _, event = self.due.pop(index)
        self.do(event())

    @property
    def next_of_each(self) -> list[int]:
        """Where in ``due`` the first event of each source is."""
        first: dict[str, int] = {}
        for index, (what, _) in enumerate(self.due):
            first.setdefault(source_of(what), index)
        return list(first.values())

    def settle(self, limit: int = 10_000) -> "World":
        """Lets everything happen that is due, without any time passing."""
        for _ in range(limit):
            if not self.due:
                return self
            self.happen()
        raise AssertionError("it never settles")

    def pass_time(self, seconds: float) -> None:
        """Time passes, and the machine's timers with it."""
        until = self.now + seconds
        while (wakeup := self.machine.next_wakeup) is not None and wakeup <= until:
            assert wakeup > self.now or self.due, "a timer that never ends"
            self.now = max(self.now, wakeup)
            self.do(self.machine.tick(self.now))
            self.settle()
        self.now = until

    def entry(self, name: str = "m", version: int = 1) -> ModelEntry:
        return {(entry.name, entry.version): entry for entry in self.machine.entries()}[name, version]

    def states(self) -> dict[tuple[str, int], str]:
        return {(entry.name, entry.version): entry.state for entry in self.machine.entries()}
