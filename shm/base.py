"""The contract of the data plane, which the POSIX and the CUDA IPC implementation share.

One process owns an arena, and only it allocates and frees there; everyone else gets references in messages and opens
them. Nothing that anyone trusts lives in the shared memory itself.
"""

import errno
from typing import Protocol, TypeVar

from conch.messages import Block, ClientRegion, CudaBlock, CudaRegion, Lease, TensorReference

__all__ = [
    "SHORTAGE",
    "ArenaFull",
    "BadReference",
    "Block",
    "BlockArena",
    "BlockReader",
    "CannotOpen",
    "ClientRegion",
    "CudaBlock",
    "CudaRegion",
    "Lease",
    "TensorReference",
]

Reference = TypeVar("Reference")
ReadReference = TypeVar("ReadReference", contravariant=True)
Memory = TypeVar("Memory", covariant=True)


class ArenaFull(Exception):
    """The cap is reached, or the machine has no memory for another segment. Whoever asked answers ``Overloaded``."""


class BadReference(Exception):
    """A reference to an unknown segment or past a segment's real size. The text is for the log only."""


#: why memory that is there cannot be mapped at the moment: Python's mappings keep a descriptor each
SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class CannotOpen(BadReference):
    """It may well exist, but this process has no descriptor or no memory left to open it with."""


class BlockArena(Protocol[Reference, Memory]):
    """Memory that this process owns and lends. ``Memory`` is what its own code reads and writes: a ``memoryview`` on
    the host, an address on a device."""

    def allocate(self, nbytes: int) -> Reference:
        """Raises ``ArenaFull``."""
        ...

    def free(self, block: Reference) -> None:
        """Raises ``ValueError`` for what is not allocated (any more)."""
        ...

    def view(self, block: Reference) -> Memory: ...

    def close(self) -> None: ...


class BlockReader(Protocol[ReadReference, Memory]):
    """Other processes' memory, opened by reference."""

    def view(self, block: ReadReference) -> Memory:
        """Raises ``BadReference``."""
        ...

    def close(self) -> None: ...
