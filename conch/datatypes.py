"""Triton's tensor datatypes: protocol names, configuration names, element sizes. Imports nothing heavy."""

import math
from collections.abc import Iterable
from typing import Final

#: protocol name -> bytes per element; BYTES has elements of any length, so 0
ITEM_SIZES: Final[dict[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
    "BYTES": 0,
}

#: every element of a BYTES tensor is preceded by its length, 4 bytes little-endian
BYTES_PREFIX_NBYTES: Final = 4


def from_config_type(config_type: str) -> str:
    """``"TYPE_FP32"`` -> ``"FP32"``, ``"TYPE_STRING"`` -> ``"BYTES"``; "" for anything that is no datatype."""
    name = config_type.removeprefix("TYPE_")
    name = "BYTES" if name == "STRING" else name
    return name if name in ITEM_SIZES else ""


def to_config_type(datatype: str) -> str:
    """``"BYTES"`` -> ``"TYPE_STRING"``, ``"FP32"`` -> ``"TYPE_FP32"``."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def element_count(shape: Iterable[int]) -> int:
    """Product of the dimensions in Python integers, which do not overflow. 1 for a scalar."""
    return math.prod(shape)
