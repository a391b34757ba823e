"""shm.client_regions: memory whose owner may do anything to it at any time."""

import faulthandler
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.errors import InvalidArgument
from conch.messages import ClientRegion
from shm.base import BadReference
from shm.client_regions import ClientRegions, OpenRegions
from tests.client_memory import ClientMemory, client_memory

NBYTES = 3 * 4096
NUMBER = 5


@pytest.fixture
def memory() -> Iterator[ClientMemory]:
    with client_memory(NBYTES) as memory:
        yield memory


@pytest.fixture
def regions() -> Iterator[ClientRegions]:
    regions = ClientRegions(OpenRegions())
    yield regions
    regions.close()


def add(regions: ClientRegions, memory: ClientMemory, offset: int = 0, nbytes: int = NBYTES) -> None:
    regions.add(NUMBER, os.dup(memory.descriptor), offset, nbytes)


def read(regions: ClientRegions, offset: int, nbytes: int) -> bytes:
    return bytes(regions.window(ClientRegion(NUMBER, offset, nbytes), "input 'IN'").view)


def test_both_see_what_the_other_writes(memory: ClientMemory, regions: ClientRegions) -> None:
    add(regions, memory)
    memory.view[100:105] = b"hello"
    window = regions.window(ClientRegion(NUMBER, 100, 5), "input 'IN'")
    assert bytes(window.view) == b"hello"
    window.view[:2] = b"HE"
    assert bytes(memory.view[100:105]) == b"HEllo"


@pytest.mark.parametrize("start", [0, 4096, 8192])
def test_a_region_may_begin_at_any_page(memory: ClientMemory, regions: ClientRegions, start: int) -> None:
    memory.view[:] = os.urandom(NBYTES)
    add(regions, memory, start, NBYTES - start)
    assert read(regions, 0, NBYTES - start) == bytes(memory.view[start:])
    assert read(regions, 7, 100) == bytes(memory.view[start + 7 : start + 107])
    assert read(regions, NBYTES - start, 0) == b""
    window = regions.window(ClientRegion(NUMBER, 8, 8), "input 'IN'")
    assert window.is_aligned(8) and not window.is_aligned(16)


