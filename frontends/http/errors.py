"""The one table from ``conch.errors`` to HTTP, after Triton's (inventory 0 and 2.7)."""

import logging
from typing import Final

from conch import errors
from frontends.http.exchange import Reply, error_reply

logger = logging.getLogger("conch.frontends.http.errors")

#: the nearest listed base of an error's class counts
STATUSES: Final[dict[type[errors.ConchError], int]] = {
    errors.ConchError: 500,
    errors.ClientError: 400,
    errors.InvalidArgument: 400,
    errors.MalformedJson: 500,
    errors.TooLarge: 400,
    errors.NotFound: 404,
    errors.AlreadyExists: 400,
    errors.Unsupported: 501,
    errors.Forbidden: 403,
    errors.Unavailable: 503,
    errors.Cancelled: 400,
    errors.ServerError: 500,
}

#: sent with every 503
RETRY_AFTER: Final = b"Retry-After: 1\r\n"


def status_of(error: errors.ConchError) -> int:
    for base in type(error).__mro__:
        status = STATUSES.get(base)
        if status is not None:
            return status
    return 500


def reply_to(error: BaseException) -> Reply:
    """Anything but a ``ConchError`` is a bug: logged here, and answered with nothing of its text."""
    if isinstance(error, errors.ConchError):
        status = status_of(error)
        return error_reply(status, error.message, RETRY_AFTER if status == 503 else b"")
    logger.error("a request failed", exc_info=error)
    return error_reply(500, errors.to_fault(error).message)
