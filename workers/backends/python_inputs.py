"""Inputs that a Python model keeps: their bytes are the sender's again once the request has had its final response."""

import weakref
from collections.abc import Sequence
from sys import getrefcount

import numpy as np

from workers.backends.base import Item
from workers.python_utils.request import InferenceRequest
from workers.python_utils.tensor import Tensor


def keep_when_answered(item: Item, inputs: Sequence[Tensor]) -> None:
    """Inputs that the model still has by the time of the request's final response become copies of its own: their
    bytes go away then."""
    references = [weakref.ref(tensor) for tensor in inputs]

    def keep() -> None:
        for reference in references:
            tensor = reference()
            if tensor is not None and tensor._source is not None:
                tensor._materialise()

    item.replies.before_final = keep


def kept_inputs(requests: list[InferenceRequest], unkept: Sequence[int]) -> list[Tensor]:
    """The inputs whose arrays have not been made and that somebody beside the worker can still get at.

    ``unkept``: how many references the interpreter counts, right here, to the list, a request, its list of inputs, and
    an input, when nobody has kept them.
    """
    found = []
    all_kept = getrefcount(requests) > unkept[0]
    for request in requests:
        request_kept = all_kept or getrefcount(request) > unkept[1]
        inputs = request._inputs
        request_kept = request_kept or getrefcount(inputs) > unkept[2]
        for tensor in inputs:
            if tensor._source is not None and (request_kept or getrefcount(tensor) > unkept[3]):
                found.append(tensor)
    return found


def _count_unkept() -> list[int]:
    """Measured, because interpreters differ in how they count a function's own variables."""
    tensor = Tensor("sample", np.zeros(1))
    tensor._source = memoryview(b"")
    requests = [InferenceRequest(inputs=[tensor], requested_output_names=[], model_name="")]
    del tensor
    unkept = []
    for position in range(4):
        limits = [1000] * 4
        limits[position] = next(
            count for count in range(100) if not kept_inputs(requests, _with(limits, position, count))
        )
        unkept.append(limits[position])
    return unkept


def _with(limits: list[int], position: int, limit: int) -> list[int]:
    return [*limits[:position], limit, *limits[position + 1 :]]


UNKEPT = _count_unkept()
