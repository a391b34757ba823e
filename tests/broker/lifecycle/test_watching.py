"""``--watch``: one model is loaded again when its files have changed and rest; what served goes on until then."""

import pytest

from broker.lifecycle import Poll
from broker.lifecycle.watching import FIND_S, LOOK_S
from conch.messages import Fault
from tests.broker.lifecycle.support import READY
from tests.broker.lifecycle.world import World, snapshot


def watching(mode: str = "none") -> World:
    world = World([snapshot("a"), snapshot("b")], control_mode=mode, watch=True).start().settle()
    if mode == "explicit":
        world.load("a")
        world.settle()
    world.pass_time(2 * LOOK_S)
    return world


def spawned(world: World) -> list[str]:
    names = [spawn.model for spawn in world.all_spawns]
    world.all_spawns.clear()
    return names


def test_one_model_is_loaded_again_once_it_rests() -> None:
    world = watching()
    assert spawned(world) == ["a", "b"]
    (former,) = world.workers_of("a")
    world.models["a"] = snapshot("a", files="half of it")
    world.pass_time(LOOK_S)
    world.models["a"] = snapshot("a", files="all of it")
    world.pass_time(LOOK_S)
    assert spawned(world) == []
    world.pass_time(LOOK_S)
    assert spawned(world) == ["a"] and former.state == "dead"
    world.pass_time(20 * LOOK_S)
    assert spawned(world) == []


def test_a_version_that_does_not_load_leaves_the_former_one_serving(caplog: pytest.LogCaptureFixture) -> None:
    world = watching()
    (former,) = world.workers_of("a")
    world.models["a"] = snapshot("a", fault=Fault("InvalidArgument", "broken"), files="broken")
    world.pass_time(10 * LOOK_S)
    assert world.entry("a").state == READY and former.state == "ready"
    assert "the last load failed: Invalid argument: broken" in world.machine.note("a", 1)
    assert "'a' version 1 goes on serving as it was loaded before" in caplog.text
    world.models["a"] = snapshot("a", files="mended")
    world.pass_time(10 * LOOK_S)
    assert former.state == "dead" and len(world.workers_of("a")) == 1
    assert world.machine.note("a", 1) == world.machine.note("x", 1) == ""


def test_a_model_that_failed_at_start_and_a_new_one() -> None:
    broken = snapshot("a", fault=Fault("InvalidArgument", "broken"), files="broken")
    world = World([broken], control_mode="none", watch=True).start().settle()
    world.pass_time(2 * LOOK_S)
    world.models |= {"a": snapshot("a", files="mended"), "new": snapshot("new")}
    world.pass_time(10.0)
    assert world.entry("a").state == world.entry("new").state == READY


def test_what_changes_before_the_first_look() -> None:
    world = World([snapshot("a")], control_mode="none", watch=True).start().settle()
    world.models["a"] = snapshot("a", files="changed at once")
    spawned(world)
    world.pass_time(5 * LOOK_S)
    assert spawned(world) == ["a"]


def test_a_model_that_cannot_be_read_is_tried_once_per_change() -> None:
    world = watching()
    (former,) = world.workers_of("a")
    world.models["a"] = Fault("PollFailed", "failed to read text proto from config.pbtxt")
    polls = len(world.log)
    world.pass_time(20 * LOOK_S)
    assert "failed to read text proto" in world.machine.note("a", 1)
    assert sum(isinstance(each, Poll) for each in world.log[polls:]) == 1
    world.models["a"] = snapshot("a", files="mended")
    world.pass_time(5 * LOOK_S)
    assert former.state == "dead" and world.entry("a").state == READY


def test_what_was_unloaded_or_never_loaded_is_left_alone() -> None:
    world = watching("explicit")
    world.unload("a")
    world.settle()
    assert spawned(world) == ["a"]
    world.models |= {"a": snapshot("a", files="changed"), "b": snapshot("b", files="changed")}
    world.pass_time(20 * LOOK_S)
    assert spawned(world) == []


@pytest.mark.parametrize("mode", ["none", "explicit"])
def test_a_model_whose_folder_is_gone_is_unloaded(mode: str) -> None:
    world = watching(mode)
    (former,) = world.workers_of("a")
    gone = world.models.pop("a")
    world.pass_time(5 * FIND_S)
    assert former.state == "dead" and world.entry("a").reason == "unloaded"
    spawned(world)
    world.models["a"] = gone
    world.pass_time(5 * FIND_S)
    assert spawned(world) == (["a"] if mode == "none" else [])
    world.models["a"] = snapshot("a", files="changed")
    if mode == "explicit":
        world.load("a")
        world.settle()
    world.pass_time(5 * FIND_S)
    world.models["a"] = snapshot("a", files="changed again")
    world.pass_time(5 * FIND_S)
    assert spawned(world) == ["a", "a"] and world.entry("a").state == READY


def test_a_folder_that_is_gone_for_a_moment() -> None:
    world = watching()
    (former,) = world.workers_of("a")
    moved = world.models.pop("a")
    world.pass_time(FIND_S)
    world.models["a"] = moved
    world.pass_time(5 * FIND_S)
    assert former.state == "ready"


def test_nobody_looks_without_being_told_to() -> None:
    world = World([snapshot("a")], control_mode="none").start().settle()
    spawned(world)
    world.models["a"] = snapshot("a", files="changed")
    world.pass_time(20 * LOOK_S)
    assert spawned(world) == []


def test_a_debugged_model_may_take_any_time_to_load() -> None:
    world = World([snapshot("a", load_timeout_s="20")], control_mode="none", debugged=["a"]).start()
    world.happen()
    step = [event for event in world.due if event[0].startswith("step")]
    world.due = []
    world.pass_time(1000)
    world.due = step
    world.settle()
    assert world.entry("a").state == READY
