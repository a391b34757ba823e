"""File work off the loop: one thread, one job after the other, results waited for through a descriptor."""

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("conch.broker.files")


class FileThread:
    """``submit`` jobs; when ``fileno`` is readable, ``results`` has what they returned, in the same order.

    A job that raises is logged and has ``failed`` as its result. The thread is a daemon: a network file system that
    hangs must not keep the broker from exiting.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None], Any] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], Any], then: Callable[[Any], None], failed: Any = None) -> None:
        """``then`` is called with the job's result, by ``deliver``."""
        self._jobs.put((job, then, failed))

    def deliver(self) -> bool:
        """Calls every ``then`` that is due, in this thread. False if there was none."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return False
        while not self._done.empty():
            then, result = self._done.get()
            then(result)
        return True

    def fileno(self) -> int:
        return self._wake

    def close(self, timeout_s: float) -> None:
        """Waits until everything submitted is done, at most so long."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, then, failed = item
            try:
                result = job()
            except Exception:  # whatever a file system or a configuration does, the broker lives
                logger.exception("file work failed")
                result = failed
            self._done.put((then, result))
            os.eventfd_write(self._wake, 1)
