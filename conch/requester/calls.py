"""Calls to the broker (load, register, statistics …) as a pure state machine: matched by number, never sent twice."""

import logging
from collections.abc import Iterator
from typing import Any

import msgspec

from conch.errors import ConchError, Internal, NotReady, from_fault
from conch.messages import (
    Answer,
    AskReady,
    AskStatistics,
    LoadModel,
    LogSettings,
    ModelStatistics,
    RegisterCudaRegion,
    RegisterRegion,
    TraceSettings,
    UnloadModel,
    UnregisterRegions,
    UpdateLogSettings,
    UpdateTraceSettings,
)

#: answered with nothing
Order = LoadModel | UnloadModel | RegisterRegion | RegisterCudaRegion | UnregisterRegions
Call = Order | AskReady | AskStatistics | UpdateLogSettings | UpdateTraceSettings
#: what the others are answered with
_RESULTS: dict[type[Call], Any] = {
    AskReady: bool,
    AskStatistics: list[ModelStatistics],
    UpdateLogSettings: LogSettings,
    UpdateTraceSettings: TraceSettings,
}

logger = logging.getLogger("conch.requester.calls")

EXITING = "Server exiting"
#: how long a call waits for a broker that is not there
HOLD_LIMIT_S = 10.0


class Waiting:
    """One call. ``owner`` belongs to the shell (its future)."""

    __slots__ = ("held_until", "message", "owner", "sent")

    def __init__(self, message: Call, owner: Any, held_until: float) -> None:
        self.message = message
        self.owner = owner
        self.held_until = held_until
        self.sent = False


class Calls:
    """A call that was sent and then lost its broker fails: whether it was carried out is not known. One that was not
    sent yet waits for the next broker."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._next_call = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self, message: Call, owner: Any, now: float) -> Waiting:
        """Numbers the call."""
        self._next_call += 1
        numbered = msgspec.structs.replace(message, call=self._next_call)
        waiting = self._waiting[self._next_call] = Waiting(numbered, owner, now + HOLD_LIMIT_S)
        return waiting

    def unsent(self) -> Iterator[Waiting]:
        """What is to be sent now that there is a broker, in order. The shell sets ``sent`` where that worked."""
        return (waiting for waiting in list(self._waiting.values()) if not waiting.sent)

    def answered(self, answer: Answer) -> tuple[Waiting, ConchError | None] | None:
        """None for an unknown call."""
        waiting = self._waiting.pop(answer.call, None)
        if waiting is None:
            return None
        return waiting, from_fault(answer.fault) if answer.fault is not None else None

    def forget(self, call: int) -> None:
        """Nobody waits for the answer any more."""
        self._waiting.pop(call, None)

    def broker_lost(self) -> list[tuple[Waiting, ConchError]]:
        gone = [waiting for waiting in self._waiting.values() if waiting.sent]
        return self._fail(gone, "the server restarted before it answered; whether the call was carried out is unknown")

    def tick(self, now: float) -> list[tuple[Waiting, ConchError]]:
        gone = [waiting for waiting in self._waiting.values() if not waiting.sent and waiting.held_until <= now]
        return self._fail(gone, "the server is restarting; try again")

    def stop_loading(self) -> list[tuple[Waiting, ConchError]]:
        """A load may take any time, and the server is about to exit."""
        loads = [waiting for waiting in self._waiting.values() if isinstance(waiting.message, LoadModel)]
        return self._fail(loads, EXITING)

    def close(self) -> list[tuple[Waiting, ConchError]]:
        return self._fail(list(self._waiting.values()), EXITING)

    def _fail(self, gone: list[Waiting], text: str) -> list[tuple[Waiting, ConchError]]:
        for waiting in gone:
            del self._waiting[waiting.message.call]
        return [(waiting, NotReady(text)) for waiting in gone]


def typed_result(message: Call, result: Any) -> Any:
    """What the broker answered, as the struct that ``message`` documents. Raises ``Internal``."""
    kind = _RESULTS.get(type(message))
    if kind is None:
        return None
    try:
        return msgspec.convert(result, kind)
    except msgspec.ValidationError as error:
        logger.error("the broker's answer to %s is not readable: %s", type(message).__name__, error)
        raise Internal("the server's answer is not readable") from error
