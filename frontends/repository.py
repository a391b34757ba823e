"""Loads as every protocol is asked for them: parameters by name become a message to the broker."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from conch.errors import InvalidArgument, Unsupported
from conch.messages import LoadModel

Value = TypeVar("Value")


def check_repository(name: str) -> None:
    """Raises ``Unsupported`` for a request that names a repository."""
    if name:
        raise Unsupported("'repository_name' specification is not supported")


def load_message(
    model: str,
    parameters: Iterable[tuple[str, Value]],
    text: Callable[[str, Value], str],
    content: Callable[[str, Value], bytes],
) -> LoadModel:
    """``text`` and ``content`` turn a parameter of this name and value into what a configuration and a file must be,
    or raise. Raises ``InvalidArgument`` for unknown parameters."""
    config = ""
    files: dict[str, bytes] = {}
    for key, value in parameters:
        if key == "config":
            config = text(key, value)
        elif key.startswith("file:"):
            files[key.removeprefix("file:")] = content(key, value)
        else:
            raise InvalidArgument(f"unrecognized load parameter '{key}'.")
    return LoadModel(0, model, config, files)
