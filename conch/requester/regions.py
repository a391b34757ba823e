"""The frontends' copy of the registry of client regions, and lookups in it with Triton's words."""

from conch.errors import InvalidArgument, NotFound, Unsupported
from conch.messages import Region, RegionKind, RegionTable
from conch.requester.inference import RegionWindow

#: Triton's sizes are 64-bit unsigned
_MAX_SIZE = 2**64 - 1
_KIND_WORDS: dict[RegionKind, str] = {"system": "system", "cuda": "CUDA"}


def check_allowed(allowed: bool) -> None:
    """To be called before a client's call changes the registry. Raises ``Unsupported``."""
    if not allowed:
        raise Unsupported(
            "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
        )


class RegionTableView:
    """``update`` swaps the whole table; everything else reads the one it was last given."""

    def __init__(self) -> None:
        self._regions: tuple[Region, ...] = ()
        #: the kinds share one space of names
        self._by_name: dict[str, Region] = {}

    def update(self, table: RegionTable) -> None:
        self._regions = tuple(sorted(table.regions, key=lambda region: region.name))
        self._by_name = {region.name: region for region in self._regions}

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def window(self, name: str, offset: int, nbytes: int) -> RegionWindow:
        """What a request means by a region and a place in it. Raises ``NotFound`` and ``InvalidArgument``."""
        region = self._by_name.get(name)
        if region is None:
            raise NotFound(f"Unable to find shared memory region: '{name}'")
        if offset < 0 or offset >= region.nbytes:
            raise InvalidArgument(f"Invalid offset for shared memory region: '{name}'")
        if offset + nbytes > _MAX_SIZE:
            raise InvalidArgument(
                f"Integer overflow detected: byte_size ({nbytes}) + offset ({offset}) exceeds maximum value "
                f"({_MAX_SIZE}) for region '{name}'"
            )
        if nbytes < 0 or offset + nbytes > region.nbytes:
            raise InvalidArgument(f"Invalid offset + byte size for shared memory region: '{name}'")
        return RegionWindow(name, region.number, offset, nbytes, region.kind == "cuda")

    def listed(self, kind: RegionKind, name: str = "") -> list[Region]:
        """By name; all of this kind if ``name`` is empty. Raises ``NotFound`` for a name that there is not."""
        if not name:
            return [region for region in self._regions if region.kind == kind]
        found = self._by_name.get(name)
        if found is None:
            raise NotFound(f"Unable to find {kind} shared memory region: '{name}'")
        if found.kind != kind:
            raise NotFound(
                f"The region named '{name}' is registered as {_KIND_WORDS[found.kind]} shared memory, not "
                f"{_KIND_WORDS[kind]} shared memory"
            )
        return [found]
