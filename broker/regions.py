"""The registry of the memory that clients registered: names, bounds and Triton's words. Opens nothing itself."""

from collections.abc import Callable
from mmap import ALLOCATIONGRANULARITY

from conch.messages import Fault, Region, RegionKind, RegisterCudaRegion, RegisterRegion, UnregisterRegions

#: each costs every process of the server a descriptor, and its name is in every table that is sent around
MAX_REGIONS = 1024
_MAX_NAME_LENGTH = 1024
#: names that are remembered as unregistered
_MOST_UNREGISTERED = 4 * MAX_REGIONS
_RESERVED_PREFIX = "triton_python_backend_shm_region_"


class Registry:
    """``number`` makes the random names of regions in references. ``capacity``: how many regions there may be."""

    def __init__(self, number: Callable[[], int], capacity: int = MAX_REGIONS) -> None:
        self._number = number
        self._capacity = capacity
        self._regions: dict[str, Region] = {}
        #: what clients unregistered, by kind and name: a requester may still list it from before this broker's time
        self._unregistered: set[tuple[RegionKind, str]] = set()

    @property
    def regions(self) -> tuple[Region, ...]:
        return tuple(self._regions.values())

    # ------------------------------------------------------------------------------------------------------ registering

    def refusal(self, call: RegisterRegion | RegisterCudaRegion) -> Fault | None:
        """Why this cannot be registered, as far as that is known before anything is opened."""
        name = call.name
        if len(name) > _MAX_NAME_LENGTH:
            return Fault(
                "InvalidArgument", f"the name of a shared memory region has at most {_MAX_NAME_LENGTH} characters"
            )
        if isinstance(call, RegisterRegion):
            key = call.key.lstrip("/")
            if not key:
                text = f"cannot register shared memory region '{name}' - invalid shm key '{call.key}'"
                return Fault("InvalidArgument", text)
            if key.startswith(_RESERVED_PREFIX):
                return Fault(
                    "InvalidArgument",
                    f"cannot register shared memory region '{name}' with key '{call.key}' as the key contains the "
                    f"reserved prefix '{_RESERVED_PREFIX}'",
                )
            if len(call.key) > _MAX_NAME_LENGTH:
                return cannot_open(call)
        if name in self._regions:
            return Fault("AlreadyExists", f"shared memory region '{name}' already in manager")
        if len(self._regions) >= self._capacity:
            text = f"{self._capacity} shared memory regions are registered, which is the most; unregister some"
            return Fault("Overloaded", text)
        return None

    def add(
        self, call: RegisterRegion, holder_pid: int, descriptor: int, file: tuple[int, int], nbytes: int
    ) -> Fault | None:
        """What ``refusal`` let through, and has been opened now: a file of ``nbytes``. None: it is registered."""
        end = call.offset + call.nbytes
        if call.offset < 0 or call.nbytes < 0 or end > nbytes:
            return invalid(call)
        if not call.nbytes:
            return Fault("InvalidArgument", f"failed to register shared memory region '{call.name}': it has no bytes")
        if call.offset % ALLOCATIONGRANULARITY:
            return Fault(
                "InvalidArgument",
                f"failed to register shared memory region '{call.name}': the offset must be a multiple of the page "
                f"size, {ALLOCATIONGRANULARITY}",
            )
        self._regions[call.name] = Region(
            "system", call.name, self._number(), call.offset, call.nbytes, call.key, holder_pid, descriptor, file
        )
        return None

    def add_cuda(self, call: RegisterCudaRegion) -> Fault | None:
        """The requester has seen that the handle can be opened."""
        fault = self.refusal(call)
        if fault is None:
            self._regions[call.name] = Region(
                "cuda", call.name, self._number(), 0, call.nbytes, device=call.device, handle=call.handle
            )
        return fault

    # ---------------------------------------------------------------------------------------------------- unregistering

    def remove(self, call: UnregisterRegions) -> list[Region]:
        """What is unregistered now; nothing for an unknown name, which is no error."""
        removed = [
            region for region in self._regions.values() if region.kind == call.kind and call.name in ("", region.name)
        ]
        for region in removed:
            del self._regions[region.name]
        self._remember(call)
        return removed

    def _remember(self, call: UnregisterRegions) -> None:
        unregistered = self._unregistered
        if len(call.name) > _MAX_NAME_LENGTH:
            return
        if len(unregistered) < _MOST_UNREGISTERED:
            unregistered.add((call.kind, call.name))
        else:  # what is left of a former broker by now is not worth more memory: nothing is restored any more
            unregistered.update((("system", ""), ("cuda", "")))

    # ------------------------------------------------------------------------------------------------------- a restart

    def lacks(self, region: Region) -> bool:
        """Whether this, which a requester has had open since before this broker's time, is to be restored."""
        if region.name in self._regions or not self._unregistered.isdisjoint(
            ((region.kind, ""), (region.kind, region.name))
        ):
            return False
        return all(region.number != known.number for known in self._regions.values())

    def restore(self, region: Region) -> None:
        """What it ``lacks``; this process holds it now."""
        self._regions[region.name] = region


def invalid(call: RegisterRegion) -> Fault:
    return Fault("InvalidArgument", f"failed to register shared memory region '{call.name}': invalid args")


def cannot_open(call: RegisterRegion) -> Fault:
    return Fault("Internal", f"Unable to open shared memory region: '{call.key}'")
