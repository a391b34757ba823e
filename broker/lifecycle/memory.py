"""What a broker must know of its predecessor to take over its workers without loading a model again.

The file system tells which models there are, and the workers tell what they run; this is the rest: which models were
loaded by calls, with which overrides, and how backends completed the configurations.
"""

import logging
import os
from pathlib import Path

import msgspec

from conch.unreadable import UNREADABLE

logger = logging.getLogger("conch.broker.lifecycle")


class RememberedLoad(msgspec.Struct, frozen=True):
    """A model that was loaded by name. ``config`` and ``folder``: see ``Override``."""

    config: str = ""
    folder: str = ""


class RememberedConfig(msgspec.Struct, frozen=True):
    """The completed configuration of the version that ``hash`` identifies."""

    hash: str
    config: str


class Memory(msgspec.Struct):
    """``loads``: by model name; None: no model was ever loaded or unloaded by name, so the flags say what to load.
    ``configs``: model name -> version -> configuration."""

    loads: dict[str, RememberedLoad] | None = None
    configs: dict[str, dict[int, RememberedConfig]] = {}

    def encode(self) -> bytes:
        return msgspec.json.encode(self)


def restore(path: str | os.PathLike[str]) -> Memory:
    """What the last ``save`` wrote; an empty memory if there is none, or none that can be read."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=Memory)
    except FileNotFoundError:
        return Memory()
    except (OSError, *UNREADABLE) as error:
        logger.warning("what the last broker knew cannot be read, its models are loaded again: %s", error)
        return Memory()


def save(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces the file in one step, so that a broker that dies here leaves the old one. Raises ``OSError``."""
    target = Path(path)
    temporary = target.with_name(f"{target.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
    os.replace(temporary, target)
