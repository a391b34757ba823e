"""Requests whose inputs wait for room: reserving memory takes milliseconds, so it is done off the loop."""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from conch.errors import Overloaded, from_fault
from conch.later import Later
from conch.messages import Block
from conch.requester.asked import Asked
from conch.requester.pending import CLOSING
from conch.seldom import Seldom
from shm.arena import Arena
from shm.base import ArenaFull

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

logger = logging.getLogger("conch.requester.growth")


class Growth:
    """Lets ``arena`` grow for one request at a time. Belongs to the loop's thread."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._lock = asyncio.Lock()
        self._tasks: dict[asyncio.Task[None], Asked] = {}
        self._full = Seldom()
        self._failed = Seldom()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, asked: Asked, nbytes: int, go_on: Callable[[Block | None], None]) -> None:
        """``go_on`` gets a block of ``nbytes``, or None where ``asked`` has been answered or cancelled meanwhile."""
        task = asyncio.get_running_loop().create_task(self._grow(asked, nbytes, go_on))
        self._tasks[task] = asked
        task.add_done_callback(self._tasks.pop)

    async def _grow(self, asked: Asked, nbytes: int, go_on: Callable[[Block | None], None]) -> None:
        block = None
        try:
            async with self._lock:
                while self._arena.needs_growth(nbytes) and asked.on_answer is not None:
                    await asyncio.get_running_loop().run_in_executor(None, self._arena.grow, nbytes)
            if asked.on_answer is not None:
                block = self._arena.allocate(nbytes)
        except ArenaFull as error:
            if self._full.is_told(time.monotonic()):
                logger.warning("%s", error)
            asked.answer(Overloaded("the server's memory for inputs is full; try again later"))
        except Exception:  # no thread, for instance: whoever asked must hear of it
            if self._failed.is_told(time.monotonic()):
                logger.exception("the memory for inputs cannot grow")
            asked.answer(Overloaded("the server cannot make room for inputs at the moment; try again later"))
        go_on(block)

    async def close(self) -> None:
        """Answers everyone, and waits until nothing grows any more."""
        for asked in self._tasks.values():
            asked.answer(from_fault(CLOSING))
        await asyncio.gather(*self._tasks)
