"""Tensors between JSON lists and their wire form."""

import math
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from conch.datatypes import ITEM_SIZES
from conch.errors import Internal, InvalidArgument, MalformedJson
from conch.tensors import STORAGE_DTYPES, BadBytes, pack, unpack
from frontends.http.json_values import (
    MAX_DATA_DEPTH,
    NOT_BOOLEAN,
    NOT_NUMBER,
    NOT_SIGNED,
    NOT_STRING,
    NOT_UNSIGNED,
    too_deep,
)

assert sys.byteorder == "little", "tensors are little-endian on the wire and are not swapped here"

#: datatype -> code for array, struct and memoryview.cast (BYTES, FP16 and BF16 have none)
_CODES: Final = {
    "BOOL": "?",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "FP32": "f",
    "FP64": "d",
}
_INT: Final = {int}
_NUMBERS: Final = ({int}, {float}, {int, float})
_BOOL: Final = {bool}
_STR: Final = {str}
_LIST: Final = {list}
_WRONG: Final = {"BOOL": NOT_BOOLEAN, "FP32": NOT_NUMBER, "FP64": NOT_NUMBER}
#: tensors up to this size are packed and unpacked by a ready-made Struct
_STRUCT_ELEMENTS: Final = 256
_packers: dict[tuple[str, int], Callable[..., bytes]] = {}
_unpackers: dict[tuple[str, int], struct.Struct] = {}
_SIGNED_64: Final = range(-(2**63), 2**63)


def to_wire(name: str, datatype: str, data: list[Any], elements: int) -> bytes:
    """Nested or flat ``data`` of input ``name``, row-major, as wire bytes; ``elements`` is what its shape needs.

    The number of BYTES elements is not checked here. Raises ``MalformedJson`` and ``InvalidArgument`` in Triton's
    words; unlike Triton, which cuts off high bits, an integer that the datatype cannot hold is refused.
    """
    kinds = set(map(type, data))
    if kinds == _INT and len(data) == elements <= _STRUCT_ELEMENTS:
        # by far the most frequent; also checks the range
        packer = _packers.get((datatype, elements)) or _packer(datatype, elements)
        if packer is not None:
            try:
                return packer(*data)
            except struct.error:
                pass
    depth = 1
    while list in kinds:
        depth += 1
        if depth >= MAX_DATA_DEPTH:
            raise too_deep()
        if kinds == _LIST:
            data = list(chain.from_iterable(data))
        else:
            data = list(chain.from_iterable(item if type(item) is list else (item,) for item in data))
        kinds = set(map(type, data))
    if datatype == "BYTES":
        if not kinds <= _STR:
            raise MalformedJson(f"Unable to parse JSON bytes array: {NOT_STRING}")
        return pack([text.encode() for text in data])
    code = _CODES.get(datatype)
    if code is None:
        if datatype in ("FP16", "BF16"):
            raise InvalidArgument(
                f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input "
                f"{name}"
            )
        raise InvalidArgument(f"invalid datatype for input {name}")
    if len(data) != elements:
        if len(data) > elements:
            raise MalformedJson("Unable to parse 'data': Shape does not match true shape of 'data' field")
        raise MalformedJson("Failed to parse 'data' field: shape does not match true shape")
    if code == "?":
        if kinds <= _BOOL:
            return bytes(data)
    elif code in "fd":
        if kinds in _NUMBERS or not kinds:
            return _pack_floats(code, data)
    elif kinds <= _INT:
        return _pack_integers(name, datatype, code, data)
    raise MalformedJson(f"Unable to parse 'data': {_WRONG.get(datatype) or _not_an_integer(datatype)}")


def _packer(datatype: str, elements: int) -> Callable[..., bytes] | None:
    """Packs that many integers, or None for a datatype that is not of integers."""
    code = _CODES.get(datatype, "?")
    if code in "?fd":
        return None
    packer = _packers[datatype, elements] = struct.Struct(f"<{elements}{code}").pack
    return packer


def _pack_floats(code: str, data: list[float]) -> bytes:
    # not struct: it refuses what is infinite as a float, where Triton and a C cast do not
    return array(code, data).tobytes()


def _pack_integers(name: str, datatype: str, code: str, data: list[int]) -> bytes:
    try:
        return array(code, data).tobytes()
    except OverflowError:
        unsigned = datatype[0] == "U"
        if any((value < 0 if unsigned else value not in _SIGNED_64) for value in data):
            raise MalformedJson(f"Unable to parse 'data': {_not_an_integer(datatype)}") from None
        raise InvalidArgument(
            f"Unable to parse 'data': a value of input '{name}' is out of the range of datatype {datatype}"
        ) from None


def _not_an_integer(datatype: str) -> str:
    return NOT_UNSIGNED if datatype[0] == "U" else NOT_SIGNED


# -------------------------------------------------------------------------------------------------------------- output


def from_wire(name: str, datatype: str, data: bytes | memoryview, elements: int) -> Sequence[Any]:
    """Wire bytes as a flat list for JSON: bool, int, float (FP32 as the double that equals it) or str.

    Raises ``InvalidArgument`` for what JSON cannot hold, and ``Internal`` when the model gave an output whose size does
    not fit its shape.
    """
    if elements <= _STRUCT_ELEMENTS:
        unpacker = _unpackers.get((datatype, elements)) or _unpacker(datatype, elements)
        if unpacker is not None:
            if len(data) != unpacker.size:
                raise _wrong_size(name)
            return unpacker.unpack(data)
    if datatype == "BYTES":
        return _texts(name, data, elements)
    if datatype not in _CODES:
        raise InvalidArgument(
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for output {name}"
        )
    if len(data) != elements * ITEM_SIZES[datatype]:
        raise _wrong_size(name)
    values: list[Any] = np.frombuffer(data, STORAGE_DTYPES[datatype]).tolist()
    return values


def _unpacker(datatype: str, elements: int) -> struct.Struct | None:
    """Unpacks that many, or None for a datatype that JSON numbers and booleans cannot hold."""
    code = _CODES.get(datatype)
    if code is None:
        return None
    unpacker = _unpackers[datatype, elements] = struct.Struct(f"<{elements}{code}")
    return unpacker


def _texts(name: str, data: bytes | memoryview, elements: int) -> list[str]:
    try:
        found = unpack(data)
    except BadBytes:
        raise _wrong_size(name) from None
    if len(found) != elements:
        raise _wrong_size(name)
    try:
        return [element.decode() for element in found]
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"output '{name}' holds bytes that are not UTF-8, which JSON cannot represent. Please use the binary data "
            f"format for output {name}"
        ) from None


def _wrong_size(name: str) -> Internal:
    return Internal(f"Failed to write 'data' field: output tensor shape does not match size of output for '{name}'")


def dumps(values: Sequence[Any]) -> bytes:
    """A flat list as compact JSON with Triton's ``NaN``, ``Infinity`` and ``-Infinity``."""
    encoded = orjson.dumps(values)
    if b"null" not in encoded or not values or type(values[0]) is not float:
        return encoded
    return b"[" + b",".join(map(_number, values)) + b"]"


def _number(value: float) -> bytes:
    if math.isfinite(value):
        return orjson.dumps(value)
    return b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity"
