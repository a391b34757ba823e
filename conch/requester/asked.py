"""A request that is on its way, as its caller and the requester see it."""

import asyncio
import logging
from collections.abc import Callable

from conch.errors import ConchError
from conch.messages import Block
from conch.requester.inference import InferenceResult, Outcome, RegionWindow

logger = logging.getLogger("conch.requester.asked")

OnAnswer = Callable[[Outcome], None]
_NO_TARGETS: dict[str, RegionWindow] = {}


class Asked:
    """What ``on_answer`` gets, it gets once, and nothing after ``cancel``."""

    __slots__ = ("_on_cancel", "block", "id", "on_answer", "regions", "targets")

    def __init__(self, on_cancel: Callable[[int], None], on_answer: OnAnswer) -> None:
        self._on_cancel = on_cancel
        #: None when nobody waits any more
        self.on_answer: OnAnswer | None = on_answer
        #: 0 while the arena grows
        self.id = 0
        self.block: Block | None = None
        #: numbers of the clients' regions that it uses, and what the client wants written to them
        self.regions: tuple[int, ...] = ()
        self.targets: dict[str, RegionWindow] = _NO_TARGETS

    def cancel(self) -> None:
        """Does nothing once there is an answer."""
        if self.on_answer is not None:
            self.on_answer = None
            self._on_cancel(self.id)

    def answer(self, outcome: Outcome) -> None:
        """Raises nothing."""
        on_answer = self.on_answer
        if on_answer is None:
            return
        self.on_answer = None
        try:
            on_answer(outcome)
        except Exception:  # others, whose answers came in the same message, must get theirs
            logger.exception("an answer could not be handed on")


def settle(future: "asyncio.Future[InferenceResult]", outcome: Outcome) -> None:
    """``on_answer`` for a future."""
    if future.done():
        return  # cancelled a moment ago; a result that is dropped is released
    if isinstance(outcome, ConchError):
        future.set_exception(outcome)
        future.exception()  # seen: whoever waits may have been cancelled a moment ago, and that is no error
    else:
        future.set_result(outcome)


def cancel_with(asked: Asked, future: "asyncio.Future[InferenceResult]") -> None:
    """For ``future.add_done_callback``."""
    if future.cancelled():
        asked.cancel()
