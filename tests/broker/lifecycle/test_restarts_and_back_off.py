"""Workers that die and are replaced, at once or after a pause; a launcher that dies, or has workers of nobody."""

import pytest

from broker.instructions import ModelGone, ModelReady
from broker.lifecycle.instances import CRASH_BUDGET
from conch.messages import Died, Fault
from tests.broker.lifecycle.support import READY, instructions, loaded
from tests.broker.lifecycle.world import World, snapshot

# -------------------------------------------------------------------------------------------------------------- crashes


def test_a_dead_worker_is_replaced_at_once() -> None:
    world = loaded(snapshot(count=2))
    victim = world.alive[0]
    world.die(victim)
    world.happen()
    assert world.entry().state == READY and world.entry().healthy
    world.settle()
    assert len(world.usable) == 2
    replacement = world.all_spawns[-1]
    assert (replacement.instance, replacement.instance_name) == (victim.spawn.instance, victim.spawn.instance_name)
    assert not replacement.complete and replacement.config == world.entry().config


def test_repeated_deaths_back_off_and_make_it_unavailable_then_it_comes_back() -> None:
    world = loaded(snapshot())
    for death in range(CRASH_BUDGET):
        assert world.entry().state == READY
        information = 'I1121 18:04:10.046536 29287 batch.py:76] "a client is gone"\n'
        world.die(world.alive[0], signal=11, tail=f"words {death}\n{information}")
        world.settle()
    assert world.entry().state == "UNAVAILABLE" and not world.alive
    assert world.entry().reason == (
        "Unavailable: it keeps crashing (`conch logs m` shows its output): "
        "the worker of instance 'm_0_0' was killed by SIGSEGV; its last output: "
        f"words {CRASH_BUDGET - 1}"
    )
    assert instructions(world, ModelGone)
    world.pass_time(0.4)
    assert not world.alive
    world.pass_time(0.2)
    assert world.entry().state == READY and world.entry().reason == "" and len(world.usable) == 1
    assert not instructions(world, ModelReady)[-1].fresh_statistics  # type: ignore[attr-defined]


def test_the_pauses_double_up_to_a_minute() -> None:
    world = loaded(snapshot())
    pauses = []
    for _ in range(CRASH_BUDGET + 11):
        if not world.alive:
            wakeup = min(each.retry_at for each in world.machine._keeper.backed_off())
            pauses.append(wakeup - world.now)
            world.pass_time(pauses[-1])
        world.die(world.alive[0])
        world.settle()
    assert pauses[:9] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_worker_that_was_well_for_long_is_restarted_at_once_again() -> None:
    world = loaded(snapshot())
    for _ in range(20):
        world.die(world.alive[0])
        world.settle()
        assert world.entry().state == READY
        world.pass_time(16)


def test_deaths_that_a_request_is_to_blame_for_do_not_count() -> None:
    world = loaded(snapshot())
    for _ in range(30):
        (process,) = world.alive
        process.state = "dead"
        world.do(world.machine.died(Died(process.id, process.pid, None, 9), 0, world.now))
        world.settle()
    assert world.entry().state == READY and len(world.alive) == 1


@pytest.mark.parametrize("instances", [1, 2])
def test_a_request_that_ends_two_workers_takes_its_first_death_back(instances: int) -> None:
    world = loaded(snapshot(count=instances))
    for _ in range(3 * CRASH_BUDGET):
        for counts in (1, -1):
            process = world.alive[0]  # of any instance
            process.state = "dead"
            world.do(world.machine.died(Died(process.id, process.pid, None, 9), counts, world.now))
            world.settle()
            world.pass_time(0.01)
    assert world.entry().state == READY and len(world.alive) == instances


def test_of_a_model_that_answers_nobody_the_first_death_counts() -> None:
    world = loaded(snapshot())
    for _ in range(CRASH_BUDGET):
        for counts in (1, 0):
            if world.alive:
                (process,) = world.alive
                process.state = "dead"
                world.do(world.machine.died(Died(process.id, process.pid, None, 9), counts, world.now))
                world.settle()
    assert world.entry().state == "UNAVAILABLE"


