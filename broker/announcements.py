"""Answers that wait until every requester has seen the tables that tell of what was done.

A client that was told "loaded", or "registered", may send its next request to any process of the server.
"""

from collections.abc import Callable

from conch.messages import Answer

#: a process that is stopped or overloaded must not keep everybody waiting
PATIENCE_S = 1.0

Addressed = tuple[bytes, Answer]


class _Held:
    """``missing``: by requester, the revision that it has not seen yet."""

    __slots__ = ("answer", "caller", "missing", "until")

    def __init__(self, caller: bytes, answer: Answer, missing: dict[bytes, int], until: float) -> None:
        self.caller = caller
        self.answer = answer
        self.missing = missing
        self.until = until


class Announcements:
    """What each requester was told and has seen, by the routing ids of their sockets. Every method returns what is to
    be sent now."""

    def __init__(self) -> None:
        self._told: dict[bytes, int] = {}
        self._seen: dict[bytes, int] = {}
        self._held: list[_Held] = []
        self._exiting = False

    def told(self, requester: bytes, revision: int) -> None:
        """A table was sent to it."""
        self._told[requester] = revision

    def answer(self, caller: bytes, answer: Answer, now: float) -> list[Addressed]:
        missing = {peer: told for peer, told in self._told.items() if self._seen.get(peer, -1) < told}
        if not missing or self._exiting:
            return [(caller, answer)]
        self._held.append(_Held(caller, answer, missing, now + PATIENCE_S))
        return []

    def seen(self, requester: bytes, revision: int) -> list[Addressed]:
        self._seen[requester] = revision
        for held in self._held:
            if held.missing.get(requester, revision + 1) <= revision:
                del held.missing[requester]
        return self._release(lambda held: not held.missing)

    def gone(self, peer: bytes) -> list[Addressed]:
        """Nobody waits for it, and it waits for nothing."""
        self._told.pop(peer, None)
        self._seen.pop(peer, None)
        self._held = [held for held in self._held if held.caller != peer]
        for held in self._held:
            held.missing.pop(peer, None)
        return self._release(lambda held: not held.missing)

    def tick(self, now: float) -> list[Addressed]:
        """To be called when ``next_wakeup`` has come."""
        return self._release(lambda held: held.until <= now)

    @property
    def next_wakeup(self) -> float | None:
        return self._held[0].until if self._held else None

    def stop_waiting(self) -> list[Addressed]:
        """The server exits: what is held, now or later, might never be sent."""
        self._exiting = True
        return self._release(lambda held: True)

    def _release(self, ready: Callable[[_Held], bool]) -> list[Addressed]:
        released = [held for held in self._held if ready(held)]
        if released:
            self._held = [held for held in self._held if not ready(held)]
        return [(held.caller, held.answer) for held in released]
