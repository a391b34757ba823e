"""The classification extension: the top classes of an output instead of its values (inventory X-10 … X-13, 2.17)."""

import math
from typing import Any, Final

import numpy as np

from conch.errors import Internal, InvalidArgument
from conch.requester.inference import OutputTensor
from conch.tensors import STORAGE_DTYPES, pack

_MAX_ELEMENTS: Final = 1_000_000
_UNSUPPORTED: Final = frozenset({"BYTES", "BOOL", "FP16", "BF16"})


def classify(output: OutputTensor, classes: int, batched: bool, labels: tuple[str, ...]) -> OutputTensor:
    """The ``classes`` highest values of each batch item, highest first, equal ones by index, as a BYTES tensor of
    ``value:index`` or ``value:index:label``.

    ``batched``: the first dimension of ``output`` is the batch. Raises ``InvalidArgument`` for datatypes and sizes that
    Triton refuses.
    """
    datatype, shape = output.datatype, output.shape
    if datatype in _UNSUPPORTED:
        raise InvalidArgument(f"class result not available for output due to unsupported type '{datatype}'")
    items = shape[0] if batched and shape else 1
    item_shape = shape[1:] if batched else shape
    elements = math.prod(item_shape)
    if elements > _MAX_ELEMENTS:
        raise InvalidArgument("classification output tensor too large")
    values = np.frombuffer(output.data, STORAGE_DTYPES[datatype])
    if values.size != items * elements:
        raise Internal(f"output tensor shape does not match size of output for '{output.name}'")
    count = min(classes, elements)
    texts = [text for item in values.reshape(items, elements) for text in _top(item, count, labels)]
    shown = (items, count) if batched else (count,)
    return OutputTensor(output.name, "BYTES", shown, pack(texts))


def _top(values: "np.ndarray[Any, np.dtype[Any]]", count: int, labels: tuple[str, ...]) -> list[bytes]:
    if not count:
        return []
    if count < len(values) // 4:
        # only what can be among the first: everything that is not below the last of them
        threshold = np.partition(values, len(values) - count)[len(values) - count]
        candidates = np.flatnonzero(~(values < threshold))
    else:
        candidates = np.arange(len(values))
    chosen = values[candidates]
    # a stable sort of the reversed array, reversed, keeps equal values in order of their index; NaN goes first
    order = (len(chosen) - 1 - np.argsort(chosen[::-1], kind="stable"))[::-1][:count]
    indices = candidates[order].tolist()
    form = b"%f:%d" if values.dtype.kind == "f" else b"%d:%d"
    texts = [form % shown for shown in zip(chosen[order].tolist(), indices, strict=True)]
    if labels:
        for position, index in enumerate(indices):
            if index < len(labels) and labels[index]:
                texts[position] += b":" + labels[index].encode()
    return texts
