"""A request that is on its way, as its caller and the requester see it."""

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from conch.errors import ConchError
from conch.messages import Block
from conch.requester.inference import InferenceResult, Outcome, RegionWindow
from conch.requester.links import WorkerLink
from conch.requester.shares import Share
from conch.windows import READ_NBYTES, READ_RESPONSES
from shm.lent import Lent

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("conch.requester.asked")

OnAnswer = Callable[[Outcome], None]
OnResponse = Callable[[Outcome | None, bool], None]
#: is told of a worker, a request and how many more of its responses have been read
SayRead = Callable[[WorkerLink, int, int], None]
_NO_TARGETS: dict[str, RegionWindow] = {}
#: of the kind that its holder may take again: a garbage collection may release results anywhere
_counting = threading.RLock()


class Asked:
    """What ``on_answer`` gets, it gets once, and nothing after ``cancel``."""

    __slots__ = ("_on_cancel", "block", "id", "lent", "on_answer", "regions", "share", "targets")

    def __init__(self, on_cancel: Callable[[int], None], on_answer: OnAnswer | OnResponse) -> None:
        self._on_cancel = on_cancel
        #: None when nobody waits any more
        self.on_answer: Callable[..., None] | None = on_answer
        #: 0 while the arena grows
        self.id = 0
        self.block: Block | None = None
        #: what the inputs count against
        self.share: Share | None = None
        #: numbers of the clients' regions that it uses, and what the client wants written to them
        self.regions: tuple[int, ...] = ()
        self.targets: dict[str, RegionWindow] = _NO_TARGETS
        #: others' memory that its inputs lie in
        self.lent: tuple[Lent, ...] = ()

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


class Stream(Asked):
    """One with any number of responses. After ``answer``, or a final response, or ``cancel`` there is no other."""

    __slots__ = ("_nbytes", "_responses", "_say_read", "decoupled")

    def __init__(
        self, on_cancel: Callable[[int], None], on_response: OnResponse, say_read: SayRead, decoupled: bool
    ) -> None:
        super().__init__(on_cancel, on_response)
        self._say_read = say_read
        self.decoupled = decoupled
        #: what has been read and not been said yet
        self._responses = 0
        self._nbytes = 0

    def answer(self, outcome: Outcome | None) -> None:
        self.respond(outcome, True)

    def respond(self, outcome: Outcome | None, final: bool) -> None:
        """Raises nothing."""
        on_response = self.on_answer
        if on_response is None:
            return
        if final:
            self.on_answer = None
        try:
            on_response(outcome, final)
        except Exception:  # as in ``answer``
            logger.exception("a response could not be handed on")

    def has_read(self, link: WorkerLink, nbytes: int) -> None:
        """Whoever asked has read a response of ``nbytes`` that came on ``link``. From any thread."""
        with _counting:
            self._responses += 1
            self._nbytes += nbytes
            if self._responses < READ_RESPONSES and self._nbytes < READ_NBYTES:
                return
            responses = self._responses
            self._responses = self._nbytes = 0
        if self.on_answer is not None:  # otherwise the worker does not wait for it
            self._say_read(link, self.id, responses)


def _make_lock() -> None:
    global _counting
    _counting = threading.RLock()


# in a forked child, nobody would let go of a lock that another thread held
os.register_at_fork(after_in_child=_make_lock)


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
