"""Keeps the models' logs from filling the disk.

Several processes append to one log, and what a model starts may hold it as well: none of them could be told to open
another file. So a log that has become long is copied and then cut to nothing; what is written in between is lost. A log
that grows faster than it makes sense to copy, and one that there is no room for, is cut without a copy.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Collection
from math import inf
from pathlib import Path

from conch.seldom import Seldom
from workers.looks import next_look_s

logger = logging.getLogger("conch.workers.launcher")

#: as the logs of the server's own processes
MAX_LOG_NBYTES = 20 << 20
KEPT_LOGS = 3
LOOK_S = 1.0
SOONEST_LOOK_S = 0.05
#: between two copies of one log
COPY_EVERY_S = 2.0
_COPIED_AT_ONCE_NBYTES = 1 << 20


class _Log:
    def __init__(self, now: float) -> None:
        self.nbytes = 0
        self.looked_at = now
        self.next_look = now
        self.copied_at = -inf
        self.dropped = Seldom()


class LogBounds:
    """Copies are made on a thread, one at a time: a slow disk must not keep the launcher from seeing deaths."""

    def __init__(self) -> None:
        self._logs: dict[Path, _Log] = {}
        self._copying: threading.Thread | None = None

    @property
    def next_look(self) -> float:
        return min((log.next_look for log in self._logs.values()), default=-inf)

    def look(self, paths: Collection[Path], now: float) -> None:
        """``paths``: of the logs that somebody may write to."""
        self._logs = {path: self._logs.get(path) or _Log(now) for path in paths}
        for path, log in self._logs.items():
            if log.next_look > now:
                continue
            try:
                nbytes = os.stat(path).st_size
            except OSError:
                nbytes = 0
            grown, elapsed_s = nbytes - log.nbytes, now - log.looked_at
            if nbytes > MAX_LOG_NBYTES:
                self._shorten(path, log, now)
                nbytes = 0
            log.next_look = now + next_look_s(nbytes, nbytes - grown, elapsed_s, MAX_LOG_NBYTES, SOONEST_LOOK_S, LOOK_S)
            log.nbytes, log.looked_at = nbytes, now

    def close(self) -> None:
        if self._copying is not None:
            self._copying.join()

    def _shorten(self, path: Path, log: _Log, now: float) -> None:
        if self._copying is not None:
            if self._copying.is_alive():
                return
            self._copying = None
        if now - log.copied_at < COPY_EVERY_S:
            if log.dropped.is_told(now):
                logger.warning("%s grows so fast that parts of it are dropped", path.name)
            _cut(path)
            return
        log.copied_at = now
        thread = threading.Thread(target=rotate, args=[path], daemon=True)
        try:
            thread.start()
            self._copying = thread
        except RuntimeError:  # no more threads may be started
            _cut(path)


def rotate(path: Path) -> None:
    """``NAME.log`` becomes ``NAME.log.1``, that ``NAME.log.2``, and so on; the oldest goes."""
    copy = _old(path, 1)
    try:
        for number in range(KEPT_LOGS - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(_old(path, number), _old(path, number + 1))
        _copy(path, copy)
    except OSError as error:
        logger.warning("%s cannot be kept, it is cut to nothing: %s", path.name, error.strerror)
        with contextlib.suppress(OSError):
            os.unlink(copy)
    _cut(path)


def _old(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _copy(path: Path, copy: Path) -> None:
    """The end of it, as much as one log may have."""
    with path.open("rb") as source, copy.open("wb") as target:
        offset = max(0, os.fstat(source.fileno()).st_size - MAX_LOG_NBYTES)
        end = offset + MAX_LOG_NBYTES
        while offset < end:
            sent = os.sendfile(target.fileno(), source.fileno(), offset, min(_COPIED_AT_ONCE_NBYTES, end - offset))
            if not sent:
                return
            offset += sent


def _cut(path: Path) -> None:
    """Needs no descriptor. Writers go on at the beginning, because they append."""
    try:
        os.truncate(path, 0)
    except OSError as error:
        logger.warning("%s cannot be cut: %s", path.name, error.strerror)
