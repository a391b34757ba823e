"""Answers to one request, from any thread: while its batch runs, or later.

Most requests are answered by what the backend returns, all of a batch together (``workers.batch``). The others are
answered here: requests to decoupled models, and those whose model took a response sender.
"""

import logging
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any
from weakref import ref

from conch.errors import ConchError, to_fault
from conch.messages import Closed, Dispatch, Fault, Response, TensorDescription
from shm.base import ArenaFull
from shm.client_regions import ClientWindow
from shm.leases import LeasedArena
from workers.backends.base import Input, InputHold, ReplyClosed, Result
from workers.broker_link import Reports
from workers.flow import Flow
from workers.outputs import Place, place
from workers.responses import Connections
from workers.shapes import Reshapes
from workers.shared_state import SharedState

logger = logging.getLogger("conch.workers.replies")

#: between looks whether other requests' responses have been read
_ROOM_LOOK_MS = 20
_NO_TARGETS: Mapping[str, ClientWindow] = MappingProxyType({})
_NOTHING = Result()


class Desk:
    """What all answers of a worker go through. ``lock`` guards the connections, the arena and the connection to the
    broker; bytes are copied outside of it.

    The lock can be taken twice only so that this can be told: a garbage collection under it may run a model's finalizer
    that sends.
    """

    def __init__(
        self,
        lock: threading.RLock,
        connections: Connections,
        arena: LeasedArena,
        reports: Reports,
        shared: SharedState,
    ) -> None:
        self.lock = lock
        self.connections = connections
        self.arena = arena
        self.reports = reports
        self.shared = shared
        self.reshapes: Reshapes | None = None
        self.closed = False
        #: what the main thread has to see to, and requests whose inputs are still read
        self._dropped: deque[Replies] = deque()
        self._late: deque[tuple[Replies, Result | None, bool]] = deque()
        self._released: deque[Replies] = deque()
        self._held: set[Replies] = set()
        shared.on_cancel = self._cancelled

    def _cancelled(self, requester: str, id: int) -> None:
        flow = self.connections.streams.get((requester, id))
        if flow is not None:
            flow.wake()

    def dropped(self, replies: "Replies") -> None:
        """Nobody can answer it any more. May be called in the middle of anything, so the main thread does the work."""
        self._dropped.append(replies)
        self.shared.wake()

    def is_locked_here(self) -> bool:
        owned: bool = self.lock._is_owned()  # type: ignore[attr-defined]
        return owned

    def send_later(self, replies: "Replies", result: Result | None, final: bool) -> None:
        self._late.append((replies, result, final))
        self.shared.wake()

    def hold(self, replies: "Replies", hold: InputHold) -> None:
        """``replies`` has had its final response, but ``hold`` is alive. To be called with the lock."""
        self._held.add(replies)
        replies.hold = ref(hold, lambda _: self._release(replies))

    def _release(self, replies: "Replies") -> None:
        """As ``dropped``."""
        self._released.append(replies)
        self.shared.wake()

    def attend(self) -> None:
        """On the main thread, without the lock."""
        while self._late:
            replies, result, final = self._late.popleft()
            with suppress(ReplyClosed):
                replies.send(result, final)
        while self._dropped:
            replies = self._dropped.popleft()
            model = replies.request.model
            logger.error(
                "'%s' dropped a response sender of request %d without a final response", model, replies.request.id
            )
            text = f"model '{model}' dropped its response sender without a final response; each request needs one"
            with suppress(ReplyClosed):
                replies.send(Result(error=Fault("ModelError", text)), True)
        while self._released:
            replies = self._released.popleft()
            with self.lock:
                if replies in self._held:
                    self._let_go(replies)

    def let_go(self) -> None:
        """The worker is to end: what the model keeps of inputs whose requests were answered is not waited for."""
        with self.lock:
            for replies in tuple(self._held):
                self._let_go(replies)

    def _let_go(self, replies: "Replies") -> None:
        self._held.discard(replies)
        replies.held = False
        if replies.open:
            self.reports.closed(replies.report())

    def close(self) -> None:
        """The process ends: whoever still sends gets ``ReplyClosed``."""
        with self.lock:
            self.closed = True
            for flow in self.connections.streams.values():
                flow.wake()


