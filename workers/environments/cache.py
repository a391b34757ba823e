"""Folders that are made once, whoever needs them first, and are never seen half-finished.

An environment holds its own path in many places, so it is made where it will stay, and a marker that is written last
says that it is whole. What a maker that died has left is thrown away by the next one.
"""

import contextlib
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger("conch.workers.environments")

_CONTENT = "content"
_WHOLE = "whole"


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
        whole = place / _WHOLE
        if whole.exists():
            return place / _CONTENT
        with _locked(self._folder / f"{key}.lock"):
            if whole.exists():
                return place / _CONTENT
            shutil.rmtree(place, ignore_errors=True)
            content = place / _CONTENT
            content.mkdir(mode=0o700, parents=True)
            try:
                make(content)
                whole.touch()
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
            return content


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
