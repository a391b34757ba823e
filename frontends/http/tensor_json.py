"""Tensors between JSON lists and their wire form."""

import math
import struct
import sys
from array import array
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from conch.errors import Internal, InvalidArgument, MalformedJson
from conch.tensors import STORAGE_DTYPES, BadBytes, pack, unpack
from frontends.http.json_values import NOT_BOOLEAN, NOT_NUMBER, NOT_SIGNED, NOT_STRING, NOT_UNSIGNED

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
#: small tensors are packed by a ready-made Struct
_STRUCT_ELEMENTS: Final = 256
_structs: dict[tuple[str, int], struct.Struct] = {}
_SIGNED_64: Final = range(-(2**63), 2**63)


def to_wire(name: str, datatype: str, data: list[Any], elements: int) -> bytes:
    """Nested or flat ``data`` of input ``name``, row-major, as wire bytes; ``elements`` is what its shape needs.

    The number of BYTES elements is not checked here. Raises ``MalformedJson`` and ``InvalidArgument`` in Triton's
    words; unlike Triton, which cuts off high bits, an integer that the datatype cannot hold is refused.
    """
    kinds = set(map(type, data))
    while list in kinds:
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


def _struct(code: str, count: int) -> struct.Struct:
    found = _structs.get((code, count))
    if found is None:
        found = _structs[code, count] = struct.Struct(f"<{count}{code}")
    return found


def _pack_floats(code: str, data: list[float]) -> bytes:
    # not struct: it refuses what is infinite as a float, where Triton and a C cast do not
    return array(code, data).tobytes()


def _pack_integers(name: str, datatype: str, code: str, data: list[int]) -> bytes:
    try:
        if len(data) <= _STRUCT_ELEMENTS:
            return _struct(code, len(data)).pack(*data)
        return array(code, data).tobytes()
    except (struct.error, OverflowError):
        unsigned = datatype[0] == "U"
        if any((value < 0 if unsigned else value not in _SIGNED_64) for value in data):
            raise MalformedJson(f"Unable to parse 'data': {_not_an_integer(datatype)}") from None
        raise InvalidArgument(
            f"Unable to parse 'data': a value of input '{name}' is out of the range of datatype {datatype}"
        ) from None


def _not_an_integer(datatype: str) -> str:
    return NOT_UNSIGNED if datatype[0] == "U" else NOT_SIGNED


# -------------------------------------------------------------------------------------------------------------- output


def from_wire(name: str, datatype: str, data: bytes | memoryview, elements: int) -> list[Any]:
    """Wire bytes as a flat list for JSON: bool, int, float (FP32 as the double that equals it) or str.

    Raises ``InvalidArgument`` for what JSON cannot hold, and ``Internal`` when the model gave an output whose size does
    not fit its shape.
    """
    if datatype == "BYTES":
        return _texts(name, data, elements)
    code = _CODES.get(datatype)
    if code is None:
        raise InvalidArgument(
            f"sending {datatype} data via JSON is not supported. Please use the binary data format for output {name}"
        )
    if len(data) != elements * struct.calcsize(code):
        raise _wrong_size(name)
    if elements <= _STRUCT_ELEMENTS:
        return list(_struct(code, elements).unpack(data))
    values: list[Any] = np.frombuffer(data, STORAGE_DTYPES[datatype]).tolist()
    return values


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


def dumps(values: list[Any]) -> bytes:
    """A flat list as compact JSON with Triton's ``NaN``, ``Infinity`` and ``-Infinity``."""
    encoded = orjson.dumps(values)
    if b"null" not in encoded or not values or type(values[0]) is not float:
        return encoded
    return b"[" + b",".join(map(_number, values)) + b"]"


def _number(value: float) -> bytes:
    if math.isfinite(value):
        return orjson.dumps(value)
    return b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity"
