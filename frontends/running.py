"""The life of a frontend process, the same for all protocols: settings, exit codes, and waiting to be told to stop."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

from conch.errors import ConchError
from conch.messages import ModelTable
from conch.process import DRAIN_SIGNAL, STOP_SIGNALS, begin
from conch.settings import Settings
from shm.arena import FIRST_SEGMENT_NBYTES
from shm.base import ArenaFull

_NEEDS_MEMORY = (
    f"It begins with {FIRST_SEGMENT_NBYTES} bytes of shared memory: make room in /dev/shm (--shm-size of a container), "
    "or raise the memory limit"
)


def run(
    title: str,
    logger: logging.Logger,
    is_wanted: Callable[[Settings], bool],
    serve: Callable[[Settings], Coroutine[Any, Any, bool]],
) -> int:
    """The process's exit code: 0 after a stop signal, or for a frontend that is not wanted; 1 if it cannot run, or if
    ``serve`` returns False: not everything could be finished in time. ``title`` is for logs."""
    try:
        settings = Settings.from_environ()
    except ConchError as error:
        logging.basicConfig()
        logger.error("%s", error.message)
        return 1
    begin(settings)
    if not is_wanted(settings):
        return 0
    try:
        finished = uvloop.run(serve(settings))
    except (ConchError, OSError) as error:
        logger.error("the %s frontend cannot run: %s", title, error)
        return 1
    except ArenaFull as error:
        logger.error("the %s frontend cannot run: %s. %s", title, error, _NEEDS_MEMORY)
        return 1
    if not finished:
        logger.error("Exit timeout expired. Exiting immediately.")
        return 1
    return 0


async def first(*events: asyncio.Event) -> None:
    """Returns when one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


class Life:
    """The steps of a frontend's life: the models are there or have failed (``loaded``), it says that it is not ready
    and serves on (``leaving``), it finishes what it has begun (``draining``), it cuts that off (``hurried``).

    To leave, SIGTERM takes the next step, and the other signals go as far as to drain. Leaving turns into draining
    after a delay, or when there is no broker any more that would take a request.
    """

    def __init__(self) -> None:
        self.loaded = asyncio.Event()
        self.leaving = asyncio.Event()
        self.draining = asyncio.Event()
        self.hurried = asyncio.Event()
        self._broker_exits = False

    def follow_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (*STOP_SIGNALS, DRAIN_SIGNAL):
            loop.add_signal_handler(number, self.signalled, number)

    def signalled(self, number: int) -> None:
        if self.draining.is_set():
            if number == signal.SIGTERM:
                self.hurried.set()
        elif number != signal.SIGTERM or self.leaving.is_set() or self._broker_exits:
            self.drain()
        else:
            self.leaving.set()

    def look_at(self, table: ModelTable) -> None:
        if table.server != "starting":
            self.loaded.set()
        self._broker_exits = table.server == "exiting"
        if self._broker_exits and self.leaving.is_set():
            self.drain()

    def drain(self) -> None:
        self.leaving.set()
        self.draining.set()

    async def serve_on(self, delay_s: float, part: Callable[[], None]) -> None:
        """From leaving to draining, in ``delay_s`` at most. In the middle, when load balancers have had time to notice,
        ``part`` asks clients to connect anew."""
        if delay_s and not await self._drains_within(delay_s / 2):
            part()
            await self._drains_within(delay_s / 2)
        self.drain()

    async def _drains_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.draining.wait(), seconds)
        except TimeoutError:
            return False
        return True
