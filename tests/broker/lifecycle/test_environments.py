"""A worker whose environment has to be made first."""

from conch.messages import Fault
from tests.broker.lifecycle.support import READY
from tests.broker.lifecycle.world import World, snapshot


def preparing() -> World:
    world = World([snapshot(load_timeout_s="20")], control_mode="none").start()
    world.happen()
    world.do(world.machine.preparing(world.alive[0].id, world.now))
    return world


def test_making_an_environment_may_take_long() -> None:
    world = preparing()
    later = list(world.due)
    world.due.clear()
    world.pass_time(1000)
    assert world.entry().state == "LOADING" and len(world.alive) == 1
    world.due += later
    world.settle()
    assert world.entry().state == READY
    world.pass_time(1000)
    assert world.entry().state == READY and len(world.alive) == 1


def test_a_worker_s_time_begins_when_it_is_started() -> None:
    world = preparing()
    world.due.clear()
    world.pass_time(1000)
    process = world.alive[0]
    world.do(world.machine.spawned(process.id, process.pid, world.now))
    world.pass_time(19)
    assert world.alive
    world.pass_time(2)
    assert not world.alive
    assert "was not ready within its LOAD_TIMEOUT_S of 20 s" in world.entry().reason


def test_a_worker_may_be_ready_before_its_start_is_reported() -> None:
    world = preparing()
    process = world.alive[0]
    spawned = [event for event in world.due if event[0].startswith("spawned")]
    world.due = [event for event in world.due if event not in spawned]
    world.settle()
    assert world.entry().state == READY
    world.due += spawned
    world.settle()
    world.pass_time(1000)
    assert world.alive == [process]


def test_why_there_is_no_environment_reads_as_it_is() -> None:
    world = preparing()
    process = world.alive[0]
    process.state = "dead"
    world.due.clear()
    fault = Fault("InvalidArgument", "unable to load model 'm': its requirements.txt gives no environment: no")
    world.do(world.machine.spawn_failed(process.id, fault, world.now))
    world.settle()
    assert world.entry().reason == f"Invalid argument: {fault.message}"
    assert not world.alive
