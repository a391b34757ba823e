"""What the tests of the life of models share."""

from tests.broker.lifecycle.world import World

READY = "READY"


def loaded(*models: object, **options: object) -> World:
    """A world in mode none with these models loaded."""
    world = World(models, control_mode="none", **options).start().settle()  # type: ignore[arg-type]
    assert world.machine.startup_finished
    return world


def instructions(world: World, kind: type) -> list[object]:
    return [instruction for instruction in world.log if isinstance(instruction, kind)]
