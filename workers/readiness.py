"""Asks a model whether it is ready, on a thread of its own, so that inference goes on and the broker hears the answer
even while the model runs."""

import logging
import queue
import threading
from collections.abc import Callable

from conch.messages import Checked

logger = logging.getLogger("conch.workers.readiness")


class ReadinessChecks:
    """``ask`` is the backend's ``is_ready``; ``post`` may be called from any thread. The thread starts with the first
    check; the broker sends the next one when this one has been answered."""

    def __init__(self, worker: str, ask: Callable[[], bool], post: Callable[[Checked], None]) -> None:
        self._worker = worker
        self._ask = ask
        self._post = post
        self._due: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def check(self, number: int) -> None:
        """To be called from one thread only."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="readiness", daemon=True)
            self._thread.start()
        self._due.put(number)

    def _run(self) -> None:
        while True:
            number = self._due.get()
            try:
                ready = self._ask()
            except BaseException:  # whatever a model raises, also SystemExit, this thread lives
                logger.exception("the model cannot say whether it is ready")
                ready = False
            self._post(Checked(self._worker, number, ready))
