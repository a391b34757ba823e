"""Has a model changed? A digest of its configuration and of the names, times and sizes of its files.

Contents are not read: a model may be gigabytes. Folders' own times do not count, because Python writes ``__pycache__``
into a version's folder when it loads the model, which is no change.
"""

import hashlib
import os
from collections.abc import Iterable

from broker.repository import config_file
from broker.repository.config_file import ModelConfigMessage

#: their content is part of the digest as the configuration that was read
_CONFIG_NAMES = frozenset({"config.pbtxt", "configs"})
#: what people edit, and models that training writes
_SOURCES = (".py", ".pbtxt", ".txt", ".json", ".yaml", ".yml", ".toml", ".onnx")


def version_hashes(
    config: ModelConfigMessage, model_dir: str, versions: Iterable[int], backend_dir: str = ""
) -> dict[int, str]:
    """A digest for each version, of all that a worker of it depends on, ``backend_dir`` included.

    Instance groups and the version policy are left out: they change how many workers there are, not what one is.
    """
    stable = config_file.copy(config)
    stable.ClearField("instance_group")
    stable.ClearField("version_policy")
    common = hashlib.sha256(config_file.to_json(stable).encode())
    common.update(b"\0" + os.fsencode(os.path.realpath(model_dir)) + b"\0")
    for stamp in _stamps_beside_versions(model_dir):
        common.update(stamp)
    if backend_dir:
        for stamp in _stamps(backend_dir, backend_dir):
            common.update(stamp)
    hashes = {}
    for version in versions:
        digest = common.copy()
        for stamp in _stamps(os.path.join(model_dir, str(version)), str(version)):
            digest.update(stamp)
        hashes[version] = digest.hexdigest()
    return hashes


def source_digest(model_dir: str, backend_dir: str) -> bytes:
    """Of the files that people edit, and of the names of all folders: for looking often. What a model may write into
    its own folder, as caches and logs, does not count. ``backend_dir`` may be empty."""
    digest = hashlib.sha256()
    for folder in filter(None, (model_dir, backend_dir)):
        for parent, below, files in os.walk(folder):
            below[:] = sorted(name for name in below if name != "__pycache__" and not name.startswith("."))
            digest.update(os.fsencode(parent) + b"\0")
            for name in sorted(files):
                if not name.startswith(".") and name.endswith(_SOURCES):
                    try:
                        found = os.stat(os.path.join(parent, name))
                    except OSError:  # it is just being replaced
                        continue
                    digest.update(f"{name}\0{found.st_mtime_ns}\0{found.st_size}\0".encode(errors="surrogateescape"))
    return digest.digest()


def _stamps_beside_versions(model_dir: str) -> Iterable[bytes]:
    for entry in sorted(os.scandir(model_dir), key=lambda entry: entry.name):
        if entry.name in _CONFIG_NAMES or entry.name.isdigit():
            continue
        if entry.is_dir():
            yield from _stamps(entry.path, entry.name)
        else:
            yield _stamp(entry, entry.name)


def _stamps(folder: str, relative: str) -> Iterable[bytes]:
    """Every file below ``folder``, in an order that depends on names only. Links to folders are not followed, so that a
    cycle ends."""
    if relative.endswith("__pycache__"):
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield f"{relative}\0{error.errno}\0".encode("utf-8", "surrogateescape")
        return
    for entry in entries:
        name = f"{relative}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _stamps(entry.path, name)
        else:
            yield _stamp(entry, name)


def _stamp(entry: os.DirEntry[str], name: str) -> bytes:
    try:
        found = entry.stat()
        text = f"{name}\0{found.st_mtime_ns}\0{found.st_size}\0"
    except OSError as error:  # a dangling link, or a file that is just being replaced
        text = f"{name}\0{error.errno}\0"
    return text.encode("utf-8", "surrogateescape")
