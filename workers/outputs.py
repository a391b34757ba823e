"""Writes a batch's results into this worker's shared memory, once each, and describes them in responses."""

import numpy as np

from conch import tensors
from conch.messages import Block, Fault, Lease, Request, Response, TensorDescription
from shm.base import ArenaFull
from shm.leases import LeasedArena
from workers.backends.base import Output, Result
from workers.shapes import Reshapes

_ALIGNMENT_NBYTES = 64
#: up to this size a copy through ``bytes`` is quicker than one through an array
_SMALL_NBYTES = 4096


def respond(
    arena: LeasedArena, requester: str, request: Request, result: Result, reshapes: Reshapes | None
) -> Response:
    """The one and final response to ``request``: all its outputs in one block, leased to ``requester``."""
    if result.error is not None:
        return Response(request.id, request.attempt, 0, True, error=result.error, parameters=result.parameters)
    try:
        outputs, lease = _write(arena, requester, result, reshapes)
    except ArenaFull as error:
        return Response(request.id, request.attempt, 0, True, error=Fault("Overloaded", str(error)))
    return Response(request.id, request.attempt, 0, True, outputs, lease, parameters=result.parameters)


def _write(
    arena: LeasedArena, requester: str, result: Result, reshapes: Reshapes | None
) -> tuple[tuple[TensorDescription, ...], Lease | None]:
    """Raises ``ArenaFull``; nothing is allocated then."""
    if not result.outputs:
        return (), None
    places = []
    end = 0
    for output in result.outputs:
        data = output.data
        nbytes = tensors.packed_nbytes(data) if type(data) is list else data.nbytes  # type: ignore[union-attr]
        start = (end + _ALIGNMENT_NBYTES - 1) & -_ALIGNMENT_NBYTES
        end = start + nbytes
        places.append((output, start, nbytes))
    block = arena.allocate(end)
    try:
        lease = arena.lease(block, requester)
    except ArenaFull:
        arena.arena.free(block)
        raise
    view = arena.arena.view(block)
    segment = block.segment
    offset = block.offset
    descriptions = []
    for output, start, nbytes in places:
        _copy(output, view, start, nbytes)
        shape = output.shape if reshapes is None else reshapes.to_client(output.name, output.shape)
        descriptions.append(
            TensorDescription(output.name, output.datatype, shape, Block(segment, offset + start, nbytes))
        )
    return tuple(descriptions), lease


def _copy(output: Output, view: memoryview, start: int, nbytes: int) -> None:
    data = output.data
    if isinstance(data, list):
        tensors.pack_into(data, view[start : start + nbytes])
    elif nbytes <= _SMALL_NBYTES:
        view[start : start + nbytes] = data.tobytes()
    else:
        np.copyto(np.ndarray(data.shape, data.dtype, view, start), data)
