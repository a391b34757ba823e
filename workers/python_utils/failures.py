"""Errors of Python models: what they raise, and what they answer a request with."""

from typing import ClassVar

from conch.errors import (
    AlreadyExists,
    Cancelled,
    ClientError,
    ConchError,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unsupported,
)
from conch.messages import Fault
from workers.python_utils.texts import text

#: Triton's error codes -> classes of ``conch.errors``
_KINDS = {
    0: "ClientError",  # UNKNOWN: 400 over HTTP
    1: "ModelError",
    2: "NotFound",
    3: "InvalidArgument",
    4: "Unavailable",
    5: "Unsupported",
    6: "AlreadyExists",
    7: "Cancelled",
}

#: the other way round; the first that fits
_CODES: tuple[tuple[type[ConchError], int], ...] = (
    (NotFound, 2),
    (InvalidArgument, 3),
    (Unavailable, 4),
    (Unsupported, 5),
    (AlreadyExists, 6),
    (Cancelled, 7),
)


class TritonModelException(Exception):
    """Raised by everything in ``pb_utils`` that fails. Raised in ``execute`` it fails the whole batch."""

    def message(self) -> str:
        return str(self)


class TritonError:
    """The error that one request is answered with."""

    __slots__ = ("_code", "_message")

    UNKNOWN: ClassVar[int] = 0
    INTERNAL: ClassVar[int] = 1
    NOT_FOUND: ClassVar[int] = 2
    INVALID_ARG: ClassVar[int] = 3
    UNAVAILABLE: ClassVar[int] = 4
    UNSUPPORTED: ClassVar[int] = 5
    ALREADY_EXISTS: ClassVar[int] = 6
    CANCELLED: ClassVar[int] = 7

    def __init__(self, message: str, code: int = 1) -> None:
        if code not in _KINDS:
            raise TypeError(f"TritonError expects one of its codes, got {code!r}")
        self._message = text(message, "the message of a TritonError")
        self._code = int(code)

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code

    def __str__(self) -> str:
        return self._message

    def _fault(self) -> Fault:
        return Fault(_KINDS[self._code], self._message)


def triton_error(error: ConchError) -> TritonError:
    """What another model or the server answered, as the model that asked sees it."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return TritonError(error.message, code)
    if type(error) is ClientError:
        return TritonError(error.message, TritonError.UNKNOWN)
    return TritonError(
        error.message, TritonError.INVALID_ARG if isinstance(error, ClientError) else TritonError.INTERNAL
    )
