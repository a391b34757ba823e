"""The allocator: hands out blocks of this process's own segments.

All state is ordinary Python data here; none lies in the shared memory. Segment ``i`` occupies the addresses from
``i << 44`` on, so that one integer names a place in the arena and two segments never touch.

A freed block of up to 64 KiB goes onto the stack of its size, from where the next allocation of that size takes it
while the caches still hold it. A larger one is merged with its free neighbours at once, and so are all stacks before
the arena would grow. Free ranges are found by their power of two, most recently freed first.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable

from conch.messages import Block
from shm.base import ArenaFull, BadReference
from shm.segment import Kind, Segment

ALIGNMENT_NBYTES = 64
FIRST_SEGMENT_NBYTES = 1 << 20
#: reserving 16 MiB takes milliseconds; larger steps would be felt, and rarely be used up
LARGEST_STEP_NBYTES = 16 << 20
IDLE_S = 60.0

_PAGE_NBYTES = 4096
_STACKED_NBYTES = 64 * 1024
#: deeper stacks would only keep cold blocks from being merged
_STACK_DEPTH = 64
#: how many ranges that may be too small are looked at before a larger one is split
_TIGHT_FIT_LOOKS = 8
_ADDRESS_BITS = 44


class Arena:
    """Blocks aligned to 64 bytes in at most ``cap_nbytes`` of segments. Belongs to one thread, except ``grow``.

    ``purpose`` names it in messages: "input", "output". ``on_segment_added`` is called before the first block in a new
    segment is handed out, ``on_segment_retired`` with the number of a segment that is never referred to again, both
    on the owner's thread and inside the call that caused it. There is no segment before the first allocation.
    """

    def __init__(self, cap_nbytes: int, purpose: str, kind: Kind | None = None) -> None:
        self.cap_nbytes = cap_nbytes
        self.purpose = purpose
        self.on_segment_added: Callable[[Segment], None] | None = None
        self.on_segment_retired: Callable[[int], None] | None = None
        self.reserved_nbytes = 0
        self._kind = kind
        self._indices = itertools.count(1)
        self._segments: dict[int, Segment] = {}  # by base address
        self._views: dict[int, memoryview] = {}  # by segment number
        self._bases: dict[int, int] = {}  # by segment number
        self._live: dict[int, Block] = {}  # by address
        self._stacks: dict[int, list[tuple[int, Block]]] = {}  # by size: address and its last block
        self._sizes: dict[int, int] = {}  # free ranges: size by start
        self._starts: dict[int, int] = {}  # free ranges: start by end
        self._bins: list[dict[int, None]] = [{} for _ in range(_ADDRESS_BITS + 1)]  # their starts by bit length of size
        self._filled_bins = 0  # bit i: bin i is not empty
        self._empty_since: dict[int, float] = {}  # by base address
        self._grown: deque[Segment] = deque()
        self._grow_lock = threading.Lock()
        self._closed = False

    # -------------------------------------------------------------------------------------------- blocks

    def allocate(self, nbytes: int) -> Block:
        """Grows where nothing fits. Raises ``ArenaFull``; nothing has changed then."""
        block = self.allocate_within(nbytes)
        if block is None:
            self._adopt(self._new_segment(nbytes))
            block = self.allocate_within(nbytes)
            assert block is not None
        return block

    def allocate_within(self, nbytes: int) -> Block | None:
        """Like ``allocate``, but None where the arena would have to grow."""
        stack = self._stacks.get((nbytes + 63) & -64)
        if stack:
            address, block = stack.pop()
            if block.nbytes != nbytes:
                block = Block(block.segment, block.offset, nbytes)
            self._live[address] = block
            return block
        size = _size(nbytes)
        start = self._find(size)
        if start is None:
            return None
        base = start >> _ADDRESS_BITS << _ADDRESS_BITS
        block = Block(self._segments[base].number, start - base, nbytes)
        self._take(start, size)
        self._live[start] = block
        return block

    def free(self, block: Block) -> None:
        """Raises ``ValueError`` for a block that is not allocated."""
        address = self._bases.get(block.segment, -1) + block.offset
        found = self._live.pop(address, None)
        if found is not block and found != block:
            if found is not None:
                self._live[address] = found
            raise ValueError(f"{block} is not allocated")
        size = (block.nbytes + 63) & -64
        if 0 < size <= _STACKED_NBYTES:
            stack = self._stacks.get(size)
            if stack is None:
                stack = self._stacks[size] = []
            if len(stack) < _STACK_DEPTH:
                stack.append((address, block))
                return
        self._give(address, size or ALIGNMENT_NBYTES)

    def view(self, block: Block) -> memoryview:
        """The block's bytes, writable. Also of a part of a block, such as one of several outputs in it.

        Raises ``BadReference`` for what does not lie in this arena's segments.
        """
        view = self._views.get(block.segment)
        offset = block.offset
        end = offset + block.nbytes
        if view is None or offset < 0 or end < offset or end > len(view):
            raise BadReference(f"{block} does not lie in the {self.purpose} arena")
        return view[offset:end]

    # -------------------------------------------------------------------------------------------- growth

    def needs_growth(self, nbytes: int) -> bool:
        """Whether ``allocate(nbytes)`` would make a segment, which takes milliseconds when it is a large one."""
        return not self._stacks.get((nbytes + 63) & -64) and self._find(_size(nbytes)) is None

    def grow(self, nbytes: int) -> None:
        """Makes a segment for a block of ``nbytes`` ready, on whatever thread. Raises ``ArenaFull``; ends without a
        segment if the arena is closed meanwhile.

        The one method for another thread: it takes from the budget under a lock and leaves the finished segment in a
        queue, from which the owner's next ``allocate`` takes it (and calls ``on_segment_added``). An event loop does::

            async with growing:                       # an asyncio.Lock, or each waiting task makes a segment
                while arena.needs_growth(nbytes):     # another task may have been quicker
                    await loop.run_in_executor(None, arena.grow, nbytes)
            block = arena.allocate(nbytes)            # no await since needs_growth
        """
        segment = self._new_segment(nbytes)
        segment.touch()
        with self._grow_lock:
            if not self._closed:
                self._grown.append(segment)
                return
        segment.close()

    def _new_segment(self, nbytes: int) -> Segment:
        needed = -(-_size(nbytes) // _PAGE_NBYTES) * _PAGE_NBYTES
        with self._grow_lock:
            if self._closed:
                raise ArenaFull(f"the {self.purpose} memory is closed")
            room = self.cap_nbytes - self.reserved_nbytes
            if needed > room:
                raise ArenaFull(
                    f"the {self.purpose} memory is full: {needed} bytes do not fit, "
                    f"{self.reserved_nbytes} of at most {self.cap_nbytes} are reserved; try again later"
                )
            step = min(max(FIRST_SEGMENT_NBYTES, self.reserved_nbytes), LARGEST_STEP_NBYTES)
            step = min(max(step, needed), room // _PAGE_NBYTES * _PAGE_NBYTES)
            self.reserved_nbytes += step
        made = 0
        try:
            try:
                segment = Segment(step, kind=self._kind)
            except ArenaFull:
                if step == needed:
                    raise
                segment = Segment(needed, kind=self._kind)
            made = segment.nbytes
        finally:
            with self._grow_lock:
                self.reserved_nbytes -= step - made
        return segment

    def _adopt(self, segment: Segment) -> None:
        base = next(self._indices) << _ADDRESS_BITS
        self._segments[base] = segment
        self._views[segment.number] = segment.view
        self._bases[segment.number] = base
        self._give(base, segment.nbytes)
        if self.on_segment_added is not None:
            self.on_segment_added(segment)

    # -------------------------------------------------------------------------------------------- free ranges

    def _find(self, size: int) -> int | None:
        """Start of a free range of at least ``size``, merging the stacks if nothing else helps."""
        while self._grown:
            self._adopt(self._grown.popleft())
        start = self._search(size)
        if start is None and self._merge_stacks():
            start = self._search(size)
        return start

    def _search(self, size: int) -> int | None:
        bits = size.bit_length()
        if bits >= len(self._bins):
            return None
        sizes = self._sizes
        maybe = reversed(self._bins[bits])
        for start in itertools.islice(maybe, _TIGHT_FIT_LOOKS):
            if sizes[start] >= size:
                return start
        larger = self._filled_bins >> (bits + 1)
        if larger:
            bits += (larger & -larger).bit_length()
            return next(reversed(self._bins[bits]))
        for start in maybe:
            if sizes[start] >= size:
                return start
        return None

    def _take(self, start: int, size: int) -> None:
        """Takes the first ``size`` bytes of a free range."""
        rest = self._remove(start) - size
        self._empty_since.pop(start, None)
        if rest:
            self._insert(start + size, rest)

    def _give(self, start: int, size: int) -> None:
        """Adds a free range, merged with its neighbours."""
        before = self._starts.get(start)
        if before is not None:
            size += self._remove(before)
            start = before
        if start + size in self._sizes:
            size += self._remove(start + size)
        self._insert(start, size)

    def _insert(self, start: int, size: int) -> None:
        bits = size.bit_length()
        self._sizes[start] = size
        self._starts[start + size] = start
        self._bins[bits][start] = None
        self._filled_bins |= 1 << bits

    def _remove(self, start: int) -> int:
        size = self._sizes.pop(start)
        del self._starts[start + size]
        bits = size.bit_length()
        bin = self._bins[bits]
        del bin[start]
        if not bin:
            self._filled_bins ^= 1 << bits
        return size

    def _merge_stacks(self) -> bool:
        """Turns all stacked blocks into free ranges. False if there were none."""
        if not self._stacks:
            return False
        stacks = self._stacks
        self._stacks = {}
        for size, stack in stacks.items():
            for address, _ in stack:
                self._give(address, size)
        return True

    # -------------------------------------------------------------------------------------------- the whole

    @property
    def segments(self) -> tuple[Segment, ...]:
        return tuple(self._segments.values())

    @property
    def used_nbytes(self) -> int:
        """Allocated, in whole 64 bytes. Counts anew at every call: for metrics."""
        return sum(_size(block.nbytes) for block in self._live.values())

    def retire_idle(self, now: float) -> None:
        """Gives segments back to the system that have been empty for 60 s. ``now``: monotonic, in seconds. To be
        called every few seconds."""
        while self._grown:
            self._adopt(self._grown.popleft())
        self._merge_stacks()
        for base, segment in list(self._segments.items()):
            if self._sizes.get(base) == segment.nbytes and now - self._empty_since.setdefault(base, now) >= IDLE_S:
                self._retire(base, segment)

    def _retire(self, base: int, segment: Segment) -> None:
        self._remove(base)
        del self._empty_since[base]
        del self._segments[base]
        del self._views[segment.number]
        del self._bases[segment.number]
        segment.close()
        with self._grow_lock:
            self.reserved_nbytes -= segment.nbytes
        if self.on_segment_retired is not None:
            self.on_segment_retired(segment.number)

    def close(self) -> None:
        """Removes all segments, whatever is allocated in them, and makes no more. Views stay usable. Idempotent; calls
        no callback."""
        with self._grow_lock:
            self._closed = True
        while self._grown:
            self._grown.popleft().close()
        for segment in self._segments.values():
            segment.close()
        for state in (self._segments, self._views, self._bases, self._live, self._stacks, self._sizes, self._starts):
            state.clear()
        for bin in self._bins:
            bin.clear()
        self._filled_bins = 0
        self._empty_since.clear()
        self.reserved_nbytes = 0


def _size(nbytes: int) -> int:
    """What a block takes up. Raises ``ValueError`` below 0."""
    if nbytes < 0:
        raise ValueError(f"a block of {nbytes} bytes")
    return (nbytes + 63) & -64 or ALIGNMENT_NBYTES
