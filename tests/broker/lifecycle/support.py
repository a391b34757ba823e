"""What the tests of the life of models share."""

from collections import Counter

from broker.fault_metrics import fault_families
from conch.messages import MetricFamily
from tests.broker.lifecycle.world import World

READY = "READY"


def loaded(*models: object, **options: object) -> World:
    """A world in mode none with these models loaded."""
    world = World(models, control_mode="none", **options).start().settle()  # type: ignore[arg-type]
    assert world.machine.startup_finished
    return world


def families(world: World) -> dict[str, MetricFamily]:
    """The broker's metrics by name, with two retries and a worker that has been busy for 3 s."""
    machine = world.machine
    made = fault_families(machine.entries(), machine.deaths.by_cause, Counter({("m", 1): 2}), {("m", 1): 3.0})
    return {family.name: family for family in made}


def available(world: World) -> dict[tuple[str, str], float]:
    """``conch_model_available`` by model and version."""
    samples = families(world)["conch_model_available"].samples
    return {(sample.labels["model"], sample.labels["version"]): sample.value for sample in samples}


def crash(world: World, name: str = "m") -> None:
    """Until its version is unavailable."""
    while not world.settle().entry(name).reason:
        for process in world.workers_of(name):
            world.die(process)


def instructions(world: World, kind: type) -> list[object]:
    return [instruction for instruction in world.log if isinstance(instruction, kind)]
