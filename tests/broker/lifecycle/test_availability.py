"""``conch_model_available``: 0 for whatever is missed, and nothing for what nobody wants."""

import pytest

from conch.messages import Fault
from tests.broker.lifecycle.support import READY, available
from tests.broker.lifecycle.world import World, snapshot

BOOM = Fault("ModelError", "boom")
BROKEN = Fault("InvalidArgument", "broken")


def load_in_vain(world: World, name: str = "m") -> None:
    world.load(name)
    while not world.workers_of(name):
        world.happen()
    world.fail_load(world.workers_of(name)[0], BOOM)
    world.settle()


def test_from_the_start_of_a_load_to_an_unload() -> None:
    world = World([snapshot()]).start().settle()
    assert world.states() == {("m", 0): "UNKNOWN"} and available(world) == {}
    world.load()
    while world.states() != {("m", 1): "LOADING"}:
        world.happen()
    assert available(world) == {("m", "1"): 0}
    world.settle()
    assert available(world) == {("m", "1"): 1}
    world.unload()
    assert world.entry().state == "UNLOADING" and available(world) == {}
    world.settle()
    assert available(world) == {}


def test_failed_at_the_start() -> None:
    models = [snapshot("a", fault=BROKEN), snapshot("b")]
    world = World(models, control_mode="none")
    world.models["c"] = Fault("PollFailed", "what?")
    world.start().settle()
    assert available(world) == {("a", "1"): 0, ("b", "1"): 1, ("c", "0"): 0}


def test_asked_for_at_the_start_and_not_there() -> None:
    world = World(load_at_start=["m"]).start().settle()
    assert available(world) == {("m", "0"): 0}


def test_what_failed_and_is_unloaded_is_not_missed() -> None:
    world = World([snapshot("m"), snapshot("n")]).start().settle()
    load_in_vain(world)
    world.models["n"] = Fault("PollFailed", "what?")
    world.load("n")
    world.settle()
    assert available(world) == {("m", "1"): 0, ("n", "0"): 0}
    assert "boom" in world.entry().reason
    world.unload("m")
    world.unload("n")
    world.settle()
    assert available(world) == {} and world.entry().reason == "unloaded"


def test_a_version_that_failed_and_is_not_there_any_more() -> None:
    """Polling notices, too, though what serves has not changed."""
    world = World([snapshot()], control_mode="poll", poll_interval_s=10.0).start().settle()
    world.models["m"] = snapshot(versions=(1, 2))
    while not world.workers_of("m", 2):
        world.now += 10
        world.do(world.machine.tick(world.now))
        while world.due and not world.workers_of("m", 2):
            world.happen()
    world.fail_load(world.workers_of("m", 2)[0], BOOM)
    world.settle()
    assert available(world) == {("m", "1"): 1, ("m", "2"): 0}
    world.models["m"] = snapshot()
    world.pass_time(11)
    assert available(world) == {("m", "1"): 1} and len(world.alive) == 1


@pytest.mark.parametrize(("mode", "watch"), [("poll", False), ("none", True)])
def test_a_model_that_failed_and_whose_folder_is_gone(mode: str, watch: bool) -> None:
    world = World([snapshot(fault=BROKEN)], control_mode=mode, watch=watch).start().settle()
    assert available(world) == {("m", "1"): 0}
    del world.models["m"]
    world.pass_time(20)
    assert available(world) == {}
    world.models["m"] = snapshot()
    world.pass_time(20)
    assert world.entry().state == READY
