"""What more than one process refuses requests with, in the same words.

Those for inputs whose bytes are wrong are Triton's: the frontend looks at bytes that a client sends, the worker at
those in a client's shared memory.
"""

from conch.datatypes import BYTES_PREFIX_NBYTES
from conch.tensors import BadBytes, Buffer, count


def refusal(client_id: str, text: str) -> str:
    """``text`` with the prefix that Triton's core puts before its reasons to refuse a request."""
    return f"[request id: {client_id or '<id_unknown>'}] {text}"


def keeps_crashing(name: str, version: int) -> str:
    """Of a model version whose workers die too often."""
    return f"model '{name}' version {version} keeps crashing and is started again after a pause; try again"


def wrong_elements(data: Buffer, elements: int, name: str, model: str) -> str:
    """What is wrong with BYTES input ``name``, which is to be exactly ``elements`` elements; "" if nothing is."""
    where = f"for inference input '{name}' for model '{model}'"
    try:
        found = count(data, elements)
    except BadBytes:
        return _incomplete(data, where)
    if found > elements:
        return f"unexpected number of string elements {found} {where}, expecting {elements}"
    if found < elements:
        return f"expected {elements} string elements {where}, got {found}"
    return ""


def _incomplete(data: Buffer, where: str) -> str:
    """What is missing at the end of ``data``, which is not a whole number of elements."""
    left = len(data)
    while left >= BYTES_PREFIX_NBYTES:
        start = len(data) - left
        length = int.from_bytes(data[start : start + BYTES_PREFIX_NBYTES], "little")
        left -= BYTES_PREFIX_NBYTES
        if left < length:
            return (
                f"incomplete string data {where}, expecting string of length {length} but only {left} bytes available"
            )
        left -= length
    return (
        f"incomplete string length indicator {where}, expecting {BYTES_PREFIX_NBYTES} bytes but only {left} bytes "
        "available. Please make sure the string length indicator is in one buffer."
    )
