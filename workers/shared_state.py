"""What the control thread of a worker and the others know together, behind one lock.

A broker's death is where the two must agree: the HELLO to the next broker lists what the main thread is running, so
between that HELLO and its ``Welcome`` the main thread takes up nothing of the old broker's and reports nothing done.
"""

import os
import threading
from collections import deque
from collections.abc import Callable

from conch.messages import Batch, Cancel, Closed, Configured, Done, Drain, Forget, Running, WorkerState

#: cancels of requests that were answered already stay; more than this many are dropped, oldest first
_MOST_CANCELS = 10_000


class SharedState:
    """``wake_main`` is an eventfd: readable when the main thread should look here. ``attention`` says the same to a
    main thread that is too busy to wait for anything.

    ``epoch``: of the broker that has welcomed this worker; None in doubt: not connected, or HELLO not answered yet.
    ``welcomes`` counts the answers to HELLOs. ``on_cancel`` is called on the control thread, after ``is_cancelled`` has
    become true.
    """

    def __init__(self, config_hash: str, state: WorkerState) -> None:
        self._lock = threading.Lock()
        self.wake_main = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.state: WorkerState = state
        self.config_hash = config_hash
        self.epoch: int | None = None
        self.draining = False
        self.configured: Configured | None = None
        self.forgotten: deque[str] = deque()
        #: batches too long for the data connection
        self.handed_over: deque[Batch] = deque()
        self.welcomes = 0
        self.attention = False
        self._closed = False
        self.on_cancel: Callable[[str, int], None] | None = None
        self._running: tuple[Running, ...] = ()
        #: requests that are answered on after their batch
        self._open: dict[tuple[str, int], Running] = {}
        self._cancelled: dict[tuple[str, int], None] = {}
        self._unreported: list[Done | Closed] = []

    def wake(self) -> None:
        """To be called by any other thread than the main one, and by finalizers on any, also at the end."""
        self.attention = True
        if not self._closed:
            os.eventfd_write(self.wake_main, 1)

    # ---------------------------------------------------------------------------------------- the control thread

    def disconnected(self) -> None:
        with self._lock:
            self.epoch = None

    def hello(self) -> tuple[WorkerState, str, tuple[Running, ...]]:
        """State, configuration hash and running requests for a HELLO that is about to be sent. What is done and not
        reported by then never will be."""
        with self._lock:
            self.epoch = None
            self._unreported.clear()
            state = "draining" if self.draining and self.state == "ready" else self.state
            return state, self.config_hash, (*self._running, *self._open.values())

    def welcomed(self, epoch: int) -> None:
        with self._lock:
            self.epoch = epoch
            self.welcomes += 1
        self.wake()

    def take_order(self, message: Batch | Configured | Cancel | Drain | Forget) -> None:
        match message:
            case Cancel(requester, id):
                with self._lock:
                    self._cancelled[requester, id] = None
                    if len(self._cancelled) > _MOST_CANCELS:
                        del self._cancelled[next(iter(self._cancelled))]
                if self.on_cancel is not None:
                    self.on_cancel(requester, id)
                return
            case Configured():
                self.configured = message
            case Drain():
                self.drain()
            case Forget(requester):
                self.forgotten.append(requester)
            case Batch():
                self.handed_over.append(message)
        self.wake()

    def drain(self) -> None:
        self.draining = True
        self.wake()

    # ------------------------------------------------------------------------------- the thread with the worker's lock

    def become(self, state: WorkerState, config_hash: str | None = None) -> None:
        with self._lock:
            self.state = state
            if config_hash is not None:
                self.config_hash = config_hash

    def take_up(self, batch: Batch) -> bool | None:
        """True: it is running now. False: a former broker sent it, and it is lost. None: that is not known yet."""
        with self._lock:
            if self.epoch is None:
                return None
            if batch.epoch != self.epoch:
                return False
            self._running = tuple(
                [
                    Running(item.requester, item.request.id, item.request.attempt, batch.epoch, batch.id)
                    for item in batch.items
                ]
            )
            return True

    def put_down(self, done: Done) -> bool:
        """The batch is over. True: the broker is to be told now; otherwise when ``unreported`` says so."""
        with self._lock:
            running = self._running
            self._running = ()
            for position in done.open:
                item = running[position]
                self._open[item.requester, item.id] = Running(item.requester, item.id, item.attempt)
            if self._cancelled:
                for item in running:
                    if (item.requester, item.id) not in self._open:
                        self._cancelled.pop((item.requester, item.id), None)
            return self._is_to_be_told(done)

    def put_down_open(self, closed: Closed) -> bool:
        """An open request is over. As ``put_down``."""
        with self._lock:
            del self._open[closed.requester, closed.id]
            self._cancelled.pop((closed.requester, closed.id), None)
            return self._is_to_be_told(closed)

    def _is_to_be_told(self, report: Done | Closed) -> bool:
        if self.epoch is not None and not self._unreported:
            return True
        self._unreported.append(report)
        return False

    def keep(self, report: Done | Closed) -> None:
        """It could not be sent, although the broker should have been there."""
        with self._lock:
            self._unreported.append(report)

    @property
    def has_open(self) -> bool:
        return bool(self._open)

    @property
    def has_unreported(self) -> bool:
        return bool(self._unreported)

    def unreported(self) -> list[Done | Closed]:
        """What may be told to the broker now, in this order."""
        with self._lock:
            if self.epoch is None:
                return []
            unreported = self._unreported
            self._unreported = []
            return unreported

    def is_cancelled(self, requester: str, id: int) -> bool:
        return (requester, id) in self._cancelled

    def close(self) -> None:
        self._closed = True
        os.close(self.wake_main)
