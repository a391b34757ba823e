"""Whatever happens, in whatever order: no instance is lost or doubled, every call is answered once, all ends empty."""

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from broker.repository.snapshot import Override
from conch.messages import Died, Fault
from tests.broker.lifecycle.world import World, snapshot

NAMES = ("a", "b")
names = st.sampled_from(NAMES)
numbers = st.integers(0, 50)


class Interleavings(RuleBasedStateMachine):
    @initialize(
        mode=st.sampled_from(["none", "poll", "explicit", "explicit"]),
        complete=st.booleans(),
        apart=st.booleans(),
        counts=st.tuples(st.integers(1, 3), st.integers(1, 2)),
        parallel=st.integers(1, 3),
        retries=st.integers(0, 1),
        launcher=st.booleans(),
    )
    def begin(
        self,
        mode: str,
        complete: bool,
        apart: bool,
        counts: tuple[int, int],
        parallel: int,
        retries: int,
        launcher: bool,
    ) -> None:
        self.files = 0
        self.mode = mode
        self.complete = complete
        models = [snapshot(name, count=count, complete=complete) for name, count in zip(NAMES, counts, strict=True)]
        self.world = World(
            models, control_mode=mode, parallel_loads=parallel, load_retries=retries, completes_apart=apart
        )
        self.world.launcher = launcher
        self.world.start(launcher=launcher)

    # -------------------------------------------------------------------------------------------------- what may happen

    @precondition(lambda self: self.world.due)
    @rule(pick=numbers)
    def something_happens(self, pick: int) -> None:
        first = self.world.next_of_each
        self.world.happen(first[pick % len(first)])

    @precondition(lambda self: self.world.due)
    @rule(pick=numbers)
    def many_things_happen(self, pick: int) -> None:
        for step in range(6):
            first = self.world.next_of_each
            if first:
                self.world.happen(first[(pick + step) % len(first)])

    @rule(name=names, config=st.sampled_from(["", "", "{}", '{"max_batch_size":2}']), files=st.booleans())
    def load(self, name: str, config: str, files: bool) -> None:
        override = Override(config=config, files={"1/model.py": b"x"} if files and config else {})
        self.world.load(name, override)

    @rule(name=names)
    def unload(self, name: str) -> None:
        self.world.unload(name)

    @rule(
        name=names, count=st.integers(1, 3), versions=st.sampled_from([(1,), (1,), (2,), (1, 2)]), touch=st.booleans()
    )
    def files_change(self, name: str, count: int, versions: tuple[int, ...], touch: bool) -> None:
        self.files += touch
        self.world.models[name] = snapshot(
            name, count=count, versions=versions, files=str(self.files), complete=self.complete
        )

    @rule(name=names, how=st.sampled_from(["unreadable", "invalid", "gone"]))
    def files_break(self, name: str, how: str) -> None:
        if how == "unreadable":
            self.world.models[name] = Fault("PollFailed", "what?")
        elif how == "invalid":
            self.world.models[name] = snapshot(name, fault=Fault("Unsupported", "not there yet"))
        else:
            self.world.models.pop(name, None)

    @precondition(lambda self: self.world.alive)
    @rule(pick=numbers, signal=st.sampled_from([9, 11, None]))
    def a_worker_dies(self, pick: int, signal: int | None) -> None:
        alive = self.world.alive
        self.world.die(alive[pick % len(alive)], exit_code=3 if signal is None else None, signal=signal)

    @precondition(lambda self: any(process.state in ("completing", "loading") for process in self.world.alive))
    @rule(pick=numbers)
    def a_worker_cannot_load(self, pick: int) -> None:
        loading = [process for process in self.world.alive if process.state in ("completing", "loading")]
        self.world.fail_load(loading[pick % len(loading)], Fault("ModelError", "boom"))

    @precondition(lambda self: self.world.usable)
    @rule(pick=numbers)
    def one_takes_too_long(self, pick: int) -> None:
        usable = sorted(self.world.usable)
        self.world.do(self.world.machine.kill(usable[pick % len(usable)], "ran longer", self.world.now))

    @precondition(lambda self: self.world.processes)
    @rule(pick=numbers, what=st.sampled_from(["ready", "completed", "failed", "died", "spawned"]))
    def a_message_comes_late(self, pick: int, what: str) -> None:
        """Of a worker that is dead, or the second time."""
        dead = [process for process in self.world.processes.values() if process.state == "dead"]
        machine, now = self.world.machine, self.world.now
        if not dead or any(event[0].split()[-1] == dead[pick % len(dead)].id for event in self.world.due):
            return
        process = dead[pick % len(dead)]
        if process.id in machine._roster.workers:  # the broker has not heard of its death: nothing is late yet
            return
        out: list[Any]
        if what == "ready":
            out = machine.ready(process.id, now)
        elif what == "completed":
            out = machine.completed(process.id, process.config, now)
        elif what == "failed":
            out = machine.load_failed(process.id, Fault("Internal", "late"), now)
        elif what == "died":
            out = machine.died(Died(process.id, process.pid, None, 9), 1, now)
        else:
            out = machine.spawned(process.id, process.pid, now)
        self.world.do(out)

    @precondition(lambda self: self.world.launcher)
    @rule()
    def the_launcher_dies(self) -> None:
        self.world.launcher_dies()

    @precondition(lambda self: not self.world.launcher)
    @rule()
    def a_launcher_comes(self) -> None:
        self.world.launcher_hello()

    @rule()
    def the_broker_dies(self) -> None:
        self.world.restart_broker()

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 100.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        world = self.world
        world.now += seconds
        world.do(world.machine.tick(world.now))
        wakeup = world.machine.next_wakeup
        assert wakeup is None or wakeup > world.now, "a timer that is due again at once"

    # ------------------------------------------------------------------------------------------------ what always holds

    @invariant()
    def calls_are_answered_at_most_once(self) -> None:
        assert all(len(answers) <= 1 for answers in self.world.answers.values())

    @invariant()
    def what_is_ready_is_served(self) -> None:
        for entry in self.world.machine.entries():
            if entry.state == "READY":
                assert (entry.name, entry.version) in self.world.accepting
                assert entry.config

    @invariant()
    def no_instance_is_doubled(self) -> None:
        for name, version in self.world.accepting:
            served = [worker for worker, what in self.world.usable.items() if what == (name, version)]
            (slot,) = [slot for slot in self.world.machine._keeper.models[name].serving if slot.version == version]
            assert slot.serving is not None
            assert set(served) <= {instance.worker for instance in slot.serving.instances}
            workers = [instance.worker for instance in slot.serving.instances if instance.worker]
            assert len(set(workers)) == len(workers)

    @invariant()
    def no_worker_is_forgotten(self) -> None:
        """Every process is known to the machine, or its own word is on its way."""
        roster = self.world.machine._roster
        for process in self.world.alive:
            if process.greeted and roster.launcher_present:
                known = process.id in roster.workers or process.id in roster.strays
                assert known or any(what.split()[-1] == process.id for what, _ in self.world.due)

    @invariant()
    def the_table_is_what_was_last_announced(self) -> None:
        assert self.world.table == self.world.machine.entries()

    # ---------------------------------------------------------------------------------------------------------- the end

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        if not world.launcher:
            world.launcher_hello()
        world.settle()
        world.pass_time(500)
        world.settle()
        assert world.machine.startup_finished
        assert all(len(answers) == 1 for answers in world.answers.values()), "a call was never answered"
        wanted: set[str] = set()
        for status in world.machine.instances(world.now):
            assert status.state == "ready", status
            wanted.add(status.worker)
        assert wanted == set(world.usable) == {process.id for process in world.alive}
        for entry in world.machine.entries():
            assert entry.state in ("READY", "UNAVAILABLE", "UNKNOWN")
        world.exit()
        world.settle()
        assert world.machine.drained
        assert not world.alive
        assert not world.accepting


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
