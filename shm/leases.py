"""A worker's output arena: blocks that their reader gives back without a message.

Beside its segments the worker owns lease pages, which peers may write to and which hold nothing but 8-byte slots::

    page:   | slot 0 | slot 1 | slot 2 | ...        each a native 64-bit unsigned integer

``lease`` picks a free slot and a number that this process never used before, and both travel with the response. The
reader stores the number into the slot when it has done with the bytes; the worker looks there when it needs memory. A
slot counts only while it holds exactly the number of its present lease, so stale or false writes do nothing.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable

from conch.messages import Block, Lease
from shm.arena import Arena
from shm.segment import Segment

_SLOT_NBYTES = 8
_PAGE_NBYTES = 16 * 1024
#: leases looked at per allocation: more than one are given out per allocation only for blocks with several readers
_LOOKS = 2

#: of the process, so that no lease of another arena in it can be mistaken for one of this
_numbers = itertools.count(1)


class LeasedArena:
    """``arena`` plus lease pages. Belongs to one thread. New pages are announced by ``arena.on_segment_added``."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._pages: list[tuple[Segment, memoryview]] = []
        self._free_slots: list[tuple[memoryview, int, int]] = []  # page, its number, slot
        self._leases: dict[int, tuple[memoryview, int, int, Block, str]] = {}  # by number: page, its number, slot, …
        self._readers: defaultdict[Block, int] = defaultdict(int)  # how many leases more than one a block has

    def allocate(self, nbytes: int) -> Block:
        """Takes back what has been given back before it grows. Raises ``ArenaFull``."""
        if self._leases:
            # a little each time, oldest first, so that memory is used again while it is warm
            self._reclaim(list(itertools.islice(self._leases, _LOOKS)), requeue=True)
        block = self.arena.allocate_within(nbytes)
        if block is None:
            self.reclaim()
            block = self.arena.allocate(nbytes)
        return block

    def lease(self, block: Block, consumer: str) -> Lease:
        """Lends ``block`` to ``consumer``: it is freed once all its leases have been given back, or forgotten.

        Raises ``ArenaFull`` if there is no memory for another lease page; the block is then still the caller's to free.
        """
        if not self._free_slots:
            self._add_page()
        page, page_number, slot = self._free_slots.pop()
        number = next(_numbers)
        self._leases[number] = (page, page_number, slot, block, consumer)
        self._readers[block] += 1
        return Lease(page_number, slot, number)

    def reclaim(self) -> int:
        """Frees every block that has been given back and returns how many. Looks at every lease."""
        return self._reclaim(list(self._leases), requeue=False)

    def _reclaim(self, numbers: Iterable[int], requeue: bool) -> int:
        freed = 0
        leases = self._leases
        for number in numbers:
            lease = leases[number]
            if lease[0][lease[2]] == number:
                freed += self._end(number)
            elif requeue:
                leases[number] = leases.pop(number)
        return freed

    def take_back(self, lease: Lease) -> None:
        """Ends a lease that never reached its consumer."""
        self._end(lease.number)

    def forget(self, consumer: str) -> None:
        """Ends all leases of a consumer that is known to be dead: it reads nothing any more."""
        for number in [number for number, lease in self._leases.items() if lease[4] == consumer]:
            self._end(number)

    def _end(self, number: int) -> int:
        page, page_number, slot, block, _ = self._leases.pop(number)
        self._free_slots.append((page, page_number, slot))
        readers = self._readers.pop(block) - 1
        if readers:
            self._readers[block] = readers
            return 0
        self.arena.free(block)
        return 1

    def _add_page(self) -> None:
        segment = Segment(_PAGE_NBYTES, lease_page=True)
        page = segment.view.cast("Q")
        self._pages.append((segment, page))
        self._free_slots.extend((page, segment.number, slot) for slot in reversed(range(_PAGE_NBYTES // _SLOT_NBYTES)))
        if self.arena.on_segment_added is not None:
            self.arena.on_segment_added(segment)

    @property
    def outstanding(self) -> int:
        """Leases that have not been seen to be given back."""
        return len(self._leases)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The arena's and the lease pages: all that a new peer has to be told of."""
        return (*self.arena.segments, *(segment for segment, _ in self._pages))

    def retire_idle(self, now: float) -> None:
        """See ``Arena.retire_idle``. Lease pages stay."""
        self.reclaim()
        self.arena.retire_idle(now)

    def close(self) -> None:
        """Removes the segments and the pages."""
        self.arena.close()
        self._leases.clear()
        self._readers.clear()
        self._free_slots.clear()
        for segment, page in self._pages:
            page.release()
            segment.close()
        self._pages.clear()
