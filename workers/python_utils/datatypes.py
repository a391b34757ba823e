"""Triton's datatype numbers, names and NumPy types, and the BYTES encoding, as models use them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from conch import tensors

#: TRITONSERVER_DataType
DATATYPE_NUMBERS = {
    "BOOL": 1,
    "UINT8": 2,
    "UINT16": 3,
    "UINT32": 4,
    "UINT64": 5,
    "INT8": 6,
    "INT16": 7,
    "INT32": 8,
    "INT64": 9,
    "FP16": 10,
    "FP32": 11,
    "FP64": 12,
    "BYTES": 13,
    "BF16": 14,
}
_SCALAR_TYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
_BY_NUMBER = {DATATYPE_NUMBERS[name]: scalar_type for name, scalar_type in _SCALAR_TYPES.items()}
TRITON_STRING_TO_NUMPY = {
    "TYPE_STRING" if name == "BYTES" else f"TYPE_{name}": bool if name == "BOOL" else scalar_type
    for name, scalar_type in _SCALAR_TYPES.items()
}


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """``"TYPE_FP32"`` -> ``numpy.float32``. Raises ``KeyError`` for anything else, BF16 among it."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def triton_to_numpy_type(data_type: int) -> Any:
    """A TRITONSERVER_DataType number -> NumPy type, None where there is none."""
    return _BY_NUMBER.get(data_type)


def numpy_to_triton_type(data_type: npt.DTypeLike) -> int | None:
    """A NumPy type -> TRITONSERVER_DataType number, None where there is none."""
    return DATATYPE_NUMBERS.get(tensors.datatype_of(np.dtype(data_type)))


def serialize_byte_tensor(input_tensor: npt.NDArray[Any]) -> bytes | tuple[()] | None:
    """An object or bytes array in wire form; ``()`` for an empty one, None for one of another type."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return tensors.pack(tensors.elements_of(input_tensor))


def deserialize_bytes_tensor(encoded_tensor: bytes) -> npt.NDArray[Any]:
    """Elements in wire form -> one-dimensional object array of ``bytes``. Raises ``ValueError``."""
    elements = tensors.unpack(encoded_tensor)
    return tensors.object_array(elements, (len(elements),))
