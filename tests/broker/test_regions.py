"""The registry of clients' regions: Triton's words, bounds, and what a restart brings back."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from broker.regions import Registry
from conch.messages import Fault, Region, RegisterCudaRegion, RegisterRegion, UnregisterRegions

PAGE = 4096
FILE = (7, 8)


def registry(capacity: int = 5) -> Registry:
    return Registry(itertools.count(1).__next__, capacity)


def register(regions: Registry, name: str, key: str = "/k", offset: int = 0, nbytes: int = 10) -> Fault | None:
    """As the shell does it, with a file of two pages."""
    call = RegisterRegion(1, name, key, offset, nbytes)
    return regions.refusal(call) or regions.add(call, 99, 5, FILE, 2 * PAGE)


def text(kind: str, fault: Fault | None) -> str:
    assert fault is not None and fault.kind == kind
    return fault.message


def names(regions: Registry) -> list[str]:
    return [region.name for region in regions.regions]


class TestRegister:
    def test_an_entry_says_where_to_open_it(self) -> None:
        regions = registry()
        assert register(regions, "a", "/k", PAGE, PAGE) is None
        assert regions.regions == (Region("system", "a", 1, PAGE, PAGE, "/k", 99, 5, FILE),)

    def test_names_are_unique_and_keys_are_not(self) -> None:
        regions = registry()
        assert register(regions, "a") is None
        assert register(regions, "b") is None
        assert text("AlreadyExists", register(regions, "a", "/l")) == "shared memory region 'a' already in manager"
        cuda = RegisterCudaRegion(1, "a", b"h" * 64, 0, 10)
        assert text("AlreadyExists", regions.add_cuda(cuda)) == "shared memory region 'a' already in manager"

    def test_keys(self) -> None:
        regions = registry()
        for key in ("", "/", "///"):
            assert text("InvalidArgument", register(regions, "a", key)) == (
                f"cannot register shared memory region 'a' - invalid shm key '{key}'"
            )
        key = "//triton_python_backend_shm_region_1"
        assert text("InvalidArgument", register(regions, "a", key)) == (
            f"cannot register shared memory region 'a' with key '{key}' as the key contains the reserved prefix "
            "'triton_python_backend_shm_region_'"
        )

    def test_bounds(self) -> None:
        regions = registry()
        for offset, nbytes in (
            (0, 2 * PAGE + 1),
            (2 * PAGE, 1),
            (PAGE, PAGE + 1),
            (2**64 - 1, 2),
            (2**63, 2**63),
            (-1, 1),
            (0, -1),
        ):
            fault = register(regions, "a", offset=offset, nbytes=nbytes)
            assert text("InvalidArgument", fault) == "failed to register shared memory region 'a': invalid args"
        for offset, nbytes in ((1, 1), (0, 0), (2 * PAGE, 0)):
            fault = register(regions, "a", offset=offset, nbytes=nbytes)
            assert text("InvalidArgument", fault).startswith("failed to register shared memory region 'a': ")
        assert register(regions, "a", offset=PAGE, nbytes=PAGE) is None

    @given(st.integers(-(2**66), 2**66), st.integers(-(2**66), 2**66))
    def test_what_is_registered_lies_in_the_file(self, offset: int, nbytes: int) -> None:
        regions = registry()
        if register(regions, "a", offset=offset, nbytes=nbytes) is None:
            assert offset >= 0 and nbytes > 0 and offset + nbytes <= 2 * PAGE

    def test_there_is_an_end_to_everything(self) -> None:
        regions = registry(capacity=2)
        assert register(regions, "a") is None
        assert regions.add_cuda(RegisterCudaRegion(1, "b", b"h" * 64, 1, 10)) is None
        assert "unregister" in text("Overloaded", register(regions, "c"))
        assert "at most" in text("InvalidArgument", register(regions, "n" * 1025))
        assert text("Internal", register(regions, "k", "k" * 1025)).startswith("Unable to open shared memory region")


class TestUnregister:
    def test_one_all_or_none_of_a_kind(self) -> None:
        regions = registry()
        for name in "abc":
            register(regions, name)
        regions.add_cuda(RegisterCudaRegion(1, "d", b"h" * 64, 1, 10))
        assert not regions.remove(UnregisterRegions(1, "system", "x"))
        assert not regions.remove(UnregisterRegions(1, "cuda", "a"))
        assert [region.name for region in regions.remove(UnregisterRegions(1, "system", "b"))] == ["b"]
        assert [region.name for region in regions.remove(UnregisterRegions(1, "system"))] == ["a", "c"]
        assert names(regions) == ["d"]
        assert [region.name for region in regions.remove(UnregisterRegions(1, "cuda"))] == ["d"]

    def test_the_name_is_free_again_and_the_number_is_not(self) -> None:
        regions = registry()
        register(regions, "a")
        (before,) = regions.remove(UnregisterRegions(1, "system", "a"))
        assert register(regions, "a") is None
        assert regions.regions[0].number != before.number


class TestRestart:
    OLD = Region("system", "a", 70, 0, 10, "/k", 99, 5, FILE)

    def test_each_is_restored_once(self) -> None:
        regions = registry()
        assert regions.lacks(self.OLD)
        regions.restore(self.OLD)
        assert not regions.lacks(self.OLD)
        assert text("AlreadyExists", register(regions, "a"))

    def test_of_two_with_one_name_the_first_counts(self) -> None:
        regions = registry()
        register(regions, "a")
        assert not regions.lacks(self.OLD)

    def test_what_was_unregistered_since_stays_so(self) -> None:
        regions = registry()
        regions.restore(self.OLD)
        regions.remove(UnregisterRegions(1, "system"))
        assert not regions.lacks(self.OLD)

    def test_what_was_unregistered_before_it_was_known_does_not_come_back(self) -> None:
        regions = registry()
        assert not regions.remove(UnregisterRegions(1, "cuda", "a"))
        assert not regions.remove(UnregisterRegions(1, "system", "b"))
        assert regions.lacks(self.OLD)
        assert not regions.remove(UnregisterRegions(1, "system", "a"))
        assert not regions.lacks(self.OLD)

    def test_nor_what_was_registered_anew_and_unregistered(self) -> None:
        regions = registry()
        register(regions, "a")
        assert len(regions.remove(UnregisterRegions(1, "system", "a"))) == 1
        assert not regions.lacks(self.OLD)

    def test_too_many_names_to_remember(self) -> None:
        regions = registry()
        for number in range(4096):
            regions.remove(UnregisterRegions(1, "system", f"x{number}"))
        assert regions.lacks(self.OLD)
        regions.remove(UnregisterRegions(1, "system", "one more"))
        assert not regions.lacks(self.OLD)
