"""Other processes' segments, as this process sees them.

Nothing here trusts a peer: the size is the kernel's, and each reference is checked against it in Python's integers.
"""

import mmap
import os
import weakref
from typing import Any

from conch.messages import Block, Lease
from shm.base import SHORTAGE, BadReference, CannotOpen
from shm.lent import Lent


class KeptSegment:
    """Somebody's data segment, for passing on (``shm.lent.OpenSegment``). Owns ``descriptor``, which is closed when
    nobody refers to this any more."""

    __slots__ = ("descriptor", "nbytes", "number")

    def __init__(self, number: int, nbytes: int, descriptor: int) -> None:
        self.number = number
        self.nbytes = nbytes
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class Mappings:
    """Segments by number. Data segments are mapped read-only, lease pages writable. Belongs to one thread, except
    ``give_back``.

    ``keep_descriptors``: blocks of data segments can be lent. Each segment takes up another descriptor then.
    """

    def __init__(self, keep_descriptors: bool = False) -> None:
        self.keeps_descriptors = keep_descriptors
        self._kept: dict[int, KeptSegment] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._files: dict[int, tuple[int, int]] = {}
        self._views: dict[int, memoryview] = {}
        self._pages: dict[int, memoryview] = {}
        _all.add(self)

    def add(self, segment: int, descriptor: int, lease_page: bool) -> None:
        """Maps a segment that was announced. Takes over ``descriptor`` and closes it, also when it raises.

        A segment that is mapped already (a second peer may announce it) stays as it is. Raises ``BadReference`` for a
        descriptor that cannot be mapped, or for a number that already stands for another file; ``CannotOpen`` if it is
        only at the moment that it cannot.
        """
        kept = False
        try:
            found = os.fstat(descriptor)
            file = (found.st_dev, found.st_ino)
            if segment in self._maps:
                if self._files[segment] != file:
                    raise BadReference(f"segment {segment} was announced twice, with different memory")
                return
            access = mmap.PROT_READ | mmap.PROT_WRITE if lease_page else mmap.PROT_READ
            mapping = mmap.mmap(descriptor, found.st_size, prot=access)
            kept = self.keeps_descriptors and not lease_page
        except (OSError, ValueError, OverflowError) as error:
            kind = CannotOpen if isinstance(error, OSError) and error.errno in SHORTAGE else BadReference
            raise kind(f"segment {segment} cannot be mapped: {error}") from error
        finally:
            if not kept:
                os.close(descriptor)
        if kept:
            self._kept[segment] = KeptSegment(segment, found.st_size, descriptor)
        self._maps[segment] = mapping
        self._files[segment] = file
        view = memoryview(mapping)
        if lease_page:
            self._pages[segment] = view[: len(view) // 8 * 8].cast("Q")
        else:
            self._views[segment] = view

    def remove(self, segment: int) -> None:
        """Unmaps a segment, now or when the last view of it is dropped. An unknown one is ignored."""
        mapping = self._maps.pop(segment, None)
        if mapping is None:
            return
        del self._files[segment]
        self._views.pop(segment, None)
        self._pages.pop(segment, None)
        self._kept.pop(segment, None)
        try:
            mapping.close()
        except BufferError:
            pass  # still being read: unmapped with the last view

    def view(self, block: Block) -> memoryview:
        """The block's bytes, read-only, without a copy. Raises ``BadReference``."""
        view = self._views.get(block.segment)
        offset = block.offset
        end = offset + block.nbytes
        if view is None or offset < 0 or end < offset or end > len(view):
            raise BadReference(f"{block} does not lie in a known segment")
        return view[offset:end]

    def lend(self, block: Block, hold: Any) -> Lent | None:
        """What another process needs to read the same bytes, which stay as they are while ``hold`` is referred to. None
        where descriptors are not kept, or for a segment that is not known."""
        kept = self._kept.get(block.segment)
        return None if kept is None else Lent(block, kept, hold)

    def give_back(self, lease: Lease) -> None:
        """Tells the worker that nobody here reads the leased block any more.

        An unknown page is ignored (the worker may be gone), and so is a slot or number that does not fit: whoever sent
        that lease harms only itself.
        """
        page = self._pages.get(lease.page)
        if page is not None and lease.slot >= 0:
            try:
                page[lease.slot] = lease.number
            except (IndexError, ValueError):
                pass

    def __contains__(self, segment: int) -> bool:
        return segment in self._maps

    def __len__(self) -> int:
        return len(self._maps)

    def close(self) -> None:
        for segment in list(self._maps):
            self.remove(segment)


_all: "weakref.WeakSet[Mappings]" = weakref.WeakSet()


def _give_nothing_back() -> None:
    """In a forked child: what it drops, its parent still reads."""
    for mappings in list(_all):
        mappings._pages.clear()


os.register_at_fork(after_in_child=_give_nothing_back)
