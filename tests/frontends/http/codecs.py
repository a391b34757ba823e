"""Small pieces that the tests of the codecs share."""

import json
from typing import Any

import msgspec

from conch.model_config import decode_config
from conch.requester.inference import InferenceCall, InferenceResult, OutputTensor
from conch.requester.models import ReadyModel
from conch.requester.regions import RegionTableView
from conch.tensors import NUMPY_DTYPES
from frontends.http.exchange import Reply
from frontends.http.request_body import decode
from frontends.http.request_outputs import BINARY_FORMAT, JSON_FORMAT, OutputFormats
from tests.frontends.http.support import MODELS

LIMIT = 1 << 26
NO_REGIONS = RegionTableView()
NUMERIC = [name for name in NUMPY_DTYPES if name not in ("BYTES", "FP16")]
ANY_JSON = OutputFormats(JSON_FORMAT, {})
ANY_BINARY = OutputFormats(BINARY_FORMAT, {})


def model(settings: dict[str, Any], labels: dict[str, tuple[str, ...]] | None = None) -> ReadyModel:
    text = msgspec.json.encode(settings).decode()
    return ReadyModel(settings["name"], 1, decode_config(text), text, labels or {})


BY_NAME = {settings["name"]: model(settings) for settings in MODELS}
SIMPLE = BY_NAME["simple"]


def decode_json(value: Any, of: ReadyModel = SIMPLE, limit: int = LIMIT) -> tuple[InferenceCall, OutputFormats]:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return decode(body, len(body), of, NO_REGIONS, limit)


def result(*outputs: OutputTensor, **more: Any) -> InferenceResult:
    return InferenceResult(
        more.get("name", "m"), 1, more.get("id", ""), more.get("parameters", {}), list(outputs), more.get("give_back")
    )


def whole(reply: Reply) -> bytes:
    return reply.body + b"".join(reply.views)


def json_nbytes(reply: Reply) -> int:
    for line in reply.headers.split(b"\r\n"):
        if line.startswith(b"Inference-Header-Content-Length: "):
            return int(line.split()[1])
    return len(reply.body)
