"""The endpoints that every server has, for its OpenAPI document."""

from typing import Any, Final

from frontends.http.openapi_models import DATA_SCHEMAS
from frontends.http.openapi_parts import (
    BOOLEAN,
    COUNT,
    ERROR_RESPONSES,
    STRING,
    Schema,
    json_body,
    listed,
    record,
    reference,
)

_ANY: Final[Schema] = {"type": "object"}
_OK: Final = {"200": {"description": "Yes"}}
_DONE: Final = {"200": {"description": "Done"}}

_TENSOR: Final = record({"name": STRING, "datatype": STRING, "shape": listed({"type": "integer"})})
_REGISTRATION: Final = record({"key": STRING, "offset": COUNT, "byte_size": COUNT}, ("key", "byte_size"))
_CUDA_REGISTRATION: Final = record(
    {"raw_handle": record({"b64": STRING}, ("b64",)), "device_id": COUNT, "byte_size": COUNT},
    ("raw_handle", "device_id", "byte_size"),
)
_TEXTS: Final[Schema] = {"anyOf": [STRING, listed(STRING), {"type": "null"}]}

SCHEMAS: Final[dict[str, Schema]] = {
    **DATA_SCHEMAS,
    "Error": record({"error": STRING}, ("error",)),
    "Server": record({"name": STRING, "version": STRING, "extensions": listed(STRING)}),
    "Model": record(
        {
            "name": STRING,
            "versions": listed(STRING),
            "platform": STRING,
            "inputs": listed(_TENSOR),
            "outputs": listed(_TENSOR),
        }
    ),
    "Index": listed(record({"name": STRING, "version": STRING, "state": STRING, "reason": STRING}, ("name",))),
    "Statistics": record({"model_stats": listed(_ANY)}),
    "Regions": listed(record({"name": STRING, "key": STRING, "offset": COUNT, "byte_size": COUNT})),
    "CudaRegions": listed(record({"name": STRING, "device_id": COUNT, "byte_size": COUNT})),
    "LogSettings": record(
        {
            "log_info": BOOLEAN,
            "log_warning": BOOLEAN,
            "log_error": BOOLEAN,
            "log_verbose_level": COUNT,
            "log_format": {"enum": ["default", "ISO8601"]},
        }
    ),
    "TraceSettings": record(
        {name: _TEXTS for name in ("trace_level", "trace_rate", "trace_count", "log_frequency", "trace_mode")}
    ),
}


def _path(path: str, *operations: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """The entry of a path and of those that its optional parts (in brackets) make."""
    before, bracket, rest = path.partition("[")
    if bracket:
        optional, _, after = rest.partition("]")
        return {**_path(before + after, *operations), **_path(before + optional + after, *operations)}
    names = [part.partition("}")[0] for part in path.split("{")[1:]]
    entry: dict[str, Any] = dict(operations)
    if names:
        entry["parameters"] = [{"name": name, "in": "path", "required": True, "schema": STRING} for name in names]
    return {path: entry}


def _operation(
    method: str, tag: str, summary: str, responses: dict[str, Any], body: Schema | None = None, example: Any = None
) -> tuple[str, dict[str, Any]]:
    operation: dict[str, Any] = {"tags": [tag], "summary": summary, "responses": {**responses, **ERROR_RESPONSES}}
    if body is not None:
        media = {"schema": body} if example is None else {"schema": body, "example": example}
        operation["requestBody"] = {"content": {"application/json": media}}
    return method, operation


def _settings(tag: str, what: str, schema: str, example: Any) -> tuple[tuple[str, dict[str, Any]], ...]:
    answer = json_body(reference(schema))
    return (
        _operation("get", tag, f"{what} settings", answer),
        _operation("post", tag, f"Change {what.lower()} settings", answer, reference(schema), example),
    )


_MODEL: Final = "/v2/models/{model}[/versions/{version}]"
_LOAD: Final = record({"parameters": record({"config": STRING}, additionalProperties=STRING)})
_UNLOAD: Final = record({"parameters": record({"unload_dependents": BOOLEAN})})
_REGIONS: Final = (
    ("system", "System", "Regions", _REGISTRATION),
    ("cuda", "CUDA", "CudaRegions", _CUDA_REGISTRATION),
)

FIXED_PATHS: Final[dict[str, Any]] = {
    **_path("/v2/health/live", _operation("get", "health", "Is the server alive?", _OK)),
    **_path("/v2/health/ready", _operation("get", "health", "Is the server ready?", _OK)),
    **_path(f"{_MODEL}/ready", _operation("get", "health", "Is the model ready?", _OK)),
    **_path("/v2", _operation("get", "metadata", "The server", json_body(reference("Server")))),
    **_path(_MODEL, _operation("get", "metadata", "A model", json_body(reference("Model")))),
    **_path(f"{_MODEL}/config", _operation("get", "metadata", "A model's configuration", json_body(_ANY))),
    **_path("/v2/models/stats", _operation("get", "statistics", "All models", json_body(reference("Statistics")))),
    **_path(f"{_MODEL}/stats", _operation("get", "statistics", "One model", json_body(reference("Statistics")))),
    **_path(
        "/v2/repository/index",
        _operation("post", "repository", "All models", json_body(reference("Index")), record({"ready": BOOLEAN}), {}),
    ),
    **_path("/v2/repository/models/{model}/load", _operation("post", "repository", "Load a model", _DONE, _LOAD)),
    **_path("/v2/repository/models/{model}/unload", _operation("post", "repository", "Unload a model", _DONE, _UNLOAD)),
    **{
        path: entry
        for kind, name, schema, registration in _REGIONS
        for part in (
            _path(
                f"/v2/{kind}sharedmemory[/region/{{region}}]/status",
                _operation("get", "shared memory", f"{name} regions", json_body(reference(schema))),
            ),
            _path(
                f"/v2/{kind}sharedmemory/region/{{region}}/register",
                _operation("post", "shared memory", f"Register a {name} region", _DONE, registration),
            ),
            _path(
                f"/v2/{kind}sharedmemory[/region/{{region}}]/unregister",
                _operation("post", "shared memory", f"Unregister {name} regions", _DONE),
            ),
        )
        for path, entry in part.items()
    },
    **_path("/v2/logging", *_settings("logging", "Log", "LogSettings", {"log_verbose_level": 1})),
    **_path(
        "/v2[/models/{model}]/trace/setting", *_settings("trace", "Trace", "TraceSettings", {"trace_rate": "1000"})
    ),
}
