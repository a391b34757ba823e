"""Flow control of requests to a decoupled model, as ``conch.windows`` has it."""

import os
from collections import deque

from conch.windows import NBYTES, RESPONSES

#: wakers that nobody waits for. They are never closed, so that a late ``wake`` can hit nothing else.
_idle_wakers: list[int] = []


class Flows:
    """Those of one worker, which share ``cap_nbytes`` of memory.

    One flow may have half of what no flow uses: so that, however many clients do not read, there is room for another.
    """

    def __init__(self, cap_nbytes: int) -> None:
        self._cap_nbytes = cap_nbytes
        self.nbytes = 0

    @property
    def share_nbytes(self) -> int:
        return min(NBYTES, (self._cap_nbytes - self.nbytes) // 2)


class Flow:
    """What has been sent and not been read. Belongs to whoever has the worker's lock, except ``wake``.

    ``broken``: the connection has broken, so that nothing arrives any more, and nothing will be read.
    """

    __slots__ = ("_all", "_nbytes", "_sizes", "_unread", "_wakers", "broken")

    def __init__(self, all_flows: Flows) -> None:
        self.broken = False
        self._all = all_flows
        self._unread = 0
        self._nbytes = 0
        self._sizes: deque[int] = deque()
        self._wakers: list[int] = []

    @property
    def admits(self) -> bool:
        """Whether another response may be sent now."""
        return self._unread < RESPONSES and (self._nbytes < self._all.share_nbytes or not self._unread)

    @property
    def waits_for_others(self) -> bool:
        """Where it does not admit one: that others are read would help too, and nothing tells of it."""
        return self._unread < RESPONSES and self._nbytes < NBYTES

    def sending(self, nbytes: int) -> None:
        """A response is about to be written. ``sent`` or ``not_sent`` follows."""
        self._unread += 1
        self._nbytes += nbytes
        self._all.nbytes += nbytes

    def sent(self, nbytes: int) -> None:
        self._sizes.append(nbytes)

    def not_sent(self, nbytes: int) -> None:
        self._forget(nbytes)
        self.wake()

    def have_been_read(self, responses: int) -> None:
        """The oldest of those sent."""
        for _ in range(min(responses, len(self._sizes))):
            self._forget(self._sizes.popleft())
        self.wake()

    def end(self) -> None:
        """Nothing more will be sent. What is unread then counts no more."""
        while self._sizes:
            self._forget(self._sizes.popleft())

    def _forget(self, nbytes: int) -> None:
        self._unread -= 1
        self._nbytes -= nbytes
        self._all.nbytes -= nbytes

    def break_off(self) -> None:
        self.broken = True
        self.wake()

    def wake(self) -> None:
        """Everyone who waits. On any thread."""
        for waker in tuple(self._wakers):
            os.eventfd_write(waker, 1)

    def begin_waiting(self) -> int:
        """A descriptor that gets readable at the next ``wake``."""
        waker = _idle_wakers.pop() if _idle_wakers else os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wakers.append(waker)
        return waker

    def end_waiting(self, waker: int) -> None:
        self._wakers.remove(waker)
        try:
            os.eventfd_read(waker)
        except BlockingIOError:
            pass
        _idle_wakers.append(waker)
