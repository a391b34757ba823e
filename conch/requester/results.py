"""Makes a worker's response into a result: copied where it is small, lent where it is large."""

from collections.abc import Callable
from functools import partial

from conch.messages import Block, ClientRegion, Lease, Request, Response, TensorDescription
from conch.requester.inference import InferenceResult, OutputTensor, RegionWindow
from shm.base import BadReference
from shm.mapping import Mappings

#: an answer of up to this many bytes is copied, so that its worker has its memory back at once
COPY_LIMIT_NBYTES = 64 * 1024


class Held:
    """An output block that is given back when nobody refers to this object any more, on whatever thread."""

    __slots__ = ("_lease", "_mappings")

    def __init__(self, lease: Lease, mappings: Mappings) -> None:
        self._lease = lease
        self._mappings = mappings

    def __del__(self) -> None:
        self._mappings.give_back(self._lease)


def _let_go(held: Held) -> None:
    """Whoever calls this has the reference that it ends."""


def make_result(
    request: Request,
    response: Response,
    mappings: Mappings,
    targets: dict[str, RegionWindow],
    on_read: Callable[[int], None] | None = None,
) -> InferenceResult:
    """The answer to ``request``, with the mappings of the worker that gave it. ``targets``: outputs that were to be
    written to a client's memory. ``on_read`` gets the outputs' bytes when the result is released, which is lent until
    then even if it was copied. Raises ``BadReference``; the lease has not been given back then."""
    descriptions = response.outputs
    total_nbytes = 0
    for description in descriptions:
        total_nbytes += description.reference.nbytes
    lease = response.lease
    copies = lease is not None and total_nbytes <= COPY_LIMIT_NBYTES
    held = Held(lease, mappings) if lease is not None and not copies and mappings.keeps_descriptors else None
    outputs = []
    for description in descriptions:
        reference = description.reference
        if targets and description.name in targets:
            outputs.append(_written(description, targets[description.name]))
            continue
        if type(reference) is not Block:
            raise BadReference(f"a {type(reference).__name__} in an output")
        data: bytes | memoryview = mappings.view(reference)
        if copies:
            data = bytes(data)
        lent = None if held is None else mappings.lend(reference, held)
        outputs.append(OutputTensor(description.name, description.datatype, description.shape, data, None, lent))
    give_back: Callable[[], None] | None = None
    if lease is not None:
        if copies:
            mappings.give_back(lease)
        elif held is not None:
            give_back = partial(_let_go, held)
        else:
            give_back = partial(mappings.give_back, lease)
    if on_read is not None:
        give_back = partial(_read, on_read, total_nbytes, give_back)
    return InferenceResult(request.model, request.version, request.client_id, response.parameters, outputs, give_back)


def _read(on_read: Callable[[int], None], nbytes: int, give_back: Callable[[], None] | None) -> None:
    if give_back is not None:
        give_back()
    on_read(nbytes)


def _written(description: TensorDescription, target: RegionWindow) -> OutputTensor:
    """An output that lies where the client wanted it: at the beginning of its window, which may be larger."""
    reference = description.reference
    if (
        type(reference) is not ClientRegion
        or (reference.region, reference.offset) != (target.number, target.offset)
        or not 0 <= reference.nbytes <= target.nbytes
    ):
        raise BadReference(f"output '{description.name}' is not where it was to be written")
    window = RegionWindow(target.name, target.number, target.offset, reference.nbytes, target.cuda)
    return OutputTensor(description.name, description.datatype, description.shape, b"", window)
