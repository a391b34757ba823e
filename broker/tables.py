"""The tables of models and of regions: who is sent which when, and which answers wait until they have been seen.

No sockets and no clock: ``tell`` sends, or keeps what cannot be sent yet.
"""

from collections.abc import Callable
from typing import Any, Literal

from broker.announcements import Addressed, Announcements
from conch.messages import Answer, ModelTable, RegionTable

Kind = Literal["regions", "models"]


class _Reader:
    """A frontend. ``unseen``: the last revision that it was sent, until it has seen it; 0 otherwise. ``owed``: the
    tables that have changed since they were sent to it."""

    __slots__ = ("owed", "unseen")

    def __init__(self) -> None:
        self.unseen = 0
        self.owed: set[Kind] = {"regions", "models"}


class Tables:
    """A table may have a megabyte and may change thousands of times while a requester is stopped. So each requester is
    sent tables only once it has seen those before; what changed meanwhile it gets then, in its newest state.

    Observers, and requesters that live in workers, are sent every table of models at once, and no other: no client's
    request comes to them, so nobody waits until they have seen one.

    ``models`` and ``regions`` make a table under a revision. All tables share one count of revisions.
    """

    def __init__(
        self,
        tell: Callable[[bytes, Any], None],
        models: Callable[[int], ModelTable],
        regions: Callable[[int], RegionTable],
    ) -> None:
        self._tell = tell
        self._models = models
        self._regions = regions
        self._announcements = Announcements()
        self._readers: dict[bytes, _Reader] = {}
        self._observers: set[bytes] = set()
        self._revision = 0

    def models_changed(self) -> None:
        self._changed("models")
        table = self._models(self._revision)
        for observer in self._observers:
            self._tell(observer, table)

    def regions_changed(self) -> None:
        self._changed("regions")

    def add_requester(self, peer: bytes) -> None:
        """It has said HELLO, again maybe: what it was sent before may not have arrived."""
        reader = self._readers[peer] = _Reader()
        self._send_owed(peer, reader)
        self._announcements.told(peer, reader.unseen)

    def add_observer(self, peer: bytes) -> None:
        """It is sent every table of models at once, and says nothing to it. Calling this again sends it once more."""
        self._observers.add(peer)
        self._tell(peer, self._models(self._revision))

    def seen(self, peer: bytes, revision: int) -> None:
        reader = self._readers.get(peer)
        if reader is None or not reader.unseen or revision < reader.unseen:
            return
        # only now, after the last of several tables: no one of them holds all changes up to its own revision
        reader.unseen = 0
        self._send_all(self._announcements.seen(peer, revision))
        self._send_owed(peer, reader)

    def gone(self, peer: bytes) -> None:
        self._readers.pop(peer, None)
        self._observers.discard(peer)
        self._send_all(self._announcements.gone(peer))

    # --------------------------------------------------------------------------------------------------------- answers

    def answer(self, caller: bytes, answer: Answer, now: float) -> None:
        """Sends it once every requester has seen the changes so far, or after ``announcements.PATIENCE_S``."""
        self._send_all(self._announcements.answer(caller, answer, now))

    def tick(self, now: float) -> None:
        """To be called when ``next_wakeup`` has come."""
        self._send_all(self._announcements.tick(now))

    @property
    def next_wakeup(self) -> float | None:
        return self._announcements.next_wakeup

    def stop_waiting(self) -> None:
        """The server exits: what is held, now or later, might never be sent."""
        self._send_all(self._announcements.stop_waiting())

    # ---------------------------------------------------------------------------------------------------------- inside

    def _changed(self, kind: Kind) -> None:
        self._revision += 1
        for peer, reader in self._readers.items():
            reader.owed.add(kind)
            if not reader.unseen:
                self._send_owed(peer, reader)
            # also what is sent later counts from now on: answers wait for it
            self._announcements.told(peer, self._revision)

    def _send_owed(self, peer: bytes, reader: _Reader) -> None:
        # Regions first: a frontend serves as soon as it has a table of models.
        for kind, make in (("regions", self._regions), ("models", self._models)):
            if kind in reader.owed:
                self._revision += 1
                reader.unseen = self._revision
                self._tell(peer, make(self._revision))
        reader.owed.clear()

    def _send_all(self, answers: list[Addressed]) -> None:
        for peer, answer in answers:
            self._tell(peer, answer)
