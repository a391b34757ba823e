"""shm.arena: what is allocated never overlaps, what is freed can be had again."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from conch.messages import Block
from shm.arena import IDLE_S, Arena
from shm.base import ArenaFull, BadReference
from shm.segment import Segment

MIB = 1 << 20


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(64 * MIB, "test")
    yield arena
    arena.close()


def test_no_segment_before_the_first_allocation(arena: Arena) -> None:
    assert arena.segments == ()
    assert arena.reserved_nbytes == 0


def test_first_segment_is_a_mebibyte_and_steps_stay_below_16(arena: Arena) -> None:
    arena.allocate(1)
    assert [segment.nbytes for segment in arena.segments] == [MIB]
    while sum(segment.nbytes for segment in arena.segments) < 60 * MIB:
        arena.allocate(MIB // 2)
    assert max(segment.nbytes for segment in arena.segments) == 16 * MIB
    assert arena.reserved_nbytes == sum(segment.nbytes for segment in arena.segments)


def test_large_request_gets_a_segment_of_its_size(arena: Arena) -> None:
    block = arena.allocate(20 * MIB + 1)
    assert [segment.nbytes for segment in arena.segments] == [20 * MIB + 4096]
    assert len(arena.view(block)) == 20 * MIB + 1


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 65, 4095, 65536, 65537, 3 * MIB])
def test_view_is_writable_aligned_and_exact(arena: Arena, nbytes: int) -> None:
    block = arena.allocate(nbytes)
    view = arena.view(block)
    assert not view.readonly
    assert len(view) == block.nbytes == nbytes
    assert block.offset % 64 == 0


def test_most_recently_freed_first(arena: Arena) -> None:
    blocks = [arena.allocate(1000) for _ in range(5)]
    for block in blocks:
        arena.free(block)
    assert [arena.allocate(1000) for _ in range(5)] == blocks[::-1]
    large = [arena.allocate(100_000) for _ in range(3)]
    arena.free(large[1])
    assert arena.allocate(100_000) == large[1]


def test_another_size_of_the_same_step_takes_the_place(arena: Arena) -> None:
    block = arena.allocate(120)
    arena.free(block)
    other = arena.allocate(65)
    assert (other.offset, other.nbytes) == (block.offset, 65)
    arena.free(other)


def test_mixed_sizes_do_not_fragment_for_ever(arena: Arena) -> None:
    blocks = [arena.allocate(1024) for _ in range(1024)]
    assert arena.reserved_nbytes == MIB
    for block in blocks[::2] + blocks[1::2]:
        arena.free(block)
    whole = arena.allocate(MIB)
    assert arena.reserved_nbytes == MIB
    arena.free(whole)


def test_double_free_and_unknown_blocks_raise_and_change_nothing(arena: Arena) -> None:
    block = arena.allocate(100)
    wrong = [
        Block(block.segment, block.offset, 99),
        Block(block.segment, block.offset + 64, 100),
        Block(block.segment, -64, 100),
        Block(block.segment ^ 1, block.offset, 100),
        Block(0, 0, 0),
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="not allocated"):
            arena.free(each)
    assert arena.used_nbytes == 128
    arena.free(Block(block.segment, block.offset, 100))  # as it comes back from a message
    with pytest.raises(ValueError, match="not allocated"):
        arena.free(block)
    assert arena.used_nbytes == 0


def test_negative_size_raises(arena: Arena) -> None:
    for nbytes in (-1, -64, -(2**63)):
        with pytest.raises(ValueError):
            arena.allocate(nbytes)


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(-1, 8), (-64, 64), (0, -1), (MIB, 1), (0, MIB + 1), (2**63, 8), (8, 2**64)]
)
def test_view_of_what_does_not_fit_raises(arena: Arena, offset: int, nbytes: int) -> None:
    segment = arena.allocate(8).segment
    with pytest.raises(BadReference):
        arena.view(Block(segment, offset, nbytes))
    with pytest.raises(BadReference):
        arena.view(Block(segment ^ 1, 0, 8))


def test_part_of_a_block_can_be_viewed(arena: Arena) -> None:
    block = arena.allocate(256)
    arena.view(block)[64:72] = b"12345678"
    assert bytes(arena.view(Block(block.segment, block.offset + 64, 8))) == b"12345678"


def test_full_at_the_cap_and_recovers() -> None:
    arena = Arena(2 * MIB, "test")
    first = arena.allocate(MIB)
    second = arena.allocate(MIB)
    with pytest.raises(ArenaFull, match="test memory is full"):
        arena.allocate(1)
    with pytest.raises(ArenaFull):
        arena.grow(1)
    assert arena.needs_growth(1)
    arena.free(first)
    assert not arena.needs_growth(1)
    arena.free(arena.allocate(1))
    arena.free(second)
    with pytest.raises(ArenaFull):
        arena.allocate(2**70)
    arena.close()
    assert arena.reserved_nbytes == 0


def test_cap_that_is_no_multiple_of_a_page() -> None:
    arena = Arena(10_000, "test")
    arena.allocate(8192)
    assert arena.reserved_nbytes == 8192
    with pytest.raises(ArenaFull):
        arena.allocate(1)
    arena.close()


def test_segment_is_announced_before_its_first_block(arena: Arena) -> None:
    announced: list[int] = []
    arena.on_segment_added = lambda segment: announced.append(segment.number)
    block = arena.allocate(1)
    assert announced == [block.segment]
    block = arena.allocate(2 * MIB)
    assert announced[1:] == [block.segment]


def test_empty_segments_are_retired_after_a_minute(arena: Arena) -> None:
    retired: list[int] = []
    arena.on_segment_retired = retired.append
    kept = arena.allocate(MIB)
    block = arena.allocate(MIB)
    arena.free(block)
    arena.retire_idle(1000.0)
    arena.retire_idle(1000.0 + IDLE_S - 1)
    assert retired == []
    arena.free(arena.allocate(10))  # used in between: the minute begins anew
    arena.retire_idle(1000.0 + IDLE_S)
    assert retired == []
    arena.retire_idle(1000.0 + 2 * IDLE_S)
    assert retired == [block.segment]
    assert [segment.number for segment in arena.segments] == [kept.segment]
    assert arena.reserved_nbytes == MIB
    with pytest.raises(BadReference):
        arena.view(block)
    with pytest.raises(ValueError):
        arena.free(block)
    arena.free(kept)
    for second in (0.0, IDLE_S):
        arena.retire_idle(5000.0 + second)
    assert arena.segments == ()
    assert arena.reserved_nbytes == 0
    assert arena.allocate(5).nbytes == 5


def test_views_outlive_their_segment(arena: Arena) -> None:
    block = arena.allocate(16)
    view = arena.view(block)
    view[:] = b"still to be sent"
    arena.free(block)
    arena.close()
    assert bytes(view) == b"still to be sent"


def test_grow_on_another_thread(arena: Arena) -> None:
    announced_on: list[threading.Thread] = []
    arena.on_segment_added = lambda segment: announced_on.append(threading.current_thread())
    small = arena.allocate(100)
    assert arena.needs_growth(5 * MIB)
    thread = threading.Thread(target=arena.grow, args=(5 * MIB,))
    thread.start()
    thread.join()
    assert not arena.needs_growth(5 * MIB)
    reserved = arena.reserved_nbytes
    large = arena.allocate(5 * MIB)
    assert arena.reserved_nbytes == reserved
    assert bytes(arena.view(large)) == bytes(5 * MIB)
    assert announced_on == [threading.current_thread()] * len(arena.segments)
    assert arena.view(small)


def test_closed_while_another_thread_grows(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    growing, closed = threading.Event(), threading.Event()
    touch = Segment.touch

    def touch_when_closed(segment: Segment) -> None:
        touch(segment)
        growing.set()
        assert closed.wait(10)

    monkeypatch.setattr(Segment, "touch", touch_when_closed)
    thread = threading.Thread(target=arena.grow, args=(MIB,))
    thread.start()
    assert growing.wait(10)
    arena.close()
    closed.set()
    thread.join()
    assert arena.segments == ()  # and ``no_leaks`` finds no file
    with pytest.raises(ArenaFull, match="closed"):
        arena.allocate(1)


def test_threads_grow_while_the_owner_allocates(arena: Arena) -> None:
    threads = [threading.Thread(target=arena.grow, args=(MIB,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    live: list[Block] = []
    while any(thread.is_alive() for thread in threads) or len(live) < 100:
        live.append(arena.allocate(len(live) * 64))
        if len(live) > 150:
            arena.free(live.pop(0))
    for thread in threads:
        thread.join()
    for block in live:
        arena.free(block)
    assert not arena.needs_growth(MIB)
    assert arena.reserved_nbytes == sum(segment.nbytes for segment in arena.segments)


def _sizes() -> st.SearchStrategy[int]:
    return st.one_of(
        st.integers(0, 300),
        st.sampled_from([64, 1000, 65_536, 65_537]),
        st.integers(1, 200_000),
        st.integers(1, 3 * MIB),
    )


class ArenaMachine(RuleBasedStateMachine):
    """The arena against a table of what is allocated, each block filled with a pattern of its own."""

    blocks: Bundle[Block] = Bundle("blocks")

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(8 * MIB, "test", kind="memfd")
        self.announced: list[Segment] = []
        self.arena.on_segment_added = self.announced.append
        self.arena.on_segment_retired = self.retired
        self.patterns: dict[Block, bytes] = {}
        self.now = 0.0

    def retired(self, number: int) -> None:
        assert not [block for block in self.patterns if block.segment == number]
        [segment] = [segment for segment in self.announced if segment.number == number]
        self.announced.remove(segment)

    @rule(target=blocks, nbytes=_sizes())
    def allocate(self, nbytes: int) -> Block | MultipleResults[Block]:
        needs_growth = self.arena.needs_growth(nbytes)
        reserved = self.arena.reserved_nbytes
        try:
            block = self.arena.allocate(nbytes)
        except ArenaFull:
            assert needs_growth
            return multiple()
        assert (self.arena.reserved_nbytes > reserved) == needs_growth
        assert block not in self.patterns
        pattern = (len(self.patterns) * 7919 + nbytes).to_bytes(8, "little")
        self.patterns[block] = pattern
        view = self.arena.view(block)
        view[:8] = pattern[: len(view[:8])]
        view[-8:] = pattern[: len(view[-8:])]
        return block

    @rule(block=consumes(blocks))
    def free(self, block: Block) -> None:
        view = self.arena.view(block)
        pattern = self.patterns.pop(block)
        if block.nbytes >= 16:
            assert bytes(view[:8]) == bytes(view[-8:]) == pattern
        self.arena.free(block)
        with pytest.raises(ValueError):
            self.arena.free(block)

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def retire(self, seconds: float) -> None:
        self.now += seconds
        self.arena.retire_idle(self.now)

    @rule(nbytes=_sizes())
    def grow(self, nbytes: int) -> None:
        try:
            self.arena.grow(nbytes)
        except ArenaFull:
            return
        assert not self.arena.needs_growth(nbytes)

    @invariant()
    def nothing_overlaps(self) -> None:
        ends: dict[int, int] = {}
        sizes = {segment.number: segment.nbytes for segment in self.arena.segments}
        for block in sorted(self.patterns, key=lambda block: block.offset):
            assert block.offset % 64 == 0
            assert block.offset >= ends.get(block.segment, 0)
            ends[block.segment] = block.offset + max(block.nbytes, 1)
            assert ends[block.segment] <= sizes[block.segment]

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.arena.segments == tuple(self.announced)
        assert self.arena.used_nbytes == sum(max(-(-block.nbytes // 64) * 64, 64) for block in self.patterns)
        assert self.arena.reserved_nbytes <= 8 * MIB

    def teardown(self) -> None:
        try:
            self.everything_coalesces()
        finally:
            self.arena.close()

    def everything_coalesces(self) -> None:
        for block in self.patterns:
            self.arena.free(block)
        self.patterns.clear()
        assert self.arena.used_nbytes == 0
        self.arena.retire_idle(self.now)  # also takes in what has been grown
        sizes = sorted((segment.nbytes for segment in self.arena.segments), reverse=True)
        assert None not in [self.arena.allocate_within(size) for size in sizes]
        assert self.arena.used_nbytes == self.arena.reserved_nbytes


TestArenaMachine = ArenaMachine.TestCase
TestArenaMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
