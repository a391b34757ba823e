"""Tensors as NumPy arrays and as bytes on the wire.

Numeric tensors are their elements in C order, little-endian. BYTES tensors are a run of elements, each preceded by its
length in 4 bytes. Nothing here copies a numeric tensor; BYTES need a walk in Python, which has fast paths for elements
of one length.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from conch.datatypes import BYTES_PREFIX_NBYTES

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

#: protocol name -> NumPy type that models and clients see; BF16 has none
NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(np.object_),
}

#: protocol name -> NumPy type of the bytes on the wire: BF16 as 16-bit patterns, no BYTES
STORAGE_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    **{name: dtype for name, dtype in NUMPY_DTYPES.items() if name != "BYTES"},
    "BF16": np.dtype("<u2"),
}

_DATATYPES: Final = {dtype: name for name, dtype in NUMPY_DTYPES.items()}
_PREFIX: Final = struct.Struct("<I")
#: below this many elements the fast paths cost more than they save
_FEW_ELEMENTS: Final = 4
#: elements of this size and more are copied one by one to where they go, smaller ones are joined first
_LARGE_ELEMENT_NBYTES: Final = 4096


class BadBytes(ValueError):
    """A buffer that is not a run of length-prefixed elements. The text can be shown to a client."""


def datatype_of(dtype: np.dtype[Any]) -> str:
    """``float32`` -> ``"FP32"``; object, bytes and str arrays -> ``"BYTES"``; "" for anything else."""
    name = _DATATYPES.get(dtype)
    if name is not None:
        return name
    if dtype.kind in "OSU":
        return "BYTES"
    return _DATATYPES.get(dtype.newbyteorder("<"), "") if dtype.kind in "biuf" else ""


def as_array(buffer: Buffer, datatype: str, shape: Sequence[int]) -> Array:
    """A view of ``buffer`` (no copy) with ``shape``; BF16 as its 16-bit patterns. Not for BYTES.

    Raises ``ValueError`` if ``buffer`` has not exactly the bytes that ``shape`` needs.
    """
    array: Array = np.frombuffer(buffer, STORAGE_DTYPES[datatype]) if len(buffer) else _empty(datatype)
    return array.reshape(shape)


def _empty(datatype: str) -> Array:
    return np.empty(0, STORAGE_DTYPES[datatype])


def wire_bytes(array: Array) -> memoryview:
    """A numeric array's elements in C order, little-endian, as a flat view of its own memory where it has that layout
    already, of a copy otherwise."""
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


# ------------------------------------------------------------------------------------------------------------- BYTES


def elements_of(array: Array) -> list[bytes]:
    """The elements of an object, bytes or str array in C order. Text becomes UTF-8; an object that is neither ``bytes``
    nor text becomes the UTF-8 of its ``str()``, as in Triton."""
    elements: list[Any] = array.reshape(-1).tolist()
    if array.dtype.kind == "S":
        return elements
    return [element if type(element) is bytes else _encoded(element) for element in elements]


def _encoded(element: object) -> bytes:
    if isinstance(element, (bytes, bytearray, memoryview)):
        return bytes(element)
    return str(element).encode("utf-8")


def packed_nbytes(elements: Sequence[bytes]) -> int:
    """How many bytes ``pack`` makes of ``elements``."""
    return BYTES_PREFIX_NBYTES * len(elements) + sum(map(len, elements))


def pack(elements: Iterable[bytes]) -> bytes:
    """Elements in wire form."""
    parts: list[bytes] = []
    append = parts.append
    prefix = _PREFIX.pack
    for element in elements:
        append(prefix(len(element)))
        append(element)
    return b"".join(parts)


def pack_into(elements: Sequence[bytes], target: memoryview) -> None:
    """Writes ``pack(elements)`` to ``target``, which has exactly ``packed_nbytes(elements)`` bytes."""
    if len(target) < _LARGE_ELEMENT_NBYTES * len(elements):
        target[:] = pack(elements)
        return
    offset = 0
    for element in elements:
        _PREFIX.pack_into(target, offset, len(element))
        offset += BYTES_PREFIX_NBYTES
        target[offset : offset + len(element)] = element
        offset += len(element)


def unpack(buffer: Buffer) -> list[bytes]:
    """Elements out of wire form, each checked to lie within ``buffer``. Raises ``BadBytes``."""
    nbytes = len(buffer)
    length = _common_length(buffer)
    step = BYTES_PREFIX_NBYTES + length
    if length >= 0:
        data = bytes(buffer)
        return [data[start : start + length] for start in range(BYTES_PREFIX_NBYTES, nbytes + 1, step)]
    data = bytes(buffer)
    elements: list[bytes] = []
    append = elements.append
    unpack_from = _PREFIX.unpack_from
    offset = 0
    last_start = nbytes - BYTES_PREFIX_NBYTES
    while offset <= last_start:
        start = offset + BYTES_PREFIX_NBYTES
        offset = start + unpack_from(data, offset)[0]
        append(data[start:offset])
    _check_end(buffer, offset)
    return elements


def count(buffer: Buffer, limit: int) -> int:
    """How many elements ``buffer`` holds, without copying them; ``limit`` + 1 stands for more than ``limit``, and the
    rest is not looked at then. Raises ``BadBytes``."""
    nbytes = len(buffer)
    length = _common_length(buffer)
    if length >= 0:
        return min(nbytes // (BYTES_PREFIX_NBYTES + length), limit + 1)
    unpack_from = _PREFIX.unpack_from
    offset = found = 0
    last_start = nbytes - BYTES_PREFIX_NBYTES
    while offset <= last_start:
        if found == limit:
            return limit + 1
        offset += BYTES_PREFIX_NBYTES + unpack_from(buffer, offset)[0]
        found += 1
    _check_end(buffer, offset)
    return found


def object_array(elements: Sequence[bytes], shape: Sequence[int]) -> Array:
    """``elements`` as an object array of ``shape``. Raises ``ValueError`` if their number does not fit."""
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape)


def _common_length(buffer: Buffer) -> int:
    """The length of every element if all have the same, -1 if they differ or are too few for that to matter."""
    nbytes = len(buffer)
    if nbytes < BYTES_PREFIX_NBYTES:
        return -1
    length = int(_PREFIX.unpack_from(buffer, 0)[0])
    step = BYTES_PREFIX_NBYTES + length
    if nbytes % step or nbytes // step < _FEW_ELEMENTS:
        return -1
    prefixes = np.frombuffer(buffer, np.uint8).reshape(-1, step)[:, :BYTES_PREFIX_NBYTES]
    first = np.frombuffer(buffer, np.uint8, BYTES_PREFIX_NBYTES)
    return length if bool((prefixes == first).all()) else -1


def _check_end(buffer: Buffer, offset: int) -> None:
    """``offset`` is where the walk ended. Raises ``BadBytes`` if that is not the end of ``buffer``."""
    nbytes = len(buffer)
    if offset > nbytes:
        raise BadBytes(f"incomplete string data, {offset - nbytes} bytes are missing at the end")
    if offset < nbytes:
        raise BadBytes(
            f"incomplete string length indicator, expecting {BYTES_PREFIX_NBYTES} bytes but only "
            f"{nbytes - offset} bytes available"
        )


# -------------------------------------------------------------------------------------------------------------- BF16


def bf16_to_fp32(patterns: Array) -> npt.NDArray[np.float32]:
    """16-bit patterns to the floats they stand for, exactly. Same shape."""
    return (patterns.astype(np.uint32) << np.uint32(16)).view(np.float32)


def fp32_to_bf16(values: Array) -> npt.NDArray[np.uint16]:
    """Floats to 16-bit patterns, rounded to nearest even; NaN stays NaN. Same shape."""
    exact = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (exact + np.uint32(0x7FFF) + ((exact >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (exact >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)
