"""Other processes' memory that a requester passes on by reference, as inputs of its own requests."""

from collections.abc import Callable, Iterator

from conch.messages import SegmentAdded
from conch.requester.inference import InferenceCall
from shm.lent import Lent, OpenSegment

#: how long workers keep a segment from which nothing is lent any more: the next request mostly refers to it again
IDLE_S = 10.0


class _Announced:
    """``uses``: inputs of unfinished requests that lie in it."""

    __slots__ = ("idle_since", "segment", "uses")

    def __init__(self, segment: OpenSegment) -> None:
        self.segment = segment
        self.uses = 0
        self.idle_since = 0.0

    def announcement(self) -> tuple[SegmentAdded, int]:
        return SegmentAdded(self.segment.number, self.segment.nbytes), self.segment.descriptor


class LentMemory:
    """Segments by number. Workers are told of each before the first request that refers to it, and again that it is
    gone when it has not been referred to for ``IDLE_S``. Until then it stays open, whatever its owner does.

    ``on_added`` gets what workers are to be told, and the descriptor; ``on_retired`` the number.
    """

    def __init__(self, on_added: Callable[[SegmentAdded, int], None], on_retired: Callable[[int], None]) -> None:
        self._on_added = on_added
        self._on_retired = on_retired
        self._announced: dict[int, _Announced] = {}

    def take(self, call: InferenceCall) -> tuple[Lent, ...]:
        """What the call's inputs refer to, for ``release``. As long as the caller keeps it, the bytes stay."""
        found = tuple([tensor.lent for tensor in call.inputs if tensor.lent is not None])
        for lent in found:
            number = lent.block.segment
            announced = self._announced.get(number)
            if announced is None:
                announced = self._announced[number] = _Announced(lent.segment)
                self._on_added(*announced.announcement())
            announced.uses += 1
        return found

    def release(self, lent: tuple[Lent, ...]) -> None:
        for item in lent:
            announced = self._announced.get(item.block.segment)
            if announced is not None:
                announced.uses -= 1
                announced.idle_since = 0.0

    def announcements(self) -> Iterator[tuple[SegmentAdded, int]]:
        """For a worker that has just connected."""
        return (announced.announcement() for announced in self._announced.values())

    def retire_idle(self, now: float) -> None:
        """``now``: monotonic, in seconds. To be called every few seconds."""
        for number, announced in list(self._announced.items()):
            if announced.uses:
                continue
            announced.idle_since = announced.idle_since or now
            if now - announced.idle_since >= IDLE_S:
                del self._announced[number]
                self._on_retired(number)

    def close(self) -> None:
        """Calls nobody."""
        self._announced.clear()
