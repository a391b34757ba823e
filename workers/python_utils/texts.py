"""Texts that models give: as in Triton, ``bytes`` serve as well, which is what the elements of a BYTES tensor are."""

from typing import Any


def text(value: Any, what: str) -> str:
    """``what`` names it in the ``TypeError`` that is raised for what is no text."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise TypeError(f"{what} is no UTF-8: {value!r}") from None
    raise TypeError(f"{what} must be a str, got {type(value)}")
