"""Which environment a worker needs. Nothing here looks at the disk but through what it is given."""

import json
import os
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from conch.messages import Spawn

#: a parameter of the model's configuration, as Triton has it
PARAMETER = "EXECUTION_ENV_PATH"
_MODEL_FOLDER = "$$TRITON_MODEL_DIRECTORY"
REQUIREMENTS = "requirements.txt"
#: ``--backend-config=python,requirements=false``: what is in such files has been installed for all models
_SETTING = "requirements"
_OTHER_BACKENDS = ("onnxruntime",)


class Wanted(msgspec.Struct, frozen=True):
    """``given``: ``path`` is a packed environment or the folder of one, and ``named`` how the configuration calls it.
    ``requirements``: ``path`` is a list of packages that an environment is made from."""

    kind: Literal["given", "requirements"]
    path: str
    named: str


def choose(spawn: Spawn, exists: Callable[[str], bool]) -> Wanted | None:
    """None for the server's own environment, which nearly every model runs in. What the configuration says comes
    first, then the version's folder, then the model's."""
    given = _parameter(spawn.config)
    if given:
        path = given.replace(_MODEL_FOLDER, spawn.model_dir, 1)
        return Wanted("given", os.path.abspath(path), given)
    if spawn.backend_config.get(_SETTING, "true").lower() in ("false", "0"):
        return None
    for folder in (spawn.version_dir, spawn.model_dir):
        path = os.path.join(folder, REQUIREMENTS)
        if exists(path) and _runs_python(json.loads(spawn.config)):
            return Wanted("requirements", path, REQUIREMENTS)
    return None


def _parameter(text: str) -> str:
    if PARAMETER not in text:  # far cheaper than to decode it
        return ""
    config = json.loads(text)
    if not _runs_python(config):
        return ""
    return str(config.get("parameters", {}).get(PARAMETER, {}).get("string_value", ""))


def _runs_python(config: dict[str, Any]) -> bool:
    """Whether the model is a model.py, or its backend one."""
    return config.get("backend") not in _OTHER_BACKENDS
