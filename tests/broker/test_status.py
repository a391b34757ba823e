"""What the broker says of models and instances besides their states."""

from broker.scheduling.dispatcher import Dispatcher
from broker.status import StateTimes, server_status
from conch.messages import ModelEntry, ModelState
from tests.broker.lifecycle.support import loaded
from tests.broker.lifecycle.world import World, snapshot


def entry(name: str, state: ModelState) -> ModelEntry:
    return ModelEntry(name, 1, state, "", state == "READY")


def ready(world: World) -> bool:
    """Of the only model."""
    status = server_status(1, "ready", 0, (), world.machine, StateTimes(), Dispatcher(0).reports, world.now)
    (model,) = status.models
    return model.ready


def test_which_models_let_the_server_be_ready() -> None:
    world = World([snapshot()]).start()
    world.load()
    while not world.alive:
        world.happen()
    assert not ready(world)
    world.settle()
    assert ready(world)
    world.unload()
    world.settle()
    assert world.entry().state == "UNAVAILABLE" and ready(world)


def test_a_model_that_says_it_is_not_ready() -> None:
    world = World([snapshot()], control_mode="none").start().settle()
    for process in world.alive:
        world.do(world.machine.ready(process.id, world.now, checks=True))
    for says in (False, True):
        world.do(world.machine.ask_ready("m", 1, world.now, "peer", 1))
        worker, number = world.checks.pop(0)
        world.do(world.machine.checked(worker, number, says, world.now))
        assert ready(world) == says


def test_since_when_versions_are_in_their_states() -> None:
    times = StateTimes()
    times.update([entry("a", "LOADING"), entry("b", "READY")], 10.0)
    times.update([entry("a", "UNAVAILABLE"), entry("b", "READY")], 15.0)
    assert times.seconds("a", 1, 20.0) == 5.0
    assert times.seconds("b", 1, 20.0) == 10.0
    times.update([entry("a", "UNAVAILABLE")], 30.0)
    assert times.seconds("a", 1, 35.0) == 20.0
    assert times.seconds("b", 1, 35.0) == 0.0


def test_since_when_an_instance_has_died() -> None:
    world = loaded(snapshot(count=2))
    world.die(world.alive[0])
    world.settle()
    world.pass_time(12)
    died, other = world.machine.instances(world.now)
    assert died.since_death_s is not None and 12 <= died.since_death_s < 13
    assert other.since_death_s is None and not other.last_error
