"""Requests that a browser sends for a page of somebody else: it does so also to servers that only its own machine can
reach, and anybody's page could have a model loaded, which is a program. The page does not get to see the answer."""

from collections.abc import Mapping
from typing import Final

_OWN_SITES: Final = (b"same-origin", b"none")


def is_cross_origin(fields: Mapping[bytes, bytes]) -> bool:
    """``fields``: the request's headers, names in lower case. Programs send neither of the two that count; browsers
    leave out the first where there is no TLS, except to their own machine."""
    site = fields.get(b"sec-fetch-site")
    if site is not None:
        return site not in _OWN_SITES
    origin = fields.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != fields.get(b"host")
