"""shm.leases: given back without a message."""

import os
from collections.abc import Iterator

import pytest

from conch.messages import Lease
from shm.arena import Arena
from shm.base import ArenaFull
from shm.leases import LeasedArena
from shm.mapping import Mappings
from shm.segment import Segment

KIB = 1 << 10
MIB = 1 << 20


@pytest.fixture
def reader() -> Iterator[Mappings]:
    mappings = Mappings()
    yield mappings
    mappings.close()


@pytest.fixture
def leased(reader: Mappings) -> Iterator[LeasedArena]:
    leased = make(2 * MIB, reader)
    yield leased
    leased.close()


def make(cap_nbytes: int, reader: Mappings) -> LeasedArena:
    arena = Arena(cap_nbytes, "output")

    def announce(segment: Segment) -> None:
        reader.add(segment.number, os.dup(segment.descriptor), segment.lease_page)

    arena.on_segment_added = announce
    return LeasedArena(arena)


def test_given_back_block_is_freed(leased: LeasedArena, reader: Mappings) -> None:
    block = leased.allocate(100)
    lease = leased.lease(block, "frontend")
    assert leased.outstanding == 1
    assert leased.reclaim() == 0
    reader.give_back(lease)
    assert leased.reclaim() == 1
    assert (leased.outstanding, leased.arena.used_nbytes) == (0, 0)
    assert leased.reclaim() == 0


def test_a_forked_child_of_the_reader_gives_nothing_back(leased: LeasedArena, reader: Mappings) -> None:
    lease = leased.lease(leased.allocate(100), "frontend")
    pid = os.fork()
    if not pid:
        reader.give_back(lease)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert leased.reclaim() == 0
    reader.give_back(lease)
    assert leased.reclaim() == 1


def test_numbers_are_never_reused_in_a_process(leased: LeasedArena, reader: Mappings) -> None:
    other = make(MIB, reader)
    seen: set[int] = set()
    for arena in [leased, other] * 50:
        lease = arena.lease(arena.allocate(10), "frontend")
        assert 0 < lease.number < 2**64
        assert lease.number not in seen
        seen.add(lease.number)
        reader.give_back(lease)
    other.close()


def test_stale_and_false_writes_do_nothing(leased: LeasedArena, reader: Mappings) -> None:
    old = leased.lease(leased.allocate(10), "frontend")
    reader.give_back(old)
    leased.reclaim()
    new = leased.lease(leased.allocate(10), "frontend")
    assert (new.page, new.slot) == (old.page, old.slot)
    assert leased.reclaim() == 0  # the old number still stands in the slot
    for lease in (
        old,
        Lease(new.page, new.slot, new.number + 1),
        Lease(new.page, new.slot, 2**64),
        Lease(new.page, new.slot, -1),
        Lease(new.page, new.slot + 1, new.number),
        Lease(new.page, -1, new.number),
        Lease(new.page, 2**63, new.number),
        Lease(new.page ^ 1, new.slot, new.number),
        Lease(leased.arena.segments[0].number, 0, new.number),
    ):
        reader.give_back(lease)
        assert leased.reclaim() == 0
    reader.give_back(new)
    assert leased.reclaim() == 1


def test_block_with_two_readers_waits_for_both(leased: LeasedArena, reader: Mappings) -> None:
    block = leased.allocate(10)
    first, second = leased.lease(block, "a"), leased.lease(block, "b")
    reader.give_back(first)
    assert leased.reclaim() == 0
    assert (leased.outstanding, leased.arena.used_nbytes) == (1, 64)
    reader.give_back(second)
    assert leased.reclaim() == 1
    assert leased.arena.used_nbytes == 0


def test_memory_is_used_again_without_growing(leased: LeasedArena, reader: Mappings) -> None:
    places = set()
    for _ in range(10_000):
        block = leased.allocate(300)
        places.add(block.offset)
        reader.give_back(leased.lease(block, "frontend"))
    assert len(places) < 10
    assert leased.outstanding < 10


def test_one_slow_reader_does_not_hold_up_the_others(leased: LeasedArena, reader: Mappings) -> None:
    slow = leased.lease(leased.allocate(300), "slow")
    places = set()
    for _ in range(1000):
        block = leased.allocate(300)
        places.add(block.offset)
        reader.give_back(leased.lease(block, "frontend"))
    assert len(places) < 10
    reader.give_back(slow)
    leased.reclaim()
    assert leased.outstanding == 0


def test_reclaims_before_it_is_full(leased: LeasedArena, reader: Mappings) -> None:
    leases = [leased.lease(leased.allocate(256 * KIB), "frontend") for _ in range(8)]
    with pytest.raises(ArenaFull):
        leased.allocate(1)
    for lease in leases:
        reader.give_back(lease)
    assert leased.allocate(MIB).nbytes == MIB


def test_reclaims_before_it_grows(leased: LeasedArena, reader: Mappings) -> None:
    for lease in [leased.lease(leased.allocate(100 * KIB), "frontend") for _ in range(10)]:
        reader.give_back(lease)
    leased.allocate(MIB)
    assert leased.arena.reserved_nbytes == MIB


def test_forget_frees_what_a_dead_reader_had(leased: LeasedArena, reader: Mappings) -> None:
    shared = leased.allocate(10)
    leased.lease(shared, "dead")
    kept = leased.lease(shared, "alive")
    for _ in range(5):
        leased.lease(leased.allocate(10), "dead")
    leased.forget("dead")
    leased.forget("never there")
    assert (leased.outstanding, leased.arena.used_nbytes) == (1, 64)
    reader.give_back(kept)
    assert leased.reclaim() == 1


def test_more_leases_than_a_page_has_slots(leased: LeasedArena, reader: Mappings) -> None:
    block = leased.allocate(10)
    leases = [leased.lease(block, "frontend") for _ in range(5000)]
    pages = [segment for segment in leased.segments if segment.lease_page]
    assert {lease.page for lease in leases} == {page.number for page in pages}
    assert len({(lease.page, lease.slot) for lease in leases}) == 5000
    assert [segment for segment in leased.segments if not segment.lease_page] == list(leased.arena.segments)
    for lease in leases:
        reader.give_back(lease)
    assert leased.reclaim() == 1
    leased.lease(leased.allocate(10), "frontend")
    assert len(leased.segments) == len(pages) + 1


def test_idle_worker_lets_go_of_its_memory(leased: LeasedArena, reader: Mappings) -> None:
    reader.give_back(leased.lease(leased.allocate(MIB), "frontend"))
    leased.retire_idle(0.0)
    leased.retire_idle(60.0)
    assert leased.arena.reserved_nbytes == 0
    assert leased.allocate(10).nbytes == 10
