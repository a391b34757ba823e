"""A load that fails leaves a model that keeps crashing as it was: it goes on being started again."""

import pytest

from broker.instructions import ModelGone
from broker.refusals import keeps_crashing
from conch.messages import Fault
from tests.broker.lifecycle.support import READY, available, crash, instructions
from tests.broker.lifecycle.world import World, snapshot

BOOM = Fault("ModelError", "boom")


def crashing(**options: object) -> World:
    world = World([snapshot(**options)]).start().settle()  # type: ignore[arg-type]
    world.load()
    crash(world)
    return world


def is_crashing(world: World) -> None:
    entry = world.entry()
    assert entry.state == "UNAVAILABLE" and entry.reason.startswith("Unavailable: it keeps crashing (")
    assert entry.config and available(world) == {("m", "1"): 0}
    assert instructions(world, ModelGone)[-1] == ModelGone("m", 1, keeps_crashing("m", 1))


def fail_load(world: World) -> int:
    """Its number."""
    call = world.load()
    while not world.alive:
        world.happen()
    is_crashing(world)
    world.fail_load(world.alive[0], BOOM)
    world.settle()
    answer = world.answer(call)
    assert answer is not None and "boom" in answer.message
    return call


@pytest.mark.parametrize("files", ["a", "b"])
def test_it_comes_back_after_a_load_that_failed(files: str) -> None:
    """Also if its folder is another one by now."""
    world = crashing()
    world.models["m"] = snapshot(files=files)
    fail_load(world)
    is_crashing(world)
    assert not world.alive
    world.pass_time(0.4)
    assert not world.alive, "its pause goes on"
    world.pass_time(0.2)
    assert world.entry().state == READY and len(world.usable) == 1 and available(world) == {("m", "1"): 1}


@pytest.mark.parametrize("result", [Fault("PollFailed", "what?"), snapshot(fault=Fault("InvalidArgument", "broken"))])
def test_it_comes_back_after_a_load_that_could_not_begin(result: Fault) -> None:
    world = crashing()
    world.models["m"] = result
    call = world.load()
    world.settle()
    assert world.answer(call) is not None
    is_crashing(world)
    world.pass_time(1)
    assert world.entry().state == READY


def test_its_pauses_go_on_growing() -> None:
    world = crashing()
    for pause_s in (0.5, 1, 2):
        fail_load(world)
        (row,) = world.machine.instances(world.now)
        assert row.state == "backed-off" and 0 < row.retry_in_s <= pause_s
        while not world.alive:
            world.now = world.machine.next_wakeup or 0.0
            world.do(world.machine.tick(world.now))
        world.fail_load(world.alive[0], BOOM)
        world.settle()
        is_crashing(world)


def test_it_is_not_started_beside_a_load() -> None:
    """Which may need the memory that it needs."""
    world = crashing()
    while not world.alive:
        world.now = world.machine.next_wakeup or 0.0
        world.do(world.machine.tick(world.now))
    (restarted,) = world.alive
    world.due.clear()  # it takes its time
    world.load()
    while world.alive in ([], [restarted]):
        world.happen()
    (loading,) = world.alive
    world.due.clear()
    world.pass_time(200)
    assert world.alive == [loading]
    world.fail_load(loading, BOOM)
    world.settle()
    world.pass_time(0.1)
    assert world.entry().state == READY, "the restart that was interrupted is made up for at once"


def test_without_a_launcher_it_waits_for_one() -> None:
    world = crashing()
    world.launcher_dies()
    world.load()
    world.pass_time(100)
    world.launcher_hello()
    world.settle()
    assert world.entry().state == READY and len(world.alive) == len(world.usable) == 1


def test_a_version_that_fails_again_while_others_load_goes_on_by_itself() -> None:
    world = World([snapshot(versions=(1, 2))]).start().settle()
    world.load()
    crash(world)
    call = world.load()
    world.models["m"] = snapshot(versions=(1, 2), files="b")
    while len(world.alive) < 3:
        world.happen()
    failing = next(process for process in world.workers_of("m") if process.state != "ready")
    slow = [event for event in world.due if not event[0].startswith("died")]
    world.due.clear()
    world.fail_load(failing, BOOM)
    world.settle()
    world.pass_time(1)
    assert world.states() == {("m", 1): READY, ("m", 2): READY} and not world.answers[call]
    world.due += slow
    world.settle()
    assert world.answer(call) is not None
    assert world.states() == {("m", 1): READY, ("m", 2): READY}


def test_the_next_broker_loads_it_too() -> None:
    world = crashing()
    fail_load(world)
    world.restart_broker()
    world.settle()
    assert world.entry().state == READY


def test_an_unload_ends_it() -> None:
    world = crashing()
    fail_load(world)
    world.unload()
    world.settle()
    world.pass_time(100)
    assert not world.alive and world.entry().reason == "unloaded" and available(world) == {}


def test_an_instance_that_stays_is_started_again_after_the_load() -> None:
    """One of two is backed off while a third is loaded."""
    world = World([snapshot(count=2)]).start().settle()
    world.load()
    world.settle()
    while world.machine.instances(world.now)[1].state != "backed-off":
        (victim,) = [process for process in world.alive if process.spawn.instance == 1]
        world.die(victim)
        world.settle()
    world.models["m"] = snapshot(count=3)
    call = world.load()
    while len(world.alive) == 1:
        world.happen()
    held = list(world.due)
    world.due.clear()
    world.pass_time(10)
    assert len(world.alive) == 2
    world.due += held
    world.settle()
    assert world.answer(call) is None and world.entry().state == READY
    assert len(world.alive) == len(world.usable) == 3
