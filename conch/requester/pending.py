"""The requester's view of its requests, as a pure state machine: events in, instructions out.

``docs/design.md`` ("The requester's view") has the table that this implements. There are no sockets and no clock in
here: the shell (``conch.requester.requester``) reports what happened and when (seconds of the monotonic clock), and
carries out what comes back, in order. Every method leaves the machine consistent before the instructions are carried
out, so an instruction may lead to the next event.

The state of an entry says who waits: nobody has it yet (``HELD``), the broker or a worker has it and the caller waits
(``SUBMITTED``), or the caller has gone or was answered and only the inputs wait (``ABANDONED``).
"""

import heapq
from collections.abc import Callable
from enum import IntEnum
from itertools import zip_longest
from typing import Any

import msgspec

from conch.errors import Overloaded, from_fault
from conch.messages import (
    PROTOCOL_VERSION,
    Awaited,
    Cancel,
    Fault,
    Lease,
    Lost,
    Rejected,
    Request,
    RequesterHello,
    Response,
    Retired,
    Unwelcome,
    Welcome,
)
from conch.requester.request_ids import unguessable_ids

#: how long a request waits for a broker to submit it to
HOLD_LIMIT_S = 10.0
#: requests that may wait for a broker at a time
MAX_HELD = 1_000
#: how long a submitted request waits for an answer while there is no broker. A worker answers without one, so this is
#: longer than any restart.
OUTAGE_LIMIT_S = 60.0
#: a HELLO without an answer is repeated after this
HELLO_RETRY_S = 1.0
#: A request ends at its second death of a worker that ran it alone. This ends what is lost otherwise, again and again,
#: for instance a request that kills every broker.
MAX_LOSSES = 4

NO_BROKER = Fault("NotReady", "the server is restarting; try again")
CLOSING = Fault("NotReady", "Server exiting")
DEADLINE_PASSED = Fault("Cancelled", "the deadline of the request has passed")


class State(IntEnum):
    HELD = 0
    SUBMITTED = 1
    ABANDONED = 2
    GONE = 3


# a member of an enumeration is slow to look up
_HELD = State.HELD
_SUBMITTED = State.SUBMITTED
_GONE = State.GONE


class Entry:
    """One request. ``owner`` belongs to the shell (its future, its arena block)."""

    __slots__ = ("held_until", "idempotent", "losses", "owner", "request", "responses", "state")

    def __init__(self, request: Request, idempotent: bool, owner: Any = None) -> None:
        self.request = request
        self.idempotent = idempotent
        self.owner = owner
        self.state = _HELD
        self.responses = 0
        self.losses = 0
        self.held_until = 0.0


class Send(msgspec.Struct, frozen=True, gc=False):
    """To the broker. If a request cannot be sent, the shell reports ``not_sent``. A HELLO and a ``Cancel`` come again
    by themselves."""

    message: Request | Cancel | RequesterHello


class Deliver(msgspec.Struct, frozen=True, gc=False):
    """A response for whoever waits; its lease is the receiver's from now on. After a final one no other follows."""

    entry: Entry
    response: Response


class Fail(msgspec.Struct, frozen=True, gc=False):
    """The answer is an error. No other answer follows."""

    entry: Entry
    fault: Fault


class FreeInputs(msgspec.Struct, frozen=True, gc=False):
    """Nobody reads the inputs any more."""

    entry: Entry


class GiveBack(msgspec.Struct, frozen=True, gc=False):
    """The lease of a response that nobody waits for."""

    lease: Lease


Instruction = Send | Deliver | Fail | FreeInputs | GiveBack


