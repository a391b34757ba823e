"""Writes results into this worker's or the clients' shared memory, once each, and describes them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from conch import tensors
from conch.errors import Internal
from conch.messages import Block, ClientRegion, TensorDescription, TensorReference
from shm.client_regions import ClientWindow
from shm.leases import LeasedArena
from workers.backends.base import Output
from workers.copies import COPIES
from workers.shapes import Reshapes

_ALIGNMENT_NBYTES = 64
#: up to this size a copy through ``bytes`` is quicker than one through an array
_SMALL_NBYTES = 4096


class Place(NamedTuple):
    """Where the outputs of one response go: those that ``targets`` named into a client's own memory, all others into
    one block of the arena, which is whoever's has this until it is leased or freed. None if there are no others."""

    outputs: list[tuple[Output, int, ClientWindow | None]]
    block: Block | None
    view: memoryview

    def write(self, reshapes: Reshapes | None) -> tuple[TensorDescription, ...]:
        """Copies the outputs there; needs no lock."""
        block, view = self.block, self.view
        descriptions = []
        start = 0
        for output, nbytes, target in self.outputs:
            reference: TensorReference
            if target is None:
                assert block is not None
                _copy(output, view, start, nbytes)
                reference = Block(block.segment, block.offset + start, nbytes)
                start = (start + nbytes + _ALIGNMENT_NBYTES - 1) & -_ALIGNMENT_NBYTES
            else:
                _copy(output, target.view, 0, nbytes)
                reference = ClientRegion(target.reference.region, target.reference.offset, nbytes)
            shape = output.shape if reshapes is None else reshapes.to_client(output.name, output.shape)
            descriptions.append(TensorDescription(output.name, output.datatype, shape, reference))
        return tuple(descriptions)


_NO_VIEW = memoryview(b"")


def place(arena: LeasedArena, outputs: Sequence[Output], targets: Mapping[str, ClientWindow]) -> Place:
    """Finds room for ``outputs``. Raises ``ArenaFull``, ``Internal`` and ``InvalidArgument``; nothing is allocated
    then."""
    places = []
    in_arena = False
    end = 0
    for output in outputs:
        data = output.data
        nbytes = tensors.packed_nbytes(data) if type(data) is list else data.nbytes  # type: ignore[union-attr]
        target = targets.get(output.name)
        if target is None:
            end = ((end + _ALIGNMENT_NBYTES - 1) & -_ALIGNMENT_NBYTES) + nbytes
            in_arena = True
        else:
            _check(target, output.name, nbytes)
        places.append((output, nbytes, target))
    if not in_arena:
        return Place(places, None, _NO_VIEW)
    block = arena.allocate(end)
    return Place(places, block, arena.arena.view(block))


def _check(target: ClientWindow, name: str, nbytes: int) -> None:
    size = target.reference.nbytes
    if nbytes > size:
        raise Internal(
            f"shared memory size specified with the request for output '{name}' ({size} bytes) should be at least "
            f"{nbytes} bytes to hold the results"
        )
    target.check()


def _copy(output: Output, view: memoryview, start: int, nbytes: int) -> None:
    COPIES.output += nbytes
    data = output.data
    if isinstance(data, list):
        tensors.pack_into(data, view[start : start + nbytes])
    elif nbytes <= _SMALL_NBYTES:
        view[start : start + nbytes] = data.tobytes()
    else:
        np.copyto(np.ndarray(data.shape, data.dtype, view, start), data)
