"""Makes a worker's response into a result: copied where it is small, lent where it is large."""

from functools import partial

from conch.messages import Block, Request, Response
from frontends.inference import InferenceResult, OutputTensor
from shm.base import BadReference
from shm.mapping import Mappings

#: an answer of up to this many bytes is copied, so that its worker has its memory back at once
COPY_LIMIT_NBYTES = 64 * 1024


def make_result(request: Request, response: Response, mappings: Mappings) -> InferenceResult:
    """The answer to ``request``, with the mappings of the worker that gave it. Raises ``BadReference``; the lease has
    not been given back then."""
    descriptions = response.outputs
    total_nbytes = 0
    for description in descriptions:
        total_nbytes += description.reference.nbytes
    lease = response.lease
    copies = lease is not None and total_nbytes <= COPY_LIMIT_NBYTES
    outputs = []
    for description in descriptions:
        reference = description.reference
        if type(reference) is not Block:
            raise BadReference(f"a {type(reference).__name__} in an output")
        data: bytes | memoryview = mappings.view(reference)
        if copies:
            data = bytes(data)
        outputs.append(OutputTensor(description.name, description.datatype, description.shape, data))
    give_back = None
    if lease is not None:
        if copies:
            mappings.give_back(lease)
        else:
            give_back = partial(mappings.give_back, lease)
    return InferenceResult(request.model, request.version, request.client_id, response.parameters, outputs, give_back)
