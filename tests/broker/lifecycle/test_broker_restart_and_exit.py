"""A broker that starts again among living workers, and one that exits."""

import pytest

from broker.repository.snapshot import Override
from conch.messages import Fault
from tests.broker.lifecycle.support import READY, loaded
from tests.broker.lifecycle.world import World, snapshot

# ------------------------------------------------------------------------------------------------- the broker's restart


def test_a_restarted_broker_adopts_every_worker() -> None:
    world = loaded(snapshot("a", count=2), snapshot("b", versions=(1, 2)))
    workers = list(world.alive)
    config = world.entry("a").config
    world.restart_broker()
    world.settle()
    assert world.alive == workers and len(world.all_spawns) == 4
    assert set(world.states().values()) == {READY}
    assert set(world.usable) == {process.id for process in workers}
    assert world.entry("a").config == config
    assert world.machine.startup_finished


@pytest.mark.parametrize("events", range(1, 20))
def test_a_broker_that_dies_while_it_recovers(events: int) -> None:
    """Wherever it dies, its successor adopts what it had not come to yet."""
    world = loaded(snapshot("a", count=2), snapshot("b", versions=(1, 2)), snapshot("c"))
    workers = list(world.alive)
    world.restart_broker()
    for _ in range(min(events, len(world.due))):
        world.happen()
    world.restart_broker()
    world.settle()
    assert world.alive == workers and len(world.all_spawns) == 5
    assert set(world.states().values()) == {READY}


@pytest.mark.parametrize("order", ["hellos first", "launcher first", "scan last"])
def test_adoption_in_every_order(order: str) -> None:
    world = loaded(snapshot(count=2))
    world.restart_broker()
    rank = {
        "hellos first": ("hello", "launcher", "poll"),
        "launcher first": ("launcher", "poll", "hello"),
        "scan last": ("launcher", "hello", "poll"),
    }[order]
    world.due.sort(key=lambda event: rank.index(event[0].split()[0]))
    world.settle()
    assert len(world.all_spawns) == 2 and len(world.usable) == 2 and world.entry().state == READY


def test_workers_of_something_else_are_drained() -> None:
    world = loaded(snapshot())
    (old,) = world.alive
    world.models["m"] = snapshot(files="b")
    world.restart_broker()
    world.settle()
    assert old.state == "dead"
    assert len(world.alive) == 1 and world.entry().state == READY


def test_workers_of_models_that_are_gone_are_drained() -> None:
    world = loaded(snapshot("a"), snapshot("b"))
    del world.models["b"]
    world.restart_broker()
    world.settle()
    assert [process.spawn.model for process in world.alive] == ["a"]


def test_a_worker_that_never_speaks_is_replaced() -> None:
    world = loaded(snapshot())
    (silent,) = world.alive
    world.restart_broker()
    world.due = [event for event in world.due if not event[0].startswith("hello")]
    world.settle()
    assert world.entry().state == "LOADING"
    world.pass_time(11)
    assert silent.state == "dead" and world.entry().state == READY and len(world.alive) == 1


def test_an_adopted_worker_that_dies_at_once_is_replaced() -> None:
    world = loaded(snapshot())
    world.restart_broker()
    world.die(world.alive[0])
    world.settle()
    assert world.entry().state == READY and len(world.alive) == 1


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_worker_that_dies_while_it_replaces_one_that_died_with_the_broker(deaths: int) -> None:
    """The model had been loaded, so there is a second try; a second death ends the load."""
    world = loaded(snapshot(count=2))
    first, second = world.alive
    world.die(first)
    world.restart_broker()
    for _ in range(deaths):
        while len(world.alive) < 2:
            world.happen()
        world.die(next(worker for worker in world.alive if worker is not second))
    world.settle()
    assert world.entry().state == (READY if deaths == 1 else "UNAVAILABLE")
    assert len(world.alive) == (2 if deaths == 1 else 0)


def test_workers_that_were_still_loading_start_again() -> None:
    world = World([snapshot(count=2)], control_mode="none").start()
    world.happen()
    world.restart_broker()
    world.settle()
    assert world.entry().state == READY and len(world.alive) == 2


def test_explicit_loads_survive_with_their_overrides() -> None:
    world = World([snapshot("a"), snapshot("b"), snapshot("c")], load_at_start=["a"]).start().settle()
    world.load("b", Override(config='{"max_batch_size":1}'))
    world.load("c")
    world.settle()
    world.unload("a")
    world.unload("c")
    world.settle()
    workers = list(world.alive)
    world.restart_broker()
    world.settle()
    assert world.states() == {("a", 0): "UNKNOWN", ("b", 1): READY, ("c", 0): "UNKNOWN"}
    assert world.alive == workers and len(world.all_spawns) == 3


def test_a_clean_exit_leaves_no_loads_behind() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    world.exit()
    world.settle()
    world.restart_broker()
    world.settle()
    assert world.states() == {("m", 0): "UNKNOWN"}


# ----------------------------------------------------------------------------------------------------------------- exit


def test_exit_drains_everything() -> None:
    world = loaded(snapshot("a", count=2), snapshot("b"))
    world.exit()
    assert world.alive and not world.accepting
    world.settle()
    assert world.machine.drained and not world.alive
    assert set(world.states().values()) == {"UNAVAILABLE"}


def test_exit_while_loading_answers_and_kills() -> None:
    world = World([snapshot("a"), snapshot("b")]).start().settle()
    calls = [world.load("a"), world.load("b"), world.unload("a")]
    world.happen()
    world.exit()
    assert [world.answer(call) for call in calls] == [Fault("Unavailable", "the server is exiting")] * 3
    world.settle()
    assert world.machine.drained and not world.alive
    assert world.answer(world.load("a")) == Fault("Unavailable", "the server is exiting")


def test_exit_that_takes_too_long() -> None:
    world = loaded(snapshot(count=2))
    world.exit()
    world.due.clear()
    world.do(world.machine.kill_all(world.now))
    world.settle()
    assert world.machine.drained and not world.alive


def test_what_serves_goes_on_until_everything_is_drained() -> None:
    world = loaded(snapshot("a", count=2), snapshot("b"))
    world.do(world.machine.exit(world.now))
    world.settle()
    assert set(world.states().values()) == {READY} and len(world.usable) == 3
    world.die(world.alive[0])
    world.settle()
    assert len(world.usable) == 3
    world.do(world.machine.drain_all(world.now))
    world.settle()
    assert world.machine.drained and not world.alive


def test_a_reload_is_given_up_at_exit() -> None:
    world = World([snapshot()]).start().settle()
    world.load()
    world.settle()
    (serving,) = world.alive
    world.models["m"] = snapshot(files="b")
    call = world.load()
    world.happen()
    world.do(world.machine.exit(world.now))
    world.settle()
    assert world.answer(call) == Fault("Unavailable", "the server is exiting")
    assert world.alive == [serving] and world.entry().state == READY