class Replies:
    """See ``workers.backends.base.Replies``. Everything but ``send`` and ``is_cancelled`` needs the lock.

    ``flow``: of requests to decoupled models. ``targets``: outputs that go to the client's own memory. ``inputs`` and
    ``hold``: set if these inputs have been lent. ``open``: the batch is over and the broker waits for ``Closed``;
    ``held``: the final response has been sent, but somebody still reads the inputs. ``failed``: the last that was
    answered is an error.
    """

    __slots__ = (
        "__weakref__",
        "_desk",
        "_index",
        "before_final",
        "closed",
        "failed",
        "flow",
        "held",
        "hold",
        "inputs",
        "open",
        "request",
        "requester",
        "targets",
        "undelivered",
    )

    def __init__(self, desk: Desk, dispatch: Dispatch, flow: Flow | None) -> None:
        self._desk = desk
        self.requester = dispatch.requester
        self.request = dispatch.request
        self.flow = flow
        self.targets = _NO_TARGETS
        self.before_final: Callable[[], None] | None = None
        self.inputs: list[Input] | None = None
        self.hold: Any = None
        self._index = 0
        self.closed = self.open = self.held = self.failed = self.undelivered = False

    def is_cancelled(self) -> bool:
        flow = self.flow
        return self._desk.shared.is_cancelled(self.requester, self.request.id) or (flow is not None and flow.broken)

    def __del__(self) -> None:
        if self.open and not self.closed:
            self._desk.dropped(self)

    # ------------------------------------------------------------------------------------------------ any thread

    def send(self, result: Result | None, final: bool) -> None:
        """Raises ``ReplyClosed``."""
        desk = self._desk
        if desk.is_locked_here():
            desk.send_later(self, result, final)
            return
        counted = None if final and (result is None or result.error is not None) else self.flow
        if final and self.before_final is not None:
            self.before_final()
        sending = self._begin(_NOTHING if result is None else result, counted, final)
        if sending is None:
            return
        result, place, nbytes = sending
        try:
            outputs = () if place is None else place.write(desk.reshapes)
        except BaseException:
            with desk.lock:
                self._take_back(place, counted, nbytes)
            raise
        with desk.lock:
            if self.closed or desk.closed:
                self._take_back(place, counted, nbytes)
            self._check()
            if counted is not None:
                counted.sent(nbytes)
            response = self.response(result, place, outputs, final)
            if desk.connections.send(self.requester, (response,)):
                self.undelivered = True
                if self.flow is not None:
                    self.flow.break_off()
            if final:
                self._end()

    def _begin(self, result: Result, counted: Flow | None, final: bool) -> tuple[Result, Place | None, int] | None:
        """Waits until it may be sent, and finds room for it. None: nobody is there to send it to any more."""
        desk = self._desk
        while True:
            with desk.lock:
                self._check()
                if self.is_cancelled():
                    if final:
                        self._end()
                    return None
                if counted is None or counted.admits:
                    place, result = self.place(result)
                    nbytes = place.block.nbytes if place is not None and place.block is not None else 0
                    if counted is not None:
                        counted.sending(nbytes)
                    return result, place, nbytes
                look_ms = _ROOM_LOOK_MS if counted.waits_for_others else None
                descriptor = desk.connections.descriptor(self.requester)
                waker = counted.begin_waiting()
            self._wait(counted, descriptor, waker, look_ms)

    def _take_back(self, place: Place | None, counted: Flow | None, nbytes: int) -> None:
        self.free(place)
        if counted is not None:
            counted.not_sent(nbytes)

    def _check(self) -> None:
        if self.closed or self._desk.closed:
            raise ReplyClosed(f"request {self.request.id} has had its final response")

    def _wait(self, flow: Flow, descriptor: int | None, waker: int, look_ms: int | None) -> None:
        """Until something may have changed, or for ``look_ms``. Reads what the requester says itself, because the main
        thread may run the model, or be the one that waits."""
        if descriptor is not None and not self.is_cancelled():
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.register(waker, select.POLLIN)
            poll.poll(look_ms)
        with self._desk.lock:
            flow.end_waiting(waker)
            if not self._desk.closed and not self._desk.connections.read(self.requester):
                flow.break_off()

    # -------------------------------------------------------------------------------------------- with the lock

    def place(self, result: Result) -> tuple[Place | None, Result]:
        """Room for the outputs; without room, the result is an error."""
        if result.error is not None or not result.outputs:
            return None, result
        try:
            return place(self._desk.arena, result.outputs, self.targets), result
        except ArenaFull as error:
            return None, Result(error=Fault("Overloaded", str(error)))
        except ConchError as error:
            return None, Result(error=to_fault(error))

    def free(self, place: Place | None) -> None:
        """Of a response that will not be sent."""
        if place is not None and place.block is not None and not self._desk.closed:
            self._desk.arena.arena.free(place.block)

    def response(
        self, result: Result, place: Place | None, outputs: tuple[TensorDescription, ...], final: bool
    ) -> Response:
        """The next one, which is to be sent now. After a final one the request is closed."""
        request = self.request
        error = result.error
        lease = None
        if place is not None and place.block is not None:
            try:
                lease = self._desk.arena.lease(place.block, self.requester)
            except ArenaFull as full:
                self.free(place)
                error, outputs = Fault("Overloaded", str(full)), ()
        index = self._index
        self._index += 1
        held = False
        if final:
            self.closed = True
            if self.hold is not None:
                held = self._is_held()
        if error is not None or outputs:
            self.failed = error is not None
        return Response(request.id, request.attempt, index, final, outputs, lease, error, held, result.parameters)

    def _is_held(self) -> bool:
        """Whether somebody still reads the inputs that were lent, beside this worker's own."""
        assert self.inputs is not None
        self.inputs.clear()
        hold = self.hold()
        if hold is None:
            return False
        self.held = True
        self._desk.hold(self, hold)
        return True

    def _end(self) -> None:
        """After the final response: the broker is told now, or by ``Done`` if the batch is not over."""
        self.closed = True
        if self.hold is not None and not self.held:
            self._is_held()
        self.leave()
        if self.open and not self.held:
            self._desk.reports.closed(self.report())

    def leave(self) -> None:
        """No ``Window`` concerns it any more."""
        if self.flow is not None:
            self.undelivered |= self.flow.broken
            self.flow.end()
            self._desk.connections.streams.pop((self.requester, self.request.id), None)

    def report(self) -> Closed:
        return Closed(self.requester, self.request.id, self.request.attempt, self.failed, self.undelivered)

    def reopen(self, dispatch: Dispatch) -> None:
        """The broker has given the request to the model once more."""
        self.request = dispatch.request
