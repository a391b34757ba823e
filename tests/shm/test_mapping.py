"""shm.mapping: a reference is checked against the kernel's size, whatever the peer says."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.messages import Block, Lease
from shm.base import BadReference
from shm.mapping import Mappings
from shm.segment import Kind, Segment

NBYTES = 8192


@pytest.fixture(params=["posix", "memfd"])
def segment(request: pytest.FixtureRequest) -> Iterator[Segment]:
    kind: Kind = request.param
    segment = Segment(NBYTES, kind=kind)
    yield segment
    segment.close()


@pytest.fixture
def mappings(segment: Segment) -> Iterator[Mappings]:
    mappings = Mappings()
    mappings.add(segment.number, os.dup(segment.descriptor), lease_page=False)
    yield mappings
    mappings.close()


def test_sees_what_the_owner_writes_and_cannot_write(segment: Segment, mappings: Mappings) -> None:
    view = mappings.view(Block(segment.number, 100, 5))
    segment.view[100:105] = b"hello"
    assert bytes(view) == b"hello"
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1
    assert len(mappings.view(Block(segment.number, NBYTES, 0))) == 0


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [
        (-1, 1),
        (-1, 2),
        (-NBYTES, NBYTES),
        (0, -1),
        (10, -5),
        (0, NBYTES + 1),
        (NBYTES, 1),
        (NBYTES + 1, 0),
        (NBYTES - 1, 2),
        (2**63, 1),
        (0, 2**63),
        (2**63 - 1, 2**63),
        (2**64 - 1, 1),
        (-(2**63), 2**63),
        (2**64 - NBYTES, NBYTES + 1),
    ],
)
def test_out_of_range_reference(segment: Segment, mappings: Mappings, offset: int, nbytes: int) -> None:
    with pytest.raises(BadReference):
        mappings.view(Block(segment.number, offset, nbytes))


@pytest.mark.parametrize("number", [0, -1, 2**63, 2**64 - 1])
def test_unknown_segment(mappings: Mappings, number: int) -> None:
    assert number not in mappings
    with pytest.raises(BadReference):
        mappings.view(Block(number, 0, 1))


edges = st.sampled_from([0, 1, NBYTES, 2**31, 2**32, 2**63, 2**64])
numbers = st.one_of(st.builds(lambda edge, step: edge + step, edges, st.integers(-70, 70)), st.integers())


@given(offset=numbers, nbytes=numbers)
def test_fits_or_raises(offset: int, nbytes: int) -> None:
    segment = Segment(NBYTES, kind="memfd")
    mappings = Mappings()
    mappings.add(segment.number, os.dup(segment.descriptor), lease_page=False)
    try:
        length = len(mappings.view(Block(segment.number, offset, nbytes)))
    except BadReference:
        assert not (0 <= offset <= offset + nbytes <= NBYTES)
    else:
        assert 0 <= offset <= offset + nbytes <= NBYTES
        assert length == nbytes
    finally:
        mappings.close()
        segment.close()


def test_lease_page_is_no_place_for_tensors() -> None:
    page = Segment(4096, lease_page=True)
    mappings = Mappings()
    mappings.add(page.number, os.dup(page.descriptor), lease_page=True)
    with pytest.raises(BadReference):
        mappings.view(Block(page.number, 0, 8))
    mappings.give_back(Lease(page.number, 511, 77))
    assert page.view.cast("Q")[511] == 77
    mappings.give_back(Lease(page.number, 512, 78))
    mappings.close()
    page.close()


def test_removed_while_still_being_read(segment: Segment, mappings: Mappings) -> None:
    view = mappings.view(Block(segment.number, 0, 4))
    segment.view[:4] = b"kept"
    mappings.remove(segment.number)
    mappings.remove(segment.number)
    assert segment.number not in mappings
    with pytest.raises(BadReference):
        mappings.view(Block(segment.number, 0, 4))
    assert bytes(view) == b"kept"


def test_descriptor_is_taken_over(segment: Segment, mappings: Mappings) -> None:
    descriptors = set(os.listdir("/proc/self/fd"))
    mappings.add(segment.number, os.dup(segment.descriptor), lease_page=False)  # again, by another peer
    other = Segment(4096)
    with pytest.raises(BadReference, match="announced twice"):
        mappings.add(segment.number, os.dup(other.descriptor), lease_page=False)
    other.close()
    assert bytes(mappings.view(Block(segment.number, 0, 1))) == b"\0"
    assert set(os.listdir("/proc/self/fd")) == descriptors


def test_what_cannot_be_mapped(segment: Segment, mappings: Mappings) -> None:
    descriptors = set(os.listdir("/proc/self/fd"))
    with pytest.raises(BadReference):
        mappings.add(1, os.dup(segment.descriptor), lease_page=True)  # read-only
    ends = socket.socketpair()
    with pytest.raises(BadReference):
        mappings.add(2, os.dup(ends[0].fileno()), lease_page=False)
    for end in ends:
        end.close()
    with pytest.raises(BadReference):
        mappings.add(3, os.memfd_create("empty"), lease_page=False)
    with pytest.raises(BadReference):
        mappings.add(4, os.open("/dev/null", os.O_RDONLY), lease_page=False)
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert len(mappings) == 1


class TestLending:
    def test_what_is_lent_can_be_mapped_elsewhere_as_long_as_it_lives(self, segment: Segment) -> None:
        mappings = Mappings(keep_descriptors=True)
        mappings.add(segment.number, os.dup(segment.descriptor), lease_page=False)
        segment.view[64:69] = b"hello"
        hold = object()
        block = Block(segment.number, 64, 5)
        lent = mappings.lend(block, hold)
        assert lent is not None and lent.block is block and lent.hold is hold
        assert (lent.segment.number, lent.segment.nbytes) == (segment.number, NBYTES)
        mappings.close()
        segment.close()
        other = Mappings()
        other.add(lent.segment.number, os.dup(lent.segment.descriptor), lease_page=False)
        assert bytes(other.view(lent.block)) == b"hello"
        other.close()
        descriptor = lent.segment.descriptor
        del lent
        with pytest.raises(OSError):
            os.fstat(descriptor)

    def test_only_where_it_is_asked_for_and_only_data(self, segment: Segment, mappings: Mappings) -> None:
        block = Block(segment.number, 0, 8)
        assert mappings.lend(block, None) is None
        keeping = Mappings(keep_descriptors=True)
        page = Segment(4096, lease_page=True)
        keeping.add(page.number, os.dup(page.descriptor), lease_page=True)
        assert keeping.lend(Block(page.number, 0, 8), None) is None
        assert keeping.lend(block, None) is None
        keeping.close()
        page.close()

    def test_descriptors_are_closed(self, segment: Segment) -> None:
        before = len(os.listdir("/proc/self/fd"))
        mappings = Mappings(keep_descriptors=True)
        for _ in range(3):
            mappings.add(segment.number, os.dup(segment.descriptor), lease_page=False)
        read, write = os.pipe()
        with pytest.raises(BadReference):
            mappings.add(7, read, lease_page=False)
        os.close(write)
        mappings.remove(segment.number)
        assert len(os.listdir("/proc/self/fd")) == before
        mappings.close()
