"""Writes model folders."""

import os
from pathlib import Path
from typing import Any

from broker.repository import Host, Repository, Snapshot
from conch.messages import Fault

TENSORS = """
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""


def write_model(
    root: Path,
    name: str,
    config: str | None = 'backend: "python"' + TENSORS,
    *,
    versions: tuple[str, ...] = ("1",),
    artifact: str = "model.py",
    files: dict[str, str] | None = None,
) -> Path:
    """A model's folder; ``config`` None leaves out config.pbtxt."""
    folder = root / name
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
    for version in versions:
        (folder / version).mkdir()
        (folder / version / artifact).write_text("# a model")
    for path, content in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


def repository(*folders: Path, **options: Any) -> Repository:
    """A ``Repository`` on a machine without GPUs."""
    options.setdefault("host", Host())
    return Repository(folders, folders[0].parent / "overrides", **options)


def found(result: Snapshot | Fault) -> Snapshot:
    assert isinstance(result, Snapshot), result
    return result


def refused(result: Snapshot | Fault) -> Fault:
    """Why a model could not be read, or cannot be loaded."""
    fault = result if isinstance(result, Fault) else result.fault
    assert fault is not None, result
    return fault


def touch(path: Path, seconds: float = 10.0) -> None:
    """Makes a file look as if it had been written later."""
    when = path.stat().st_mtime + seconds
    os.utime(path, (when, when))
