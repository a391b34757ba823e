"""Lookups in the table of regions, with Triton's words."""

import pytest

from conch.errors import InvalidArgument, NotFound
from conch.messages import Region, RegionTable
from conch.requester.inference import RegionWindow
from conch.requester.regions import RegionTableView

SYSTEM = Region("system", "s", 5, 4096, 100, "/key")
CUDA = Region("cuda", "c", 6, 0, 50, device=1, handle=b"h" * 64)


@pytest.fixture
def regions() -> RegionTableView:
    view = RegionTableView()
    view.update(RegionTable(1, 1, (SYSTEM, CUDA)))
    return view


def test_windows_are_relative_to_the_region(regions: RegionTableView) -> None:
    assert regions.window("s", 0, 100) == RegionWindow("s", 5, 0, 100)
    assert regions.window("s", 99, 1) == RegionWindow("s", 5, 99, 1)
    assert regions.window("s", 0, 0) == RegionWindow("s", 5, 0, 0)
    assert regions.window("c", 10, 40) == RegionWindow("c", 6, 10, 40, cuda=True)


@pytest.mark.parametrize(
    ("offset", "nbytes", "text"),
    [
        (100, 0, "Invalid offset for shared memory region: 's'"),
        (2**64 - 1, 1, "Invalid offset for shared memory region: 's'"),
        (-1, 1, "Invalid offset for shared memory region: 's'"),
        (0, 101, "Invalid offset + byte size for shared memory region: 's'"),
        (99, 2, "Invalid offset + byte size for shared memory region: 's'"),
        (0, -1, "Invalid offset + byte size for shared memory region: 's'"),
        (
            5,
            2**64 - 1,
            "Integer overflow detected: byte_size (18446744073709551615) + offset (5) exceeds maximum value "
            "(18446744073709551615) for region 's'",
        ),
    ],
)
def test_windows_that_do_not_lie_in_it(regions: RegionTableView, offset: int, nbytes: int, text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        regions.window("s", offset, nbytes)
    assert raised.value.message == text


def test_unknown_regions(regions: RegionTableView) -> None:
    with pytest.raises(NotFound, match=r"^Unable to find shared memory region: 'x'$"):
        regions.window("x", 0, 1)


def test_lists_are_by_kind(regions: RegionTableView) -> None:
    assert regions.listed("system") == regions.listed("system", "s") == [SYSTEM]
    assert regions.listed("cuda") == regions.listed("cuda", "c") == [CUDA]
    for kind, name, text in (
        ("system", "x", "Unable to find system shared memory region: 'x'"),
        ("cuda", "x", "Unable to find cuda shared memory region: 'x'"),
        ("cuda", "s", "The region named 's' is registered as system shared memory, not CUDA shared memory"),
        ("system", "c", "The region named 'c' is registered as CUDA shared memory, not system shared memory"),
    ):
        with pytest.raises(NotFound) as raised:
            regions.listed(kind, name)  # type: ignore[arg-type]
        assert raised.value.message == text
