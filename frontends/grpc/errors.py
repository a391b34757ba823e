"""The one table from ``conch.errors`` to gRPC's status codes, after Triton's."""

import logging
from typing import Final

from conch import errors
from frontends.grpc.exchange import Failure

logger = logging.getLogger("conch.frontends.grpc.errors")

OK: Final = 0
CANCELLED: Final = 1
UNKNOWN: Final = 2
INVALID_ARGUMENT: Final = 3
NOT_FOUND: Final = 5
ALREADY_EXISTS: Final = 6
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

#: the nearest listed base of an error's class counts
STATUSES: Final[dict[type[errors.ConchError], int]] = {
    errors.ConchError: INTERNAL,
    errors.ClientError: INVALID_ARGUMENT,
    errors.InvalidArgument: INVALID_ARGUMENT,
    errors.MalformedJson: INTERNAL,
    errors.TooLarge: INVALID_ARGUMENT,
    errors.NotFound: NOT_FOUND,
    errors.AlreadyExists: ALREADY_EXISTS,
    errors.Unsupported: UNIMPLEMENTED,
    errors.Forbidden: UNAVAILABLE,
    errors.Unavailable: UNAVAILABLE,
    errors.Cancelled: CANCELLED,
    errors.ServerError: INTERNAL,
}

#: what cannot be read as the method's request, in Triton's words
UNREADABLE: Final = Failure(INTERNAL, "Unable to parse request")
SHUTTING_DOWN: Final = "GRPC server is shutting down and has stopped accepting new requests."

#: clients take up to 8 KiB of metadata, and a status's message is part of that, percent-encoded
_MAX_ENCODED_NBYTES: Final = 6144
_NEVER_TOO_LONG: Final = 500


def status_of(error: errors.ConchError) -> int:
    for base in type(error).__mro__:
        status = STATUSES.get(base)
        if status is not None:
            return status
    return INTERNAL


def failure_of(error: BaseException) -> Failure:
    """Anything but a ``ConchError`` is a bug: logged here, and answered with nothing of its text."""
    if isinstance(error, errors.ConchError):
        return Failure(status_of(error), shortened(error.message))
    logger.error("a request failed", exc_info=error)
    return Failure(INTERNAL, errors.to_fault(error).message)


def shortened(message: str) -> str:
    """As much of ``message`` as clients take in a status."""
    if len(message) <= _NEVER_TOO_LONG:
        return message.encode(errors="replace").decode()
    data = message.encode(errors="replace")
    nbytes = 0
    for i, byte in enumerate(data):
        nbytes += 1 if 0x20 <= byte < 0x7F and byte != 0x25 else 3
        if nbytes > _MAX_ENCODED_NBYTES:
            return data[:i].decode(errors="ignore") + "..."
    return data.decode()
