"""The shell around ``conch.requester.calls``: futures, and sending."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from conch.channels.seqpacket import MessageTooLong
from conch.errors import ConchError, InvalidArgument, NotReady
from conch.later import Later
from conch.messages import Answer, LoadModel
from conch.requester.calls import EXITING, Call, Calls, Waiting, typed_result

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

#: what sending raises for a message that no peer could read, for instance with a number of more than 64 bits
NOT_SENDABLE = (MessageTooLong, OverflowError, TypeError, ValueError, msgspec.MsgspecError)


class BrokerCalls:
    """``welcome``: whether a broker knows us now. ``send`` takes a numbered call and returns False if it could not be
    sent now."""

    def __init__(self, welcome: Callable[[], bool], send: Callable[[Call], bool]) -> None:
        self._welcome = welcome
        self._send = send
        self._calls = Calls()
        self._loads_refused = False

    async def ask(self, message: Call) -> Any:
        """Raises what the broker answers, and ``NotReady`` when there is none or it went away."""
        if self._loads_refused and isinstance(message, LoadModel):
            raise NotReady(EXITING)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting = self._calls.start(message, future, time.monotonic())
        try:
            self.send_waiting()
            return typed_result(message, await future)
        finally:
            self._calls.forget(waiting.message.call)
            # the traceback of an error leads here: they would hold each other, and with them the files of a load
            del future, waiting

    def send_waiting(self) -> None:
        """To be called after every ``Welcome``."""
        if not self._welcome():
            return
        for waiting in self._calls.unsent():
            try:
                waiting.sent = self._send(waiting.message)
            except NOT_SENDABLE as error:
                self._fail([(waiting, InvalidArgument(f"the call cannot be passed on: {error}"))])

    def broker_lost(self) -> None:
        self._fail(self._calls.broker_lost())

    def answered(self, message: Answer) -> None:
        found = self._calls.answered(message)
        if found is None:
            return
        waiting, error = found
        if error is not None:
            self._fail([(waiting, error)])
        elif not waiting.owner.done():
            waiting.owner.set_result(message.result)

    def tick(self, now: float) -> None:
        self._fail(self._calls.tick(now))

    def stop_loading(self) -> None:
        """Loads that wait fail, and so do those to come."""
        self._loads_refused = True
        self._fail(self._calls.stop_loading())

    def close(self) -> None:
        self._fail(self._calls.close())

    def _fail(self, failed: list[tuple[Waiting, ConchError]]) -> None:
        for waiting, error in failed:
            if not waiting.owner.done():
                waiting.owner.set_exception(error)
