"""Folders that are made once, whoever needs them first, and are never seen half-finished.

An environment holds its own path in many places, so it is made where it will stay: in a folder with a name of its own,
which a marker that is written last holds. What a maker that died has left is thrown away by the next one; what its
children may still write there is in nobody's way.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger("conch.workers.environments")

_MARKER = "current"


class UnsafeCache(Exception):
    """The cache's folder belongs to somebody else, or others may write to it: what lies in it is going to be run."""


class Cache:
    """Made where it is not there yet. Raises ``UnsafeCache`` and ``OSError``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()  # a link on the way there may belong to somebody else
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise UnsafeCache(
                "the cache of environments belongs to another user or can be written to by others; "
                "choose another one with --environment-cache-dir"
            )
        self._folder = folder

    def made(self, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of that name, made by ``make`` unless somebody has done so. Whoever comes while it is being made,
        from whatever process, waits. What ``make`` raises is raised here, and the next caller tries again."""
        place = self._folder / key
        found = _whole(place)
        if found is not None:
            return found
        with _locked(self._folder / f"{key}.lock"):
            found = _whole(place)
            if found is not None:
                return found
            shutil.rmtree(place, ignore_errors=True)
            content = place / secrets.token_hex(4)
            content.mkdir(mode=0o700, parents=True)
            try:
                make(content)
                unfinished = content.with_suffix(".new")
                unfinished.write_text(content.name)
                unfinished.rename(place / _MARKER)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
            return content


def _whole(place: Path) -> Path | None:
    try:
        name = (place / _MARKER).read_text()
    except FileNotFoundError:
        return None
    return place / name if name and (place / name).is_dir() else None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that prepares the same environment")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
