"""JSON as Triton reads it: what it accepts beyond the standard, its limits, and its words for what it does not like."""

import json
import math
import re
from typing import Any, Final

import numpy as np
import orjson

from conch.errors import InvalidArgument, MalformedJson, TooLarge

#: arrays around a value of an input's ``data`` must be fewer than this (Triton's number)
MAX_DATA_DEPTH: Final = 100
#: an empty array of 2 bytes takes 56 in memory
MAX_CONTAINERS: Final = 2_000_000

NOT_STRING: Final = "attempt to access JSON non-string as string"
NOT_BOOLEAN: Final = "attempt to access JSON non-boolean as boolean"
NOT_SIGNED: Final = "attempt to access JSON non-signed-integer as signed-integer"
NOT_UNSIGNED: Final = "attempt to access JSON non-unsigned-integer as unsigned-integer"
NOT_NUMBER: Final = "attempt to access JSON non-number as double"
NOT_ARRAY: Final = "attempt to access JSON non-array as array"

_PARSER_DEPTH: Final = 900
#: a string, or what may be one up to the end of the text; possessive and never failing, so that it takes linear time
_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
#: only such numbers may be too large for an integer of 64 bits, or for a double
_LONG_NUMBERS: Final = re.compile(rb"[0-9]{19}|[0-9][eE]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
MAX_UNSIGNED: Final = 2**64 - 1
_MIN_SIGNED: Final = -(2**63)
#: the standard library's words for a syntax error -> Triton's (which are rapidjson's)
_WORDS: Final = {
    "Expecting value": "Invalid value.",
    "Expecting ',' delimiter": "Missing a comma or } after an object member.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}


def parse(text: bytes | bytearray, max_nbytes: int) -> Any:
    """``text`` as plain values; an integer beyond 64 bits becomes a float, as in Triton.

    Raises ``TooLarge``, ``MalformedJson``, and ``InvalidArgument`` for nesting that the parser cannot follow (about a
    thousand levels; the stricter limit on tensors is checked where they are read).
    """
    if len(text) > max_nbytes:
        raise too_large(len(text), max_nbytes)
    if len(text) > 2 * MAX_CONTAINERS and text.count(b"[") + text.count(b"{") > MAX_CONTAINERS:
        raise TooLarge(f"the request JSON has more than the maximum of {MAX_CONTAINERS} arrays and objects")
    try:
        return orjson.loads(text)
    except ValueError:
        # NaN and Infinity are not JSON, but Triton reads and writes them; it is also asked what was wrong
        return _parse_slowly(bytes(text))


def parse_members(text: bytes, max_nbytes: int) -> dict[str, Any]:
    """As ``parse``. What is no object has no members, as in Triton."""
    value = parse(text, max_nbytes)
    return value if type(value) is dict else {}


def too_deep() -> InvalidArgument:
    return InvalidArgument(f"JSON nesting depth exceeds maximum allowed limit ({MAX_DATA_DEPTH})")


def too_large(nbytes: int, max_nbytes: int) -> TooLarge:
    return TooLarge(
        f"request JSON size of {nbytes} bytes exceeds the maximum allowed input size of {max_nbytes} bytes. "
        "Use --http-max-input-size to increase the limit."
    )


def _depth(text: bytes) -> int:
    """The deepest nesting of ``text``, which need not be valid."""
    brackets = np.frombuffer(_STRINGS.sub(b"", text).translate(None, _NO_BRACKETS), np.uint8)
    if not brackets.size:
        return 0
    opening = (brackets == ord("[")) | (brackets == ord("{"))
    return int(np.cumsum(np.where(opening, 1, -1)).max())


def _parse_slowly(text: bytes) -> Any:
    if not text.strip():
        raise _malformed("The document is empty.", 0)
    if _depth(text) > _PARSER_DEPTH:
        raise too_deep()
    try:
        if _LONG_NUMBERS.search(text) is None:
            value = json.loads(text.decode())
        else:  # slow: calls of Python for every number
            value = json.loads(text.decode(), parse_float=_float, parse_int=_int)
        orjson.dumps(value)  # refuses half surrogate pairs, which could not be written as UTF-8 later
    except json.JSONDecodeError as error:
        raise _malformed(_WORDS.get(error.msg, "Invalid value."), error.pos) from None
    except UnicodeDecodeError as error:
        raise _malformed("Invalid encoding in string.", error.start) from None
    except TypeError:
        raise _malformed("The surrogate pair in string is invalid.", 0) from None
    except OverflowError:
        raise _malformed("Number too big to be stored in double.", 0) from None
    except RecursionError:
        raise too_deep() from None
    return value


def _malformed(what: str, position: int) -> MalformedJson:
    return MalformedJson(f"failed to parse the request JSON buffer: {what} at {position}")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise OverflowError
    return value


def _int(text: str) -> int | float:
    value = float(text)
    if math.isinf(value):
        raise OverflowError
    if len(text) <= 20:
        exact = int(text)
        if _MIN_SIGNED <= exact <= MAX_UNSIGNED:
            return exact
    return value


# ------------------------------------------------------------------------------------------------------------- members


def missing(name: str) -> str:
    return f"attempt to access non-existing object member '{name}'"


def member(container: Any, name: str, kind: type, wrong: str) -> Any:
    """``container[name]``, which must be a ``kind`` exactly. Raises ``MalformedJson`` ``Unable to parse '<name>': …``,
    with the text ``wrong`` when it is something else."""
    if type(container) is not dict or name not in container:
        raise MalformedJson(f"Unable to parse '{name}': {missing(name)}")
    value = container[name]
    if type(value) is not kind:
        raise MalformedJson(f"Unable to parse '{name}': {wrong}")
    return value


def is_unsigned(value: Any) -> bool:
    """A JSON integer that fits 64 unsigned bits. ``True`` and ``1.0`` are none."""
    return type(value) is int and 0 <= value <= MAX_UNSIGNED


def unsigned(value: Any, what: str) -> int:
    """Raises ``MalformedJson`` ``<what>: …``."""
    if not is_unsigned(value):
        raise MalformedJson(f"{what}: {NOT_UNSIGNED}")
    return int(value)


def boolean(value: Any, what: str) -> bool:
    """Raises ``MalformedJson`` ``<what>: …``."""
    if type(value) is not bool:
        raise MalformedJson(f"{what}: {NOT_BOOLEAN}")
    return value
