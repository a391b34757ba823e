"""Writes a batch's results into this worker's or the clients' shared memory, once each, and describes them."""

from collections.abc import Mapping

import numpy as np

from conch import tensors
from conch.errors import ConchError, Internal, to_fault
from conch.messages import (
    Block,
    ClientRegion,
    Fault,
    Lease,
    Request,
    Response,
    TensorDescription,
    TensorReference,
)
from shm.base import ArenaFull
from shm.client_regions import ClientWindow
from shm.leases import LeasedArena
from workers.backends.base import Output, Result
from workers.shapes import Reshapes

_ALIGNMENT_NBYTES = 64
#: up to this size a copy through ``bytes`` is quicker than one through an array
_SMALL_NBYTES = 4096


def respond(
    arena: LeasedArena,
    requester: str,
    request: Request,
    result: Result,
    reshapes: Reshapes | None,
    targets: Mapping[str, ClientWindow],
) -> Response:
    """The one and final response to ``request``: the outputs that ``targets`` names in the client's own memory, all
    others in one block, leased to ``requester``."""
    if result.error is not None:
        return Response(request.id, request.attempt, 0, True, error=result.error, parameters=result.parameters)
    try:
        outputs, lease = _write(arena, requester, result, reshapes, targets)
    except ArenaFull as error:
        return Response(request.id, request.attempt, 0, True, error=Fault("Overloaded", str(error)))
    except ConchError as error:
        return Response(request.id, request.attempt, 0, True, error=to_fault(error))
    return Response(request.id, request.attempt, 0, True, outputs, lease, parameters=result.parameters)


def _write(
    arena: LeasedArena,
    requester: str,
    result: Result,
    reshapes: Reshapes | None,
    targets: Mapping[str, ClientWindow],
) -> tuple[tuple[TensorDescription, ...], Lease | None]:
    """Raises ``ArenaFull``, ``Internal`` and ``InvalidArgument``; nothing is allocated or written then."""
    places = []
    in_arena = False
    end = 0
    for output in result.outputs:
        data = output.data
        nbytes = tensors.packed_nbytes(data) if type(data) is list else data.nbytes  # type: ignore[union-attr]
        target = targets.get(output.name)
        start = 0
        if target is None:
            start = (end + _ALIGNMENT_NBYTES - 1) & -_ALIGNMENT_NBYTES
            end = start + nbytes
            in_arena = True
        else:
            _check(target, output.name, nbytes)
        places.append((output, start, nbytes, target))
    lease = None
    if in_arena:
        block, lease = _lease(arena, requester, end)
        view = arena.arena.view(block)
    descriptions = []
    for output, start, nbytes, target in places:
        reference: TensorReference
        if target is None:
            _copy(output, view, start, nbytes)
            reference = Block(block.segment, block.offset + start, nbytes)
        else:
            _copy(output, target.view, start, nbytes)
            reference = ClientRegion(target.reference.region, target.reference.offset, nbytes)
        shape = output.shape if reshapes is None else reshapes.to_client(output.name, output.shape)
        descriptions.append(TensorDescription(output.name, output.datatype, shape, reference))
    return tuple(descriptions), lease


def _lease(arena: LeasedArena, requester: str, nbytes: int) -> tuple[Block, Lease]:
    block = arena.allocate(nbytes)
    try:
        return block, arena.lease(block, requester)
    except ArenaFull:
        arena.arena.free(block)
        raise


def _check(target: ClientWindow, name: str, nbytes: int) -> None:
    size = target.reference.nbytes
    if nbytes > size:
        raise Internal(
            f"shared memory size specified with the request for output '{name}' ({size} bytes) should be at least "
            f"{nbytes} bytes to hold the results"
        )
    target.check()


def _copy(output: Output, view: memoryview, start: int, nbytes: int) -> None:
    data = output.data
    if isinstance(data, list):
        tensors.pack_into(data, view[start : start + nbytes])
    elif nbytes <= _SMALL_NBYTES:
        view[start : start + nbytes] = data.tobytes()
    else:
        np.copyto(np.ndarray(data.shape, data.dtype, view, start), data)
