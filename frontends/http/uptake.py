"""How a client reads its answers, as the sweep sees it: a pure state machine."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frontends.http.engine import Limits


class Uptake:
    """Of one connection. ``unsent_nbytes`` is what the client had not taken at the last look. ``lagging_since`` is
    None for a client that would take the rest within ``write_seconds`` at the pace that it had between two looks, and
    for one whose answer has just come."""

    __slots__ = ("_mark", "_seen_at", "_taken_nbytes", "lagging_since", "unsent_nbytes")

    def __init__(self) -> None:
        self.unsent_nbytes = 0
        self.lagging_since: float | None = None
        self._taken_nbytes = 0
        self._seen_at = 0.0
        #: how much the client had taken when it last took enough, and when
        self._mark: tuple[int, float] | None = None

    def look(self, now: float, written_nbytes: int, unsent_nbytes: int, limits: "Limits") -> bool:
        """``written_nbytes`` is what the transport was given so far, ``unsent_nbytes`` what it still has. False for a
        client that has stopped to read: its connection is to be cut."""
        taken = written_nbytes - unsent_nbytes
        just_begun = self.unsent_nbytes == 0
        elapsed, progress = now - self._seen_at, taken - self._taken_nbytes
        self.unsent_nbytes, self._taken_nbytes, self._seen_at = unsent_nbytes, taken, now
        if unsent_nbytes == 0:
            self._mark = self.lagging_since = None
            return True
        if just_begun or progress * limits.write_seconds >= unsent_nbytes * elapsed:
            self.lagging_since = None
        elif self.lagging_since is None:
            self.lagging_since = now
        if self._mark is None or taken >= self._mark[0] + limits.write_nbytes:
            self._mark = (taken, now)
        return now - self._mark[1] <= limits.write_seconds

    def burden(self, now: float) -> float:
        """Bytes times seconds that a client lags behind; 0 for one that does not."""
        return 0.0 if self.lagging_since is None else self.unsent_nbytes * (now - self.lagging_since + 1.0)
