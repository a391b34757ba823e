"""Backends that are Python files of their own: ``<backend directory>/<name>/model.py`` serves every model whose
configuration names that backend, and the models' folders hold data only."""

import os

from broker.repository.config_file import ModelConfigMessage
from conch.errors import InvalidArgument

#: also what Triton fills in as such a model's runtime
_FILE = "model.py"


def folder(backend_directory: str, config: ModelConfigMessage) -> str:
    """The folder of the model's backend if that is such a one, or empty; fills in ``runtime``. A model of the backend
    ``python`` brings its own file."""
    name = config.backend
    if not backend_directory or name in ("", ".", "..", "python") or "/" in name or "\0" in name:
        return ""
    if config.runtime not in ("", _FILE):
        return ""
    found = os.path.join(backend_directory, name)
    if not os.path.isfile(os.path.join(found, _FILE)):
        return ""
    config.runtime = _FILE
    return found


def check(config: ModelConfigMessage, backend_dir: str) -> None:
    """Raises ``InvalidArgument`` for a model that insists on such a backend where there is none."""
    if config.runtime == _FILE and config.backend != "python" and not backend_dir:
        raise InvalidArgument(
            f"unable to find Python backend based backend library '{_FILE}' for model '{config.name}': there is no "
            f"{config.backend}/{_FILE} below --backend-directory"
        )
