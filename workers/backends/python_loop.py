"""The event loop of a model whose ``execute`` is a coroutine."""

import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from conch.later import Later

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")


class ModelLoop:
    """One loop for the model's life. It runs on the caller's thread until something is left to be done afterwards, and
    from then on in a thread of its own: the way over costs more than most coroutines."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Waits for it; what it has started runs on."""
        if self._thread is not None:
            return self.start(coroutine).result()
        try:
            return self._loop.run_until_complete(coroutine)
        finally:
            if asyncio.all_tasks(self._loop):
                self._run_in_thread()

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> "concurrent.futures.Future[Any]":
        """Does not wait for it."""
        if self._thread is None:
            self._run_in_thread()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _run_in_thread(self) -> None:
        self._thread = threading.Thread(target=self._run_for_ever, name="model's event loop", daemon=True)
        self._thread.start()

    def _run_for_ever(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
