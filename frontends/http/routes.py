"""Which path is which endpoint, what methods it takes, and what category of the API it belongs to.

Everything that this server answers is in ``ROUTES``; a path that is not is 404. A route without a category cannot be
written, so that a later restriction by category covers all of them.
"""

import enum
import re
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from conch.categories import Category


class Endpoint(enum.Enum):
    SERVER_LIVE = enum.auto()
    SERVER_READY = enum.auto()
    SERVER_METADATA = enum.auto()
    MODEL_READY = enum.auto()
    MODEL_METADATA = enum.auto()
    MODEL_CONFIG = enum.auto()
    STATISTICS = enum.auto()
    INFER = enum.auto()
    GENERATE = enum.auto()
    GENERATE_STREAM = enum.auto()
    REPOSITORY_INDEX = enum.auto()
    MODEL_LOAD = enum.auto()
    MODEL_UNLOAD = enum.auto()
    SYSTEM_REGIONS = enum.auto()
    SYSTEM_REGION_REGISTER = enum.auto()
    SYSTEM_REGION_UNREGISTER = enum.auto()
    CUDA_REGIONS = enum.auto()
    CUDA_REGION_REGISTER = enum.auto()
    CUDA_REGION_UNREGISTER = enum.auto()
    TRACE_SETTINGS = enum.auto()
    LOG_SETTINGS = enum.auto()
    DOCS = enum.auto()
    OPENAPI = enum.auto()


class Route(NamedTuple):
    """``pattern`` is matched against the whole path, before percent-decoding; its groups ``model``, ``version``,
    ``repository`` and ``region`` become the match's."""

    endpoint: Endpoint
    methods: tuple[bytes, ...]
    category: Category
    pattern: "re.Pattern[bytes]"


class Match(NamedTuple):
    """``version`` is "" when the path names none."""

    endpoint: Endpoint
    methods: tuple[bytes, ...]
    category: Category
    model: str = ""
    version: str = ""
    repository: str = ""
    region: str = ""


_MODEL: Final = rb"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?"
_REPOSITORY: Final = rb"/v2/repository(?:/(?P<repository>[^/]+))?"
_SYSTEM: Final = rb"/v2/systemsharedmemory(?:/region/(?P<region>[^/]+))?"
_CUDA: Final = rb"/v2/cudasharedmemory(?:/region/(?P<region>[^/]+))?"
_GET: Final = (b"GET",)
_POST: Final = (b"POST",)
_BOTH: Final = (b"GET", b"POST")

#: in the order in which they are tried
ROUTES: Final = tuple(
    Route(endpoint, methods, category, re.compile(pattern))
    for endpoint, methods, category, pattern in (
        (Endpoint.INFER, _POST, Category.INFERENCE, _MODEL + rb"/infer"),
        (Endpoint.GENERATE, _POST, Category.INFERENCE, _MODEL + rb"/generate"),
        (Endpoint.GENERATE_STREAM, _POST, Category.INFERENCE, _MODEL + rb"/generate_stream"),
        (Endpoint.SERVER_LIVE, _GET, Category.HEALTH, rb"/v2/health/live"),
        (Endpoint.SERVER_READY, _GET, Category.HEALTH, rb"/v2/health/ready"),
        (Endpoint.SERVER_METADATA, _GET, Category.METADATA, rb"/v2"),
        (Endpoint.STATISTICS, _GET, Category.STATISTICS, rb"/v2/models/stats"),
        (Endpoint.MODEL_METADATA, _GET, Category.METADATA, _MODEL),
        (Endpoint.MODEL_READY, _GET, Category.HEALTH, _MODEL + rb"/ready"),
        (Endpoint.MODEL_CONFIG, _GET, Category.MODEL_CONFIG, _MODEL + rb"/config"),
        (Endpoint.STATISTICS, _GET, Category.STATISTICS, _MODEL + rb"/stats"),
        (Endpoint.REPOSITORY_INDEX, _POST, Category.MODEL_REPOSITORY, _REPOSITORY + rb"/index"),
        (Endpoint.MODEL_LOAD, _POST, Category.MODEL_REPOSITORY, _REPOSITORY + rb"/models/(?P<model>[^/]+)/load"),
        (Endpoint.MODEL_UNLOAD, _POST, Category.MODEL_REPOSITORY, _REPOSITORY + rb"/models/(?P<model>[^/]+)/unload"),
        (Endpoint.SYSTEM_REGIONS, _GET, Category.SHARED_MEMORY, _SYSTEM + rb"/status"),
        (Endpoint.SYSTEM_REGION_REGISTER, _POST, Category.SHARED_MEMORY, _SYSTEM + rb"/register"),
        (Endpoint.SYSTEM_REGION_UNREGISTER, _POST, Category.SHARED_MEMORY, _SYSTEM + rb"/unregister"),
        (Endpoint.CUDA_REGIONS, _GET, Category.SHARED_MEMORY, _CUDA + rb"/status"),
        (Endpoint.CUDA_REGION_REGISTER, _POST, Category.SHARED_MEMORY, _CUDA + rb"/register"),
        (Endpoint.CUDA_REGION_UNREGISTER, _POST, Category.SHARED_MEMORY, _CUDA + rb"/unregister"),
        (Endpoint.TRACE_SETTINGS, _BOTH, Category.TRACE, rb"/v2/trace/setting"),
        (Endpoint.TRACE_SETTINGS, _BOTH, Category.TRACE, rb"/v2/models/(?P<model>[^/]+)/trace/setting"),
        (Endpoint.LOG_SETTINGS, _BOTH, Category.LOGGING, rb"/v2/logging"),
        (Endpoint.DOCS, _GET, Category.METADATA, rb"/v2/docs"),
        (Endpoint.OPENAPI, _GET, Category.METADATA, rb"/v2/docs/openapi\.json"),
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
            return Match(route.endpoint, route.methods, route.category, **names)
    return None


def _decoded(text: bytes) -> str:
    return unquote_to_bytes(text).decode(errors="replace")
