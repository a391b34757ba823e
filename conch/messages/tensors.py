"""References to tensors in shared memory, and errors as data."""

from conch.messages.base import Message, Record


class Block(Message, frozen=True, tag="B"):
    """``nbytes`` bytes at ``offset`` of an arena segment.

    ``segment`` is the owner's random 63-bit number of that segment, unique among all processes, so that a reference
    can be passed on. The receiver checks offset and nbytes against the segment's real size before it looks.
    """

    segment: int
    offset: int
    nbytes: int


class ClientRegion(Message, frozen=True, tag="R"):
    """A window of a system shared-memory region that a client registered: ``nbytes`` bytes at ``offset`` of region
    number ``region``."""

    region: int
    offset: int
    nbytes: int


class CudaBlock(Message, frozen=True, tag="C"):
    """Like ``Block``, in the memory of GPU ``device``; ``handle`` is the 64-byte CUDA IPC handle."""

    handle: bytes
    device: int
    offset: int
    nbytes: int


class CudaRegion(Message, frozen=True, tag="D"):
    """A window of a CUDA region that a client registered, as ``ClientRegion``."""

    region: int
    offset: int
    nbytes: int


TensorReference = Block | ClientRegion | CudaBlock | CudaRegion


class TensorDescription(Record, frozen=True):
    """One tensor: protocol ``datatype`` name (``"INT32"``, ``"BYTES"`` …), full ``shape`` including any batch
    dimension, and where its bytes are (BYTES in the length-prefixed wire form)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    reference: TensorReference


class Lease(Record, frozen=True):
    """How the reader of an output block gives it back: store ``number`` into 8-byte ``slot`` of the worker's lease
    page (segment ``page``)."""

    page: int
    slot: int
    number: int


class Fault(Record, frozen=True):
    """An error as data. ``kind`` is the name of a class in ``conch.errors``."""

    kind: str
    message: str