class Pending:
    """All requests of one requester.

    ``connected`` and ``welcome`` are the broker's side of it: only between a ``Welcome`` and the next disconnection are
    requests sent; otherwise they are held.
    """

    def __init__(self, requester: str, role: str, pid: int, max_inflight: int, now: float) -> None:
        self._requester = requester
        self._role = role
        self._pid = pid
        self._max_inflight = max_inflight
        self._entries: dict[int, Entry] = {}
        self._held: dict[int, Entry] = {}  # in the order in which they are to be sent
        self._deadlines: list[tuple[float, int]] = []
        #: for a new request
        self.new_id: Callable[[], int] = unguessable_ids().__next__
        self._connected = False
        self._welcome = False
        self._closed = False
        self._epoch = 0
        self._last_loss = 0
        self._said_hello_at = now
        self._outage_since = now

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def welcome(self) -> bool:
        return self._welcome

    @property
    def held(self) -> int:
        return len(self._held)

    def check_capacity(self) -> None:
        """Raises ``Overloaded`` when one more request would be over a bound, and ``NotReady`` after ``close``. To be
        called before ``submit``."""
        if self._closed:
            raise from_fault(CLOSING)
        if len(self._entries) >= self._max_inflight:
            raise Overloaded("too many requests in flight; try again")
        if not self._welcome and len(self._held) >= MAX_HELD:
            raise Overloaded("too many requests wait for the server to restart; try again")

    # ------------------------------------------------------------------------------------------------- the caller

    def submit(self, entry: Entry, now: float) -> list[Instruction]:
        """A new request, first attempt, with an id from ``new_id``. Its inputs lie in the arena."""
        return [Send(entry.request)] if self.admit(entry, now) else []

    def admit(self, entry: Entry, now: float) -> bool:
        """``submit`` without instructions: whether the request is to be sent."""
        request = entry.request
        self._entries[request.id] = entry
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.id))
        if self._welcome:
            entry.state = _SUBMITTED
            return True
        self._hold(entry, now)
        return False

    def abandon(self, id: int) -> list[Instruction]:
        """The caller has gone: it reads no answer any more. Unknown and already abandoned ids are ignored."""
        entry = self._entries.get(id)
        if entry is None or entry.state == State.ABANDONED:
            return []
        if entry.state == State.HELD:
            return [self._drop(entry)]
        return self._abandon(entry)

    def close(self) -> list[Instruction]:
        """Everyone who waits is answered, and everything is dropped: the arena goes away with the process."""
        self._closed = True
        instructions: list[Instruction] = []
        for entry in list(self._entries.values()):
            instructions += self._end(entry, CLOSING)
        return instructions

    # ------------------------------------------------------------------------------------------------ the workers

    def finish(self, response: Response) -> Entry | None:
        """The usual case of ``response`` without instructions: the one answer to a request that waits for it. Its entry
        is gone now: the inputs are to be freed and the response delivered. None: nothing has changed, ask ``response``.
        """
        entries = self._entries
        entry = entries.get(response.id)
        if (
            entry is None
            or entry.state is not _SUBMITTED
            or entry.request.attempt != response.attempt
            or not response.final
            or response.inputs_held
        ):
            return None
        del entries[response.id]
        entry.state = _GONE
        return entry

    def response(self, response: Response) -> list[Instruction]:
        entry = self.finish(response)
        if entry is not None:
            return [FreeInputs(entry), Deliver(entry, response)]
        entry = self._entries.get(response.id)
        if entry is None or entry.request.attempt != response.attempt:
            return [] if response.lease is None else [GiveBack(response.lease)]
        if not response.final:
            if entry.state == State.ABANDONED:
                return [] if response.lease is None else [GiveBack(response.lease)]
            entry.responses += 1
            return [Deliver(entry, response)]
        waits = entry.state != State.ABANDONED
        instructions: list[Instruction] = []
        if response.inputs_held:
            # The broker says Retired for what was cancelled and for nothing else.
            if waits:
                instructions = self._abandon(entry)
        else:
            instructions.append(self._drop(entry))
        if waits:
            instructions.append(Deliver(entry, response))
        elif response.lease is not None:
            instructions.append(GiveBack(response.lease))
        return instructions

    # ------------------------------------------------------------------------------------------------- the broker

    def retired(self, message: Retired) -> list[Instruction]:
        instructions: list[Instruction] = []
        for id in message.ids:
            entry = self._entries.get(id)
            if entry is None:
                continue
            if entry.state != State.ABANDONED:
                instructions.append(Fail(entry, Fault("Internal", "the request was retired without an answer")))
            instructions.append(self._drop(entry))
        return instructions

    def rejected(self, message: Rejected) -> list[Instruction]:
        entry = self._entries.get(message.id)
        if entry is None or entry.request.attempt != message.attempt:
            return []
        return self._end(entry, message.fault)

    def lost(self, message: Lost, now: float) -> list[Instruction]:
        """To be called after everything that the dead worker had sent was given to ``response``; what all workers had
        sent, if the message names none."""
        self._last_loss = message.number
        instructions: list[Instruction] = []
        ran = bool(message.worker)
        for id, attempt in zip_longest(message.ids, message.attempts):
            entry = self._entries.get(id)
            if entry is None or entry.state == State.HELD or attempt not in (entry.request.attempt, None):
                continue
            request = entry.request
            entry.losses += 1
            convicted = message.alone and request.attempt > 1
            why_not = _why_not_again(entry, convicted)
            if why_not or entry.state == State.ABANDONED:
                cause = message.cause
                instructions += self._end(entry, Fault(cause.kind, f"{cause.message}; {why_not}"))
                continue
            if ran:
                entry.request = request = msgspec.structs.replace(request, attempt=request.attempt + 1)
            if self._welcome:
                instructions.append(Send(request))
            else:
                self._hold(entry, now)
        return instructions

    def connected(self, now: float) -> list[Instruction]:
        """A connection to a broker came up, perhaps another broker's."""
        self._connected = True
        self._lose_welcome(now)
        return [self._hello(now)]

    def disconnected(self, now: float) -> None:
        self._connected = False
        self._lose_welcome(now)

    def welcomed(self, message: Welcome) -> list[Instruction]:
        """Sends what was held, and cancels again what was abandoned: a new broker does not know of it."""
        if message.epoch != self._epoch:
            self._epoch = message.epoch
            self._last_loss = 0
        if self._welcome:
            return []
        self._connected = self._welcome = True
        instructions: list[Instruction] = [
            Send(Cancel(self._requester, entry.request.id))
            for entry in self._entries.values()
            if entry.state == State.ABANDONED
        ]
        for entry in self._held.values():
            entry.state = State.SUBMITTED
            instructions.append(Send(entry.request))
        self._held.clear()
        return instructions

    def unwelcome(self, message: Unwelcome, now: float) -> list[Instruction]:
        """The broker dropped a message of ours because it does not know us: what it dropped is in the next HELLO. While
        a HELLO is under way, this is about something sent before it."""
        del message
        if not self._welcome:
            return []
        self._lose_welcome(now)
        return [self._hello(now)]

    def not_sent(self, request: Request, now: float) -> None:
        """The transport could not take it: the broker is away, or does not keep up. It is held."""
        entry = self._entries.get(request.id)
        if entry is not None and entry.state == State.SUBMITTED and entry.request.attempt == request.attempt:
            self._hold(entry, now)

    # --------------------------------------------------------------------------------------------------- the clock

    def tick(self, now: float) -> list[Instruction]:
        """To be called about twice a second."""
        instructions: list[Instruction] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, id = heapq.heappop(self._deadlines)
            entry = self._entries.get(id)
            if entry is not None and entry.state != State.ABANDONED:
                instructions.append(Fail(entry, DEADLINE_PASSED))
                instructions += self.abandon(id)
        if len(self._deadlines) > 2 * len(self._entries) + 1000:  # mostly of requests that are gone
            self._deadlines = [item for item in self._deadlines if item[1] in self._entries]
            heapq.heapify(self._deadlines)
        for entry in [entry for entry in self._held.values() if entry.held_until <= now]:
            instructions += self._end(entry, NO_BROKER)
        if self._welcome:
            for entry in self._held.values():
                entry.state = State.SUBMITTED
                instructions.append(Send(entry.request))
            self._held.clear()
        else:
            if now - self._outage_since >= OUTAGE_LIMIT_S:
                for entry in self._entries.values():
                    if entry.state == State.SUBMITTED:
                        entry.state = State.ABANDONED
                        instructions.append(Fail(entry, NO_BROKER))
            if self._connected and now - self._said_hello_at >= HELLO_RETRY_S:
                instructions.append(self._hello(now))
        return instructions

    def outage_s(self, now: float) -> float:
        """How long there has been no broker; 0 while there is one."""
        return 0.0 if self._welcome else now - self._outage_since

    # ------------------------------------------------------------------------------------------------------ inside

    def _hold(self, entry: Entry, now: float) -> None:
        entry.state = State.HELD
        entry.held_until = now + HOLD_LIMIT_S
        self._held[entry.request.id] = entry

    def _drop(self, entry: Entry) -> FreeInputs:
        id = entry.request.id
        del self._entries[id]
        if entry.state == State.HELD:
            self._held.pop(id, None)
        entry.state = State.GONE
        return FreeInputs(entry)

    def _end(self, entry: Entry, fault: Fault) -> list[Instruction]:
        """Nobody holds the request any more: whoever waits is answered with ``fault``."""
        waits = entry.state != State.ABANDONED
        freed = self._drop(entry)
        return [freed, Fail(entry, fault)] if waits else [freed]

    def _abandon(self, entry: Entry) -> list[Instruction]:
        if entry.state == State.HELD:
            self._held.pop(entry.request.id, None)
        entry.state = State.ABANDONED
        return [Send(Cancel(self._requester, entry.request.id))] if self._welcome else []

    def _lose_welcome(self, now: float) -> None:
        if self._welcome:
            self._welcome = False
            self._outage_since = now

    def _hello(self, now: float) -> Send:
        self._said_hello_at = now
        awaited = tuple(
            Awaited(request.id, request.attempt, request.model, request.version, request.parent)
            for request in (entry.request for entry in self._entries.values() if entry.state != State.HELD)
        )
        return Send(
            RequesterHello(
                PROTOCOL_VERSION, self._requester, self._role, self._pid, awaited, self._epoch, self._last_loss
            )
        )


def _why_not_again(entry: Entry, convicted: bool) -> str:
    """Why a request that was lost is not run again, as a client is told; nothing if it is."""
    if entry.responses:
        return f"the stream ends here, after {entry.responses} response{'s' if entry.responses > 1 else ''}"
    if entry.request.sequence is not None:
        return "its sequence is lost with it and has to be started again"
    if not entry.idempotent:
        return "the request is not run again, because it may run only once"
    if convicted:
        return (
            f"the request was run {entry.request.attempt} times and is not run again; the model's log has the details"
        )
    if entry.losses > MAX_LOSSES:
        return f"the request was lost {entry.losses} times and is not tried again"
    return ""
