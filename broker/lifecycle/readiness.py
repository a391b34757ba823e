"""Models' own word on whether they are ready: who asks, which workers are being asked, and how long that may take."""

from collections.abc import Sequence
from math import inf

from broker.instructions import ToControl, ToPeer
from broker.lifecycle.effects import LifecycleInstruction
from conch.messages import Answer, CheckReady

#: a model that has not answered by then is not ready
READY_TIMEOUT_S = 5.0


class _Ask:
    """An ``AskReady``: ``waiting`` are the workers that have not answered yet."""

    __slots__ = ("peer", "call", "waiting", "deadline")

    def __init__(self, peer: str, call: int, waiting: set[str], deadline: float) -> None:
        self.peer = peer
        self.call = call
        self.waiting = waiting
        self.deadline = deadline


class Readiness:
    """Instructions go to ``out``. A worker is asked one thing at a time: whoever asks meanwhile shares the answer, even
    when those who had asked first have given up."""

    def __init__(self, out: list[LifecycleInstruction]) -> None:
        self._out = out
        self._asks: list[_Ask] = []
        #: worker -> number of the check that it has not answered
        self._checks: dict[str, int] = {}
        self._last_check = 0
        #: workers that said last that they are not ready
        self._unready: set[str] = set()

    def ask(self, peer: str, call: int, workers: Sequence[str], now: float) -> None:
        """Answers ``call`` of ``peer``: True if all of ``workers`` say that they are ready, and there is one."""
        ask = _Ask(peer, call, set(workers), now + READY_TIMEOUT_S)
        self._asks.append(ask)
        if not workers:
            self._finish(ask, False)
        for worker in workers:
            if worker not in self._checks:
                self._last_check += 1
                self._checks[worker] = self._last_check
                self._out.append(ToControl(worker, CheckReady(self._last_check)))

    def checked(self, worker: str, number: int, ready: bool) -> None:
        if self._checks.get(worker) != number:
            return
        del self._checks[worker]
        (self._unready.discard if ready else self._unready.add)(worker)
        for ask in [ask for ask in self._asks if worker in ask.waiting]:
            ask.waiting.discard(worker)
            if not ready or not ask.waiting:
                self._finish(ask, ready)

    def connected_again(self, worker: str) -> None:
        """A check that was on its way to it may be lost."""
        if worker in self._checks:
            self._out.append(ToControl(worker, CheckReady(self._checks[worker])))

    def gone(self, worker: str) -> None:
        if worker in self._checks:
            self.checked(worker, self._checks[worker], False)
        self._unready.discard(worker)

    def says_no(self, worker: str) -> bool:
        """Whether its last answer was that it is not ready."""
        return worker in self._unready

    def expire(self, now: float) -> None:
        for ask in [ask for ask in self._asks if ask.deadline <= now]:
            self._finish(ask, False)

    def next_deadline(self) -> float:
        return self._asks[0].deadline if self._asks else inf

    def _finish(self, ask: _Ask, ready: bool) -> None:
        self._asks.remove(ask)
        self._out.append(ToPeer(ask.peer, Answer(ask.call, None, ready)))
