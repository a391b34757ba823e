"""Names and files that come with a load call, over the network: nothing of them may lead out of its place."""

import os
from pathlib import Path

from broker.repository.snapshot import Override
from conch.errors import InvalidArgument

#: marks folders that belong to a file override, so that left-over ones can be told from everything else
_PREFIX = "override-"


def check_model_name(name: str) -> None:
    """Raises ``InvalidArgument`` for a name that cannot be a folder's name (inventory L-07)."""
    if not name.strip():
        raise InvalidArgument("Model name cannot be empty. Please enter a valid name to deploy.")
    if name.strip() in ("..", ".") or "/" in name or "\0" in name:
        raise InvalidArgument(f"invalid model name '{name}', model name must not contain path traversal characters")


def write_files(override: Override, folder: Path) -> Override:
    """Writes the files of an override into a new folder below ``folder`` and names it in the result.

    Raises ``InvalidArgument`` for a path that leaves the model's folder, or that cannot be written. Nothing is left
    behind then.
    """
    if not override.files:
        return override
    if not override.config:
        raise InvalidArgument("Load parameter 'config' must be specified for model file override")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    model_dir = os.path.join(folder, f"{_PREFIX}{os.urandom(8).hex()}")
    os.mkdir(model_dir, 0o700)
    try:
        for name, content in override.files.items():
            _write(Path(model_dir), name.removeprefix("file:"), content)
    except BaseException:
        remove_folder(model_dir)
        raise
    return Override(config=override.config, folder=model_dir)


def remove_folder(folder: str) -> None:
    """Deletes the folder of a file override; anything else is left alone."""
    import shutil  # 5 ms that a start without overrides need not spend

    if os.path.basename(folder).startswith(_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


def remove_other_folders(folder: Path, keep: set[str]) -> None:
    """Deletes what earlier brokers' overrides left below ``folder``, except ``keep``."""
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.path not in keep:
                remove_folder(entry.path)


def _write(model_dir: Path, name: str, content: bytes) -> None:
    parts = name.split("/")
    if name.startswith("/") or "\0" in name or any(part in ("..", ".", "") for part in parts):
        raise InvalidArgument(f"Invalid file parameter 'file:{name}' must stay within model directory.")
    path = model_dir.joinpath(*parts)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "xb") as file:
            file.write(content)
    except OSError as error:  # a name that is too long, a file where a folder should be, a full disk
        raise InvalidArgument(f"Invalid file parameter 'file:{name}': {error.strerror}") from error
