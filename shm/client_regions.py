"""Memory that clients registered, as a worker sees it.

A client owns the file and may write to it, cut it or remove its name at any moment. So, unlike ``shm.mapping``, nothing
here takes for granted that the memory keeps its size: it is looked at before each use. A client that cuts it in the
very moment of a use ends this process with SIGBUS, which is why only workers map such memory.
"""

import mmap
import os

from conch.errors import InvalidArgument, Overloaded
from conch.messages import ClientRegion
from shm.base import SHORTAGE, BadReference

#: retired numbers that are remembered, so that a late reference to one is not waited for
_MOST_RETIRED = 10_000


class _Region:
    """``nbytes`` bytes, at least 1, from ``offset``, a multiple of the page size, of the file behind ``descriptor``,
    which it owns. Mapped at the first use: most workers never use most regions, and by then the client may have mended
    what it had cut."""

    __slots__ = ("_descriptor", "_mapping", "_nbytes", "_offset", "_view", "announcers")

    def __init__(self, descriptor: int, offset: int, nbytes: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._nbytes = nbytes
        self._mapping: mmap.mmap | None = None
        self._view = memoryview(b"")
        #: how many requesters have announced it and not retired it
        self.announcers = 0

    def check(self, tensor: str) -> None:
        """Raises ``InvalidArgument`` if the file has been cut."""
        mapping = self._mapping
        size = os.fstat(self._descriptor).st_size if mapping is None else mapping.size()
        if size < self._offset + self._nbytes:
            raise _unusable(tensor, "is smaller than when it was registered")

    def view(self, tensor: str) -> memoryview:
        """All of it, writable. Raises ``InvalidArgument`` and ``Overloaded``."""
        self.check(tensor)
        if self._mapping is None:
            try:
                mapping = mmap.mmap(self._descriptor, self._nbytes, offset=self._offset)
            except (OSError, ValueError, OverflowError) as error:
                if isinstance(error, OSError) and error.errno in SHORTAGE:
                    text = (
                        f"{tensor} cannot be used: its shared memory region cannot be mapped at the moment; try again"
                    )
                    raise Overloaded(text) from error
                raise _unusable(tensor, "cannot be mapped") from error
            self._close_descriptor()  # the mapping has a duplicate, and looks at the size through it
            self._mapping = mapping
            self._view = memoryview(mapping)
        return self._view

    def _close_descriptor(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def close(self) -> None:
        """Unmaps it, now or when the last view of it is dropped."""
        self._close_descriptor()
        if self._mapping is None:
            return
        self._view = memoryview(b"")
        try:
            self._mapping.close()
        except BufferError:
            pass  # still being read or written


def _unusable(tensor: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{tensor} cannot be used: its shared memory region {reason}")


class ClientWindow:
    """Part of a region, for one tensor of one request. ``view`` is writable."""

    __slots__ = ("_region", "_tensor", "reference", "view")

    def __init__(self, region: _Region, reference: ClientRegion, tensor: str) -> None:
        self._region = region
        self._tensor = tensor
        self.reference = reference
        view = region.view(tensor)
        end = reference.offset + reference.nbytes
        if reference.offset < 0 or end < reference.offset or end > len(view):
            raise BadReference(f"{reference} does not lie in its region")
        self.view = view[reference.offset : end]

    def check(self) -> None:
        """To be called before a use that comes later. Raises ``InvalidArgument``."""
        self._region.check(self._tensor)

    def is_aligned(self, alignment: int) -> bool:
        """Whether the view begins at a multiple of ``alignment``, a power of 2 of at most a page."""
        return self.reference.offset % alignment == 0


class OpenRegions:
    """The regions that a process has open, by number, each once however many requesters announce it: clients decide how
    many there are, and each takes a descriptor. Belongs to one thread."""

    def __init__(self) -> None:
        self._regions: dict[int, _Region] = {}

    def open(self, number: int, descriptor: int, offset: int, nbytes: int) -> _Region:
        """Takes over ``descriptor``. To be followed by one ``close``. Raises ``BadReference`` for what the broker's
        registry does not let through."""
        if nbytes < 1 or offset < 0 or offset % mmap.ALLOCATIONGRANULARITY:
            os.close(descriptor)
            raise BadReference(f"region {number} was announced with {nbytes} bytes from {offset}")
        region = self._regions.get(number)
        if region is None:
            region = self._regions[number] = _Region(descriptor, offset, nbytes)
        else:
            os.close(descriptor)
        region.announcers += 1
        return region

    def close(self, number: int) -> None:
        region = self._regions[number]
        region.announcers -= 1
        if not region.announcers:
            del self._regions[number]
            region.close()


class ClientRegions:
    """The regions that one requester has announced, by number. Belongs to one thread."""

    def __init__(self, opened: OpenRegions) -> None:
        self._opened = opened
        self._regions: dict[int, _Region] = {}
        self._retired: dict[int, None] = {}

    def add(self, number: int, descriptor: int, offset: int, nbytes: int) -> None:
        """Takes over ``descriptor``, which is open for writing. A number that is there already stays as it is.

        Raises ``BadReference`` for a place where no region can lie.
        """
        if number in self._regions:
            os.close(descriptor)
            return
        self._regions[number] = self._opened.open(number, descriptor, offset, nbytes)
        self._retired.pop(number, None)

    def remove(self, number: int) -> None:
        """A view that is still in use stays valid."""
        if self._regions.pop(number, None) is not None:
            self._opened.close(number)
        self._retired[number] = None
        if len(self._retired) > _MOST_RETIRED:
            del self._retired[next(iter(self._retired))]

    def window(self, reference: ClientRegion, tensor: str) -> ClientWindow:
        """``tensor`` is how to call it when it cannot be used: ``input 'NAME'``.

        Raises ``BadReference``, and ``InvalidArgument`` for a region that is retired or has been cut.
        """
        region = self._regions.get(reference.region)
        if region is None:
            if reference.region in self._retired:
                raise _unusable(tensor, "is not registered any more")
            raise BadReference(f"{reference} does not lie in a known region")
        return ClientWindow(region, reference, tensor)

    def knows(self, number: int) -> bool:
        """Whether waiting for its announcement would be in vain: it has been announced or retired."""
        return number in self._regions or number in self._retired

    def __len__(self) -> int:
        return len(self._regions)

    def close(self) -> None:
        for number in self._regions:
            self._opened.close(number)
        self._regions.clear()