@pytest.mark.parametrize("nbytes", [NBYTES // 3, 5000])
def test_nothing_beside_the_region_can_be_reached(memory: ClientMemory, regions: ClientRegions, nbytes: int) -> None:
    add(regions, memory, 4096, nbytes)
    for offset, length in [(-1, 1), (0, nbytes + 1), (nbytes, 1), (nbytes + 1, 0), (0, -1), (10, -5), (0, 2**63)]:
        with pytest.raises(BadReference):
            read(regions, offset, length)


edges = st.sampled_from([0, 1, NBYTES, 2**31, 2**32, 2**63, 2**64])
numbers = st.one_of(st.builds(lambda edge, step: edge + step, edges, st.integers(-70, 70)), st.integers())


@given(offset=numbers, nbytes=numbers)
def test_fits_or_raises(offset: int, nbytes: int) -> None:
    regions = ClientRegions(OpenRegions())
    with client_memory(NBYTES) as memory:
        add(regions, memory)
        fits = 0 <= offset and 0 <= nbytes and offset + nbytes <= NBYTES
        if fits:
            assert len(read(regions, offset, nbytes)) == nbytes
        else:
            with pytest.raises(BadReference):
                read(regions, offset, nbytes)
        regions.close()


def test_announced_with_sizes_that_cannot_be(memory: ClientMemory, regions: ClientRegions) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for offset, nbytes in [(-1, 5), (-4096, 5), (1, 5), (100, 4096), (0, -1), (0, 0), (4096, 0)]:
        with pytest.raises(BadReference):
            add(regions, memory, offset, nbytes)
    assert not regions.knows(NUMBER)
    assert len(os.listdir("/proc/self/fd")) == before
    for nbytes in (NBYTES + 1, 2**62, 2**63, 2**70):
        add(regions, memory, 0, nbytes)
        with pytest.raises(InvalidArgument):
            read(regions, 0, 1)
        regions.remove(NUMBER)


def test_cut_and_mended(memory: ClientMemory, regions: ClientRegions) -> None:
    add(regions, memory, 4096, 4096)
    text = "input 'IN' cannot be used: its shared memory region is smaller than when it was registered"
    for _ in range(2):  # before it is mapped, and after
        memory.resize(8191)
        with pytest.raises(InvalidArgument) as caught:
            read(regions, 0, 1)
        assert caught.value.message == text
        memory.resize(8192)
        window = regions.window(ClientRegion(NUMBER, 0, 10), "input 'IN'")
        window.check()
    memory.resize(0)
    with pytest.raises(InvalidArgument) as caught:
        window.check()
    assert caught.value.message == text


def test_cut_during_a_use(memory: ClientMemory, regions: ClientRegions) -> None:
    add(regions, memory)
    window = regions.window(ClientRegion(NUMBER, 0, NBYTES), "input 'IN'")
    memory.resize(0)
    child = os.fork()
    if not child:
        faulthandler.disable()
        bytes(window.view)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGBUS


def test_the_name_does_not_matter_any_more(memory: ClientMemory, regions: ClientRegions) -> None:
    add(regions, memory)
    memory.unlink()
    memory.view[:3] = b"abc"
    assert read(regions, 0, 3) == b"abc"


def test_retired_while_it_is_used(memory: ClientMemory, regions: ClientRegions) -> None:
    add(regions, memory)
    window = regions.window(ClientRegion(NUMBER, 0, 3), "output 'OUT'")
    regions.remove(NUMBER)
    assert len(regions) == 0
    window.check()
    window.view[:] = b"abc"
    assert bytes(memory.view[:3]) == b"abc"
    with pytest.raises(InvalidArgument) as caught:
        read(regions, 0, 1)
    assert caught.value.message == "input 'IN' cannot be used: its shared memory region is not registered any more"


def test_several_requesters_announce_the_same_memory(memory: ClientMemory) -> None:
    """It takes one descriptor, until the last of them has retired it."""
    before = len(os.listdir("/proc/self/fd"))
    opened = OpenRegions()
    requesters = [ClientRegions(opened) for _ in range(3)]
    for requester in requesters:
        add(requester, memory)
        assert len(os.listdir("/proc/self/fd")) == before + 1
    window = requesters[0].window(ClientRegion(NUMBER, 0, 3), "output 'OUT'")
    requesters[0].remove(NUMBER)
    requesters[1].close()
    window.view[:] = b"abc"
    assert read(requesters[2], 0, 3) == b"abc"
    for requester in requesters[:2]:
        assert len(requester) == 0
    del window
    requesters[2].remove(NUMBER)
    assert len(os.listdir("/proc/self/fd")) == before


def test_known_is_what_was_announced_or_retired(memory: ClientMemory, regions: ClientRegions) -> None:
    assert not regions.knows(NUMBER)
    with pytest.raises(BadReference):
        read(regions, 0, 1)
    add(regions, memory)
    assert regions.knows(NUMBER)
    regions.remove(NUMBER)
    assert regions.knows(NUMBER)
    add(regions, memory)  # a new broker has restored it
    add(regions, memory, 100, 5)  # stays as it is
    assert len(read(regions, 0, NBYTES)) == NBYTES
    for number in range(100, 20_000):
        regions.remove(number)
    assert not regions.knows(101)
    assert regions.knows(19_999)


def test_memory_that_cannot_be_written(memory: ClientMemory, regions: ClientRegions) -> None:
    regions.add(NUMBER, os.open(f"/dev/shm{memory.key}", os.O_RDONLY), 0, NBYTES)
    with pytest.raises(InvalidArgument) as caught:
        read(regions, 0, 1)
    assert caught.value.message == "input 'IN' cannot be used: its shared memory region cannot be mapped"