def test_one_instance_that_crashes_does_not_take_the_version_down() -> None:
    world = loaded(snapshot(count=2))
    for _ in range(CRASH_BUDGET):
        (victim,) = [process for process in world.alive if process.spawn.instance == 1]
        world.die(victim)
        world.settle()
    assert world.entry().state == READY and world.entry().healthy
    assert len(world.alive) == 1
    states = {status.instance: status.state for status in world.machine.instances(world.now)}
    assert states == {"m_0_0": "ready", "m_0_1": "backed-off"}


def test_a_restart_that_fails_backs_off_with_the_backend_s_reason() -> None:
    world = loaded(snapshot())
    world.die(world.alive[0])
    world.happen()
    (process,) = world.alive
    world.fail_load(process, Fault("ModelError", "the file is gone"))
    world.settle()
    assert world.entry().reason == "Unavailable: it keeps crashing (`conch logs m` shows its output): the file is gone"
    assert world.machine.instances(world.now)[0].last_error == "the file is gone"
    world.pass_time(1)
    assert world.entry().state == READY


def test_a_load_call_heals_what_keeps_crashing() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    for _ in range(CRASH_BUDGET):
        world.die(world.alive[0])
        world.settle()
    assert world.entry().state == "UNAVAILABLE"
    call = world.load()
    world.settle()
    assert world.answer(call) is None
    assert world.entry().state == READY and len(world.alive) == 1
    world.pass_time(100)
    assert len(world.alive) == 1


def test_a_loaded_instance_that_dies_before_the_others_are_ready_loads_again() -> None:
    world = World([snapshot(count=2, complete=False)], control_mode="none").start()
    world.happen()
    first, second = world.alive
    first.state = "ready"
    world.do(world.machine.ready(first.id, world.now))
    world.die(first)
    world.settle()
    assert world.entry().state == READY and len(world.usable) == 2 and second.id in world.usable


def test_a_reload_cures_a_crashing_model_without_losing_what_is_queued() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    world.models["m"] = snapshot(files="b")
    call = world.load()
    world.happen()
    old = next(process for process in world.alive if process.state == "ready")
    steps = [event for event in world.due if event[0].startswith(("step", "spawned"))]
    for _ in range(CRASH_BUDGET):
        world.die(old)
        world.due = [event for event in world.due if event[0].startswith("died")]
        world.settle()
        fresh = [process for process in world.alive if not process.spawn.complete]
        if fresh:
            old = fresh[0]
            old.state = "ready"
            world.do(world.machine.ready(old.id, world.now))
    assert world.entry().state == "UNAVAILABLE"
    assert not instructions(world, ModelGone)
    world.due = steps
    world.settle()
    assert world.answer(call) is None and world.entry().state == READY


def test_death_fault_names_the_signal_and_nothing_private() -> None:
    world = loaded(snapshot())
    (process,) = world.alive
    fault = world.machine.death_fault(Died(process.id, process.pid, None, 9, "secret /path"))
    assert fault == Fault("WorkerDied", "the worker of instance 'm_0_0' was killed by SIGKILL")


# --------------------------------------------------------------------------------------------------------- the launcher


def test_a_spawn_that_died_with_the_launcher_is_repeated() -> None:
    world = World([snapshot()], control_mode="none").start()
    world.happen()
    (lost,) = world.alive
    world.launcher_dies()
    lost.state = "dead"
    world.due.clear()
    world.launcher_hello()
    world.settle()
    assert world.entry().state == READY and len(world.all_spawns) == 2


def test_deaths_while_no_launcher_was_there() -> None:
    world = loaded(snapshot(count=2))
    world.launcher_dies()
    world.die(world.alive[0])
    world.settle()
    assert world.entry().state == READY and len(world.alive) == 1
    world.launcher_hello()
    world.settle()
    assert len(world.usable) == 2


def test_restarts_wait_for_the_launcher() -> None:
    world = loaded(snapshot())
    world.launcher_dies()
    victim = world.alive[0]
    victim.state = "dead"
    world.do(world.machine.died(Died(victim.id, victim.pid, None, 9), 1, world.now))
    assert not world.alive
    world.launcher_hello()
    world.settle()
    assert len(world.alive) == 1


def test_workers_nobody_asked_for_are_killed() -> None:
    world = loaded(snapshot())
    out = world.machine.spawned("stranger", 5, world.now)
    assert [str(each.message) for each in out] == ["Kill(worker='stranger', reason='')"]  # type: ignore[union-attr]
