"""What ``Lifecycle`` asks of the shell beyond ``broker.instructions``: work on the file system, off the event loop.

The shell runs all of them in the order given, on one thread, so that no poll overtakes an earlier one.
"""

import msgspec

from broker.instructions import Instruction
from broker.repository.snapshot import Override


class _Effect(msgspec.Struct, frozen=True, gc=False):
    pass


class Poll(_Effect, frozen=True):
    """Call ``Repository.poll(name, override)``, then ``Lifecycle.polled(operation, result, now)``."""

    operation: int
    name: str
    override: Override


class PollAll(_Effect, frozen=True):
    """Call ``Repository.poll_all()``, then ``Lifecycle.polled_all(found, snapshots, now)``."""


class FindNames(_Effect, frozen=True):
    """Call ``Repository.find()``, then ``Lifecycle.names_found(found, now)``."""


class Watch(_Effect, frozen=True):
    """Call ``Repository.digests(models)``, then ``Lifecycle.watched(digests, now)``. ``models``: names, and the folders
    of their Python-based backends."""

    models: tuple[tuple[str, str], ...]


class Remember(_Effect, frozen=True):
    """Replace the file ``RunDir.loaded`` by ``data``, atomically (``broker.lifecycle.memory.save``)."""

    data: bytes


class DropFolder(_Effect, frozen=True):
    """Nobody uses this folder of a file override any more: ``broker.repository.overrides.remove_folder``."""

    folder: str


LifecycleInstruction = Instruction | Poll | PollAll | FindNames | Watch | Remember | DropFolder
