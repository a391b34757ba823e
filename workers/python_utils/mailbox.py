"""Responses on their way from the thread that receives them to the one that waits for them."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from conch.errors import Overloaded
from conch.later import Later
from conch.requester.inference import Outcome
from conch.windows import RESPONSES

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

MOST_WAITING = 2 * RESPONSES


class Delivery(NamedTuple):
    """One response; ``outcome`` is None for a final one that holds nothing."""

    outcome: Outcome | None
    final: bool


class Mailbox:
    """Filled by one thread, emptied by others. After a final response nothing more is taken in.

    No worker sends so many results that ``MOST_WAITING`` of them wait. Errors are not held back: at so many
    (``flooded``) there is a final one instead.
    """

    def __init__(self) -> None:
        # of the kind that its holder may take again: a garbage collection may ``close`` it anywhere
        self._lock = threading.RLock()
        self._deliveries: deque[Delivery] = deque()
        self._wakers: list[Callable[[], None]] = []
        #: nothing is taken in any more
        self._closed = False
        self.flooded = False

    def put(self, outcome: Outcome | None, final: bool) -> None:
        delivery = Delivery(outcome, final)
        with self._lock:
            if len(self._deliveries) >= MOST_WAITING and not final:
                self.flooded = True
                delivery = Delivery(Overloaded("the model answers with errors faster than they are read"), True)
            if self._closed:
                return  # dropped, and by that released: the sender may go on
            self._deliveries.append(delivery)
            if delivery.final:
                self._closed = True
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def take(self, wake: Callable[[], None]) -> Delivery | None:
        """The next one. None: ``wake`` will be called once, on the thread that fills, when it is worth to try again."""
        with self._lock:
            if self._deliveries:
                return self._deliveries.popleft()
            self._wakers.append(wake)
            return None

    def _forget(self, wake: Callable[[], None]) -> None:
        with self._lock:
            if wake in self._wakers:
                self._wakers.remove(wake)

    def wait(self) -> Delivery:
        filled = threading.Event()
        while (delivery := self.take(filled.set)) is None:
            filled.wait()
            filled.clear()
        return delivery

    async def wait_in_loop(self) -> Delivery:
        """``wait`` for a coroutine."""
        loop = asyncio.get_running_loop()
        while True:
            filled: asyncio.Future[None] = loop.create_future()

            def wake(filled: "asyncio.Future[None]" = filled) -> None:
                with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
                    loop.call_soon_threadsafe(_settle, filled)

            delivery = self.take(wake)
            if delivery is not None:
                return delivery
            try:
                await filled
            finally:
                self._forget(wake)  # whoever waits for a short time only, again and again, would pile them up

    def close(self) -> None:
        """Nobody will take anything any more: whatever is there, or comes, is dropped."""
        with self._lock:
            self._closed = True
            dropped, self._deliveries = self._deliveries, deque()
        dropped.clear()


def _settle(filled: "asyncio.Future[None]") -> None:
    if not filled.done():
        filled.set_result(None)
