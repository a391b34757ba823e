"""Which path is which endpoint, what methods it takes, and what category of the API it belongs to.

Everything that this server answers is in ``ROUTES``; a path that is not is 404. A route without a category cannot be
written, so that a later restriction by category covers all of them.
"""

import enum
import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from frontends.categories import Category


class Endpoint(enum.Enum):
    SERVER_LIVE = enum.auto()
    SERVER_READY = enum.auto()
    SERVER_METADATA = enum.auto()
    MODEL_READY = enum.auto()
    MODEL_METADATA = enum.auto()
    MODEL_CONFIG = enum.auto()
    STATISTICS = enum.auto()
    INFER = enum.auto()
    REPOSITORY_INDEX = enum.auto()
    MODEL_LOAD = enum.auto()
    MODEL_UNLOAD = enum.auto()


class Route(NamedTuple):
    """``pattern`` is matched against the whole path, before percent-decoding; its groups ``model``, ``version`` and
    ``repository`` become the match's."""

    endpoint: Endpoint
    method: bytes
    category: Category
    pattern: "re.Pattern[bytes]"


class Match(NamedTuple):
    """``version`` is "" when the path names none."""

    endpoint: Endpoint
    method: bytes
    category: Category
    model: str = ""
    version: str = ""
    repository: str = ""


_MODEL: Final = rb"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?"
_REPOSITORY: Final = rb"/v2/repository(?:/(?P<repository>[^/]+))?"

#: in the order in which they are tried
ROUTES: Final = tuple(
    Route(endpoint, method, category, re.compile(pattern))
    for endpoint, method, category, pattern in (
        (Endpoint.INFER, b"POST", Category.INFERENCE, _MODEL + rb"/infer"),
        (Endpoint.SERVER_LIVE, b"GET", Category.HEALTH, rb"/v2/health/live"),
        (Endpoint.SERVER_READY, b"GET", Category.HEALTH, rb"/v2/health/ready"),
        (Endpoint.SERVER_METADATA, b"GET", Category.METADATA, rb"/v2"),
        (Endpoint.STATISTICS, b"GET", Category.STATISTICS, rb"/v2/models/stats"),
        (Endpoint.MODEL_METADATA, b"GET", Category.METADATA, _MODEL),
        (Endpoint.MODEL_READY, b"GET", Category.HEALTH, _MODEL + rb"/ready"),
        (Endpoint.MODEL_CONFIG, b"GET", Category.MODEL_CONFIG, _MODEL + rb"/config"),
        (Endpoint.STATISTICS, b"GET", Category.STATISTICS, _MODEL + rb"/stats"),
        (Endpoint.REPOSITORY_INDEX, b"POST", Category.MODEL_REPOSITORY, _REPOSITORY + rb"/index"),
        (Endpoint.MODEL_LOAD, b"POST", Category.MODEL_REPOSITORY, _REPOSITORY + rb"/models/(?P<model>[^/]+)/load"),
        (Endpoint.MODEL_UNLOAD, b"POST", Category.MODEL_REPOSITORY, _REPOSITORY + rb"/models/(?P<model>[^/]+)/unload"),
    )
)

_REMEMBERED: Final = 1024
_remembered: dict[bytes, Match | None] = {}


def resolve(target: bytes) -> Match | None:
    """The endpoint that a request's target names; the query is ignored. None for anything else."""
    try:
        return _remembered[target]
    except KeyError:
        pass
    match = _resolve(target)
    if len(_remembered) >= _REMEMBERED:
        _remembered.clear()
    _remembered[target] = match
    return match


def _resolve(target: bytes) -> Match | None:
    path = target.split(b"?", 1)[0].split(b"#", 1)[0]
    if not path.startswith(b"/"):
        # the absolute form: http://host/path
        path = b"/" + path.split(b"/", 3)[3] if path.count(b"/") >= 3 else b""
    for route in ROUTES:
        found = route.pattern.fullmatch(path)
        if found is not None:
            names = {name: _decoded(text) for name, text in found.groupdict().items() if text is not None}
            return Match(route.endpoint, route.method, route.category, **names)
    return None


def _decoded(text: bytes) -> str:
    return unquote_to_bytes(text).decode(errors="replace")
