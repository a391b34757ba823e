"""The OpenAPI document of this server: its fixed endpoints, and inference for every model version that is ready."""

import re
from typing import Any, Final
from urllib.parse import quote

from conch import __version__
from conch.requester.models import ModelTableView, ReadyModel
from frontends.http.openapi_fixed import FIXED_PATHS, SCHEMAS
from frontends.http.openapi_models import ModelSchemas
from frontends.http.openapi_parts import ERROR_RESPONSES, json_body, reference

_DESCRIPTION: Final = (
    "Inference with the protocol of KServe, version 2, and Triton's extensions. Model-specific paths are those of the "
    "models that are ready now. Tensors can also be sent and answered as binary data behind the JSON: see "
    "`binary_data_size`, `binary_data` and the header `Inference-Header-Content-Length`."
)
#: of all models together: the document is made between two requests, and sent whole
_MAX_EXAMPLE_ELEMENTS: Final = 500_000
_UNUSABLE: Final = re.compile(r"[^A-Za-z0-9._-]")
_TAGS: Final = (
    ("health", "Is the server, or a model, there and ready?"),
    ("metadata", "What the server and its models are."),
    ("repository", "What models there are; load and unload them."),
    ("statistics", "What models have done so far."),
    ("shared memory", "Tensors in memory that client and server share."),
    ("logging", "What the server logs."),
    ("trace", "What the server traces."),
)


def document(models: ModelTableView, server_id: str) -> dict[str, Any]:
    """OpenAPI 3.1 as plain data. Models with a decoupled transaction policy have no ``infer``."""
    paths: dict[str, Any] = dict(FIXED_PATHS)
    schemas: dict[str, Any] = dict(SCHEMAS)
    examples: dict[str, Any] = {}
    elements_left = _MAX_EXAMPLE_ELEMENTS
    tags = [{"name": name, "description": text} for name, text in _TAGS]
    for name in sorted({entry.name for entry in models.index(ready_only=True)}):
        versions = [models.lookup(name, str(version)) for version in models.ready_versions(name)]
        if not versions:
            continue
        tags.append({"name": f"model {name}", "description": _described(versions[-1])})
        for model in versions:
            # the names of what it adds; a number keeps apart what differs in other characters only
            prefix = f"{_UNUSABLE.sub('_', name)}_v{model.version}_{len(schemas)}"
            described = ModelSchemas(model, prefix, elements_left)
            elements_left -= described.example_elements
            schemas |= described.schemas
            examples |= described.examples
            base = f"/v2/models/{quote(name, safe='')}"
            if model is versions[-1]:
                paths |= _model_paths(base, model, described, "")
            paths |= _model_paths(f"{base}/versions/{model.version}", model, described, f", version {model.version}")
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{server_id}: inference", "version": __version__, "description": _DESCRIPTION},
        "tags": tags,
        "paths": paths,
        "components": {"schemas": schemas, "examples": examples},
    }


def _described(model: ReadyModel) -> str:
    batches = f"Batches of up to {model.max_batch_size}." if model.max_batch_size else "No batches."
    return f"{model.config.platform or model.config.backend or 'model'}. {batches}"


def _model_paths(base: str, model: ReadyModel, described: ModelSchemas, which: str) -> dict[str, Any]:
    events = {"200": {"description": "One event per response", "content": {"text/event-stream": {}}}}
    infer_answer = json_body(reference(described.infer_response), "The outputs")
    generate_answer = json_body(reference(described.generate_response), "The outputs")
    endpoints = [
        ("infer", "Infer", described.infer, infer_answer),
        ("generate", "Generate", described.generate, generate_answer),
        ("generate_stream", "Generate, as server-sent events", described.generate, events),
    ]
    if model.decoupled:
        del endpoints[0]
    return {
        f"{base}/{kind}": {
            "post": {
                "tags": [f"model {model.name}"],
                "summary": f"{summary}{which}",
                "requestBody": {"required": True, "content": {"application/json": request}},
                "responses": {**answer, **ERROR_RESPONSES},
            }
        }
        for kind, summary, request, answer in endpoints
    }
