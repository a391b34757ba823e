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
    views = []
    total_nbytes = 0
    for description in response.outputs:
        reference = description.reference
        if not isinstance(reference, Block):
            raise BadReference(f"a {type(reference).__name__} in an output")
        views.append(mappings.view(reference))
        total_nbytes += reference.nbytes
    lease = response.lease
    if lease is None or total_nbytes > COPY_LIMIT_NBYTES:
        outputs = [
            OutputTensor(description.name, description.datatype, description.shape, view)
            for description, view in zip(response.outputs, views, strict=True)
        ]
        give_back = None if lease is None else partial(mappings.give_back, lease)
    else:
        outputs = [
            OutputTensor(description.name, description.datatype, description.shape, bytes(view))
            for description, view in zip(response.outputs, views, strict=True)
        ]
        give_back = None
        mappings.give_back(lease)
    return InferenceResult(request.model, request.version, request.client_id, response.parameters, outputs, give_back)
