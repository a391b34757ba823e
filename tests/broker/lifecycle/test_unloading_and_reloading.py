"""Models that are unloaded, or loaded again after a change, event by event."""

from broker.instructions import ModelDraining, ModelGone, ModelReady
from broker.repository.snapshot import Override
from conch.messages import Fault
from tests.broker.lifecycle.support import READY, instructions
from tests.broker.lifecycle.world import World, snapshot

# ------------------------------------------------------------------------------------------------------------ unloading


def test_unload_answers_at_once_and_drains() -> None:
    world = World([snapshot(count=2)]).start().settle()
    world.load()
    world.settle()
    call = world.unload()
    assert world.answer(call) is None
    assert world.entry().state == "UNLOADING" and not world.entry().healthy
    assert [process.state for process in world.alive] == ["draining", "draining"]
    (draining,) = instructions(world, ModelDraining)
    assert draining.fault.kind == "NotReady"  # type: ignore[attr-defined]
    world.settle()
    assert (world.entry().state, world.entry().reason) == ("UNAVAILABLE", "unloaded")
    assert not world.alive
    assert isinstance(instructions(world, ModelGone)[-1], ModelGone)


def test_load_and_unload_of_one_model_run_in_the_order_of_arrival() -> None:
    world = World([snapshot()]).start().settle()
    calls = [world.load(), world.unload(), world.load(), world.unload(), world.load()]
    world.settle()
    assert [world.answer(call) for call in calls] == [None] * 5
    assert world.entry().state == READY
    assert len(world.alive) == 1


def test_load_while_the_former_copy_still_drains() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    (old,) = world.alive
    world.unload()
    world.due.clear()  # it takes its time
    call = world.load()
    world.settle()
    assert world.answer(call) is None and world.entry().state == READY
    assert old.state == "draining" and len(world.usable) == 1
    world.die(old, exit_code=0, signal=None)
    world.settle()
    assert world.entry().state == READY


def test_unload_while_an_instance_restarts_kills_that_one() -> None:
    world = World([snapshot(count=2)]).start().settle()
    world.load()
    world.settle()
    world.die(world.alive[0])
    world.happen(len(world.due) - 1)
    assert len(world.alive) == 2
    world.unload()
    world.settle()
    assert not world.alive and world.entry().reason == "unloaded"


# ------------------------------------------------------------------------------------------------------------ reloading


def test_reload_swaps_at_once_and_drains_the_old() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    (old,) = world.alive
    world.models["m"] = snapshot(files="b")
    call = world.load()
    world.happen()
    assert world.entry().state == READY and old.id in world.usable
    world.settle()
    assert world.answer(call) is None
    assert old.state == "dead" and len(world.usable) == 1 and old.id not in world.usable
    assert world.entry().state == READY
    ready = instructions(world, ModelReady)[-1]
    assert ready.fresh_statistics  # type: ignore[attr-defined]


def test_reload_that_fails_keeps_the_old() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    (old,) = world.alive
    world.models["m"] = snapshot(files="b")
    call = world.load()
    world.happen()
    (new,) = [process for process in world.alive if process is not old]
    world.fail_load(new, Fault("Internal", "broken"))
    world.settle()
    answer = world.answer(call)
    assert answer is not None
    assert answer.message == "load failed for model 'm': version 1 is at UNAVAILABLE state: Internal: broken;\n"
    assert (world.entry().state, world.entry().reason) == (READY, "")
    assert world.alive == [old] and set(world.usable) == {old.id}
    # and the next load tries again, although nothing changed since
    again = world.load()
    world.settle()
    assert world.answer(again) is None and old.state == "dead"


def test_reload_that_cannot_be_read_keeps_the_old() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    world.models["m"] = Fault("PollFailed", "what?")
    call = world.load()
    world.settle()
    assert world.answer(call) == Fault("PollFailed", "failed to load 'm', failed to poll from model repository")
    assert (world.entry().state, world.entry().reason) == (READY, "")


def test_a_version_that_is_no_longer_chosen_is_unloaded() -> None:
    world = World([snapshot(versions=(1, 2))]).start().settle()
    world.load()
    world.settle()
    world.models["m"] = snapshot(versions=(2, 3))
    world.load()
    world.settle()
    assert world.states() == {("m", 1): "UNAVAILABLE", ("m", 2): READY, ("m", 3): READY}
    assert world.entry("m", 1).reason == "unloaded"
    assert [spawn.version for spawn in world.all_spawns] == [1, 2, 3]


def test_more_and_fewer_instances_leave_the_others_running() -> None:
    world = World([snapshot(count=2)]).start().settle()
    world.load()
    world.settle()
    first = world.alive
    world.models["m"] = snapshot(count=4)
    world.load()
    world.settle()
    assert set(first) < set(world.alive) and len(world.usable) == 4
    assert sorted(process.spawn.instance for process in world.alive) == [0, 1, 2, 3]
    assert not instructions(world, ModelReady)[-1].fresh_statistics  # type: ignore[attr-defined]
    assert '"count":4' in world.entry().config and '"max_batch_size":4' in world.entry().config
    world.models["m"] = snapshot(count=1)
    world.load()
    world.settle()
    assert world.alive == first[:1] and set(world.usable) == {first[0].id}


def test_an_added_instance_that_fails_leaves_the_others_running() -> None:
    world = World([snapshot(count=1)]).start().settle()
    world.load()
    world.settle()
    (old,) = world.alive
    world.models["m"] = snapshot(count=2)
    call = world.load()
    world.happen()
    (new,) = [process for process in world.alive if process is not old]
    world.fail_load(new, Fault("Internal", "no memory"))
    world.settle()
    assert world.answer(call) is not None
    assert world.alive == [old] and world.entry().state == READY
    world.die(old)
    world.settle()
    assert len(world.alive) == 1 and world.entry().healthy


def test_override_and_back() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    world.load(override=Override(config="{}", files={"1/model.py": b""}))
    world.settle()
    assert world.alive[0].spawn.model_dir.startswith("/models")  # the simulated repository does not move it
    assert not world.dropped
    world.load()
    world.settle()
    assert len(world.all_spawns) == 3
    assert len(world.dropped) == 1 and world.dropped[0].startswith("/overrides/")
