"""Answers that come later, whatever the protocol."""

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

logger = logging.getLogger("conch.frontends.deferred")

Reply = TypeVar("Reply")


class Deferred(Generic[Reply]):
    """An answer that comes later. Whoever makes it calls ``finish``, once and not before the engine has this object."""

    __slots__ = ("on_reply",)

    #: set by the engine
    on_reply: Callable[[Reply], None]

    def cancel(self) -> None:
        """The client has gone, or its deadline has passed. ``finish`` may be called nevertheless."""
        raise NotImplementedError

    def finish(self, render: Callable[[Any], Reply], outcome: Any) -> None:
        """Sends the reply that ``render`` makes of ``outcome``. An exception is a bug, logged and answered as one."""
        try:
            reply = render(outcome)
        except Exception:
            logger.exception("an answer could not be written")
            reply = self.internal_error()
        self.on_reply(reply)

    def internal_error(self) -> Reply:
        """What a client gets to see of a bug."""
        raise NotImplementedError
