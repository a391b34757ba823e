"""Models that are asked whether they are ready: who is asked, who shares an answer, and when nobody waits any more."""

from broker.lifecycle.readiness import READY_TIMEOUT_S
from tests.broker.lifecycle.world import World, snapshot


def checking(count: int = 1) -> World:
    world = World([snapshot(count=count)], control_mode="none").start().settle()
    for process in world.alive:
        world.do(world.machine.ready(process.id, world.now, checks=True))
    assert world.table[0].checks
    return world


def ask(world: World, call: int, version: int = 1, name: str = "m") -> None:
    world.do(world.machine.ask_ready(name, version, world.now, "peer", call))


def answer(world: World, ready: bool, check: int = 0) -> None:
    worker, number = world.checks.pop(check)
    world.do(world.machine.checked(worker, number, ready, world.now))


def test_a_model_without_checks_is_not_marked() -> None:
    world = World([snapshot()], control_mode="none").start().settle()
    assert not world.table[0].checks


def test_every_instance_is_asked_and_all_must_be_ready() -> None:
    world = checking(count=2)
    ask(world, 1)
    assert {worker for worker, _ in world.checks} == set(world.usable)
    answer(world, True)
    assert not world.said
    answer(world, True)
    assert world.said == [(1, True)]
    ask(world, 2)
    answer(world, False)
    assert world.said[1:] == [(2, False)]
    answer(world, True)
    assert len(world.said) == 2
    assert world.machine.note("m", 1) == "not ready, the model said when it was asked last"
    ask(world, 3)
    answer(world, True)
    answer(world, True)
    assert world.machine.note("m", 1) == ""


def test_whoever_asks_meanwhile_shares_the_answer() -> None:
    world = checking()
    ask(world, 1)
    ask(world, 2)
    assert len(world.checks) == 1
    answer(world, True)
    assert world.said == [(1, True), (2, True)]
    ask(world, 3)
    assert len(world.checks) == 1


def test_no_answer_in_time_is_a_no_but_the_answer_still_counts_for_who_asks_then() -> None:
    world = checking()
    ask(world, 1)
    world.pass_time(READY_TIMEOUT_S - 1)
    ask(world, 2)
    world.pass_time(1)
    assert world.said == [(1, False)] and len(world.checks) == 1
    answer(world, True)
    assert world.said == [(1, False), (2, True)]


def test_a_worker_that_dies_is_not_ready() -> None:
    world = checking()
    ask(world, 1)
    world.die(world.alive[0])
    world.happen()
    assert world.said == [(1, False)]
    ask(world, 2)  # none runs at the moment
    assert world.said == [(1, False), (2, False)]


def test_a_model_that_is_not_there() -> None:
    world = checking()
    ask(world, 1, name="other")
    ask(world, 2, version=7)
    assert world.said == [(1, False), (2, False)]


def test_a_worker_that_connects_again_is_asked_again() -> None:
    world = checking()
    ask(world, 1)
    world.do(world.machine.ready(world.alive[0].id, world.now, checks=True))
    first, again = world.checks
    assert first == again
    answer(world, True)
    answer(world, False)
    assert world.said == [(1, True)]
