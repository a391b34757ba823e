"""Every endpoint but inference: status, body to the byte, methods, names."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from conch import errors
from conch.categories import Category
from conch.messages import (
    AskStatistics,
    BatchStatistics,
    Duration,
    LoadModel,
    ModelEntry,
    ModelStatistics,
    UnloadModel,
)
from frontends.http.application import HttpApplication
from frontends.http.errors import STATUSES, reply_to, status_of
from frontends.http.routes import ROUTES, Endpoint, resolve
from tests.frontends.http.support import Frontend, simple_request, table

JSON = {"content-type": "application/json"}


@pytest.fixture(autouse=True)
def usual_table(frontend: Frontend) -> Iterator[None]:
    yield
    frontend.do(lambda: frontend.requester.models.update(table()))
    frontend.requester.messages.clear()


def set_table(frontend: Frontend, server: str, *extra: ModelEntry) -> None:
    frontend.do(lambda: frontend.requester.models.update(table(server, extra)))


def get(frontend: Frontend, path: str) -> tuple[int, bytes]:
    status, _, body = frontend.request("GET", path)
    return status, body


def error(text: bytes) -> str:
    shown = json.loads(text)
    assert list(shown) == ["error"]
    return str(shown["error"])


# -------------------------------------------------------------------------------------------------------------- health


def test_health(frontend: Frontend) -> None:
    assert get(frontend, "/v2/health/live") == (200, b"")
    assert get(frontend, "/v2/health/ready") == (200, b"")
    assert get(frontend, "/v2/models/simple/ready") == (200, b"")
    assert get(frontend, "/v2/models/simple/versions/1/ready") == (200, b"")


def test_health_of_a_failed_model(frontend: Frontend) -> None:
    set_table(frontend, "ready", ModelEntry("broken", 1, "UNAVAILABLE", "because", False))
    assert get(frontend, "/v2/health/live") == (200, b"")
    assert get(frontend, "/v2/health/ready") == (400, b"")
    status, text = get(frontend, "/v2/models/broken/versions/1/ready")
    assert (status, error(text)) == (503, "Request for unknown model: 'broken' version 1 is not at ready state")


def test_health_of_an_unhealthy_model(frontend: Frontend) -> None:
    config = table().models[0].config.replace('"simple"', '"ill"')
    set_table(frontend, "ready", ModelEntry("ill", 1, "READY", "", False, config))
    status, text = get(frontend, "/v2/models/ill/ready")
    assert (status, text) == (400, b'{"error":"Model version not ready"}')


def test_health_while_exiting(frontend: Frontend) -> None:
    set_table(frontend, "exiting")
    for kind in ("live", "ready"):
        status, headers, text = frontend.request("GET", f"/v2/health/{kind}")
        assert (status, text) == (503, b'{"error":"Server exiting"}')
        assert headers["retry-after"] == "1"


def test_health_while_leaving() -> None:
    with Frontend() as frontend:
        application = frontend.engine.application
        assert isinstance(application, HttpApplication)
        frontend.do(application.leave)
        assert get(frontend, "/v2/health/live") == (200, b"")
        assert get(frontend, "/v2/health/ready") == (400, b"")
        assert get(frontend, "/v2/models/simple/ready") == (400, b'{"error":"Model version not ready"}')
        assert get(frontend, "/v2/models/nope/ready")[0] == 404
        assert frontend.infer("simple", simple_request())[0] == 200


def test_ready_of_unknown_models(frontend: Frontend) -> None:
    assert get(frontend, "/v2/models/nope/ready")[0] == 404
    assert get(frontend, "/v2/models/simple/versions/9/ready")[0] == 404


# ------------------------------------------------------------------------------------------------------------ metadata


def test_server_metadata(frontend: Frontend) -> None:
    status, headers, text = frontend.request("GET", "/v2")
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert text.startswith(b'{"name":"triton","version":"') and b", " not in text
    assert list(json.loads(text)) == ["name", "version", "extensions"]


def test_model_metadata(frontend: Frontend) -> None:
    status, text = get(frontend, "/v2/models/simple")
    assert status == 200
    assert text == (
        b'{"name":"simple","versions":["1"],"platform":"python","inputs":['
        b'{"name":"INPUT0","datatype":"INT32","shape":[-1,16]},{"name":"INPUT1","datatype":"INT32","shape":[-1,16]}],'
        b'"outputs":['
        b'{"name":"OUTPUT0","datatype":"INT32","shape":[-1,16]},{"name":"OUTPUT1","datatype":"INT32","shape":[-1,16]}]}'
    )
    assert get(frontend, "/v2/models/simple/versions/1") == (200, text)
    status, text = get(frontend, "/v2/models/nope")
    assert (status, error(text)) == (404, "Request for unknown model: 'nope' is not found")


def test_model_config(frontend: Frontend) -> None:
    status, text = get(frontend, "/v2/models/simple/config")
    assert status == 200
    assert json.loads(text)["max_batch_size"] == 8
    assert b'"dims":[16]' in text
    assert get(frontend, "/v2/models/nope/config")[0] == 404


@pytest.mark.parametrize("path", ["/v2/models/a%20b%2Bc.d", "/v2/models/a%20b+c.d", "/v2/models/a%20b%2bc%2ed?x=y"])
def test_names_are_decoded(frontend: Frontend, path: str) -> None:
    status, text = get(frontend, path)
    assert (status, json.loads(text)["name"]) == (200, "a b+c.d")


@pytest.mark.parametrize("name", ["..", "%2e%2e", "..%2f..%2fetc", "%00", "%ff", "a%0ab", "x" * 4000, "%", "%zz"])
def test_strange_names_are_unknown(frontend: Frontend, name: str) -> None:
    status, text = get(frontend, f"/v2/models/{name}")
    assert status == 404
    assert error(text).startswith("Request for unknown model: '")


# ---------------------------------------------------------------------------------------------------------- repository


def test_index(frontend: Frontend) -> None:
    set_table(
        frontend, "ready", ModelEntry("zz", 0, "UNKNOWN", "", False), ModelEntry("zy", 3, "UNAVAILABLE", "why", True)
    )
    for path in ("/v2/repository/index", "/v2/repository/some/index"):
        status, _, text = frontend.request("POST", path)
        assert status == 200
        entries = json.loads(text)
        assert entries[-1] == {"name": "zz"}
        assert entries[-2] == {"name": "zy", "version": "3", "state": "UNAVAILABLE", "reason": "why"}
    status, _, text = frontend.request("POST", "/v2/repository/index", b'{"ready":true}')
    assert all(entry["state"] == "READY" for entry in json.loads(text))


@pytest.mark.parametrize("value", ['"true"', "1", "null", "[" * 250_000 + "true" + "]" * 250_000])
def test_index_of_something_else(frontend: Frontend, value: str) -> None:
    status, _, text = frontend.request("POST", "/v2/repository/index", f'{{"ready":{value}}}')
    assert (status, text) == (400, b'{"error":"Invalid value for \'ready\': expected a boolean"}')


def test_index_with_a_bad_body(frontend: Frontend) -> None:
    assert frontend.request("POST", "/v2/repository/index", b"{")[0] == 500
    status, _, text = frontend.request("POST", "/v2/repository/index", b" " * 2_000_000)
    assert (status, error(text)[:23]) == (400, "request JSON size of 20")


def test_load(frontend: Frontend) -> None:
    status, _, text = frontend.request("POST", "/v2/repository/models/simple/load")
    assert (status, text) == (200, b"")
    body = {"parameters": {"config": '{"max_batch_size":"16"}', "file:1/model.onnx": "YWJj"}}
    assert frontend.request("POST", "/v2/repository/models/simple/load", json.dumps(body))[0] == 200
    assert frontend.requester.messages == [
        LoadModel(0, "simple"),
        LoadModel(0, "simple", '{"max_batch_size":"16"}', {"1/model.onnx": b"abc"}),
    ]


def test_load_fails(frontend: Frontend) -> None:
    frontend.requester.answers.append(errors.PollFailed("failed to load 'x', failed to poll from model repository"))
    status, _, text = frontend.request("POST", "/v2/repository/models/x/load")
    assert (status, error(text)) == (500, "failed to load 'x', failed to poll from model repository")


@pytest.mark.parametrize(
    ("parameters", "status", "text"),
    [
        ({"config": 1}, 500, "attempt to access JSON non-string as string"),
        ({"other": "x"}, 400, "unrecognized load parameter 'other'."),
        ({"file:1/x": "%"}, 400, "'file:1/x' is not valid base64"),
        ([], 500, "attempt to get members for non-object"),
    ],
)
def test_load_with_bad_parameters(frontend: Frontend, parameters: Any, status: int, text: str) -> None:
    body = json.dumps({"parameters": parameters})
    found, _, shown = frontend.request("POST", "/v2/repository/models/x/load", body)
    assert (found, error(shown)) == (status, text)
    assert not frontend.requester.messages


def test_unload(frontend: Frontend) -> None:
    assert frontend.request("POST", "/v2/repository/models/simple/unload")[0] == 200
    body = b'{"parameters":{"unload_dependents":true}}'
    assert frontend.request("POST", "/v2/repository/models/simple/unload", body)[0] == 200
    assert frontend.requester.messages == [UnloadModel(0, "simple"), UnloadModel(0, "simple", True)]
    body = b'{"parameters":{"unload_dependents":1}}'
    status, _, text = frontend.request("POST", "/v2/repository/models/simple/unload", body)
    assert (status, error(text)) == (
        500,
        "Unable to parse 'unload_dependents': attempt to access JSON non-boolean as boolean",
    )


def test_repository_names_are_refused(frontend: Frontend) -> None:
    for action in ("load", "unload"):
        status, _, text = frontend.request("POST", f"/v2/repository/r/models/simple/{action}")
        assert (status, error(text)) == (501, "'repository_name' specification is not supported")


# ---------------------------------------------------------------------------------------------------------- statistics


def test_statistics(frontend: Frontend) -> None:
    one = Duration(1, 10)
    batch = BatchStatistics(4, one, one, one)
    found = ModelStatistics("simple", 1, 123, 4, 1, one, one, one, one, one, one, one, one, (batch,), 0)
    frontend.requester.answers.append([found])
    status, text = get(frontend, "/v2/models/simple/versions/1/stats")
    assert status == 200
    durations = b'{"count":1,"ns":10}'
    kinds = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    expected = b",".join(b'"%b":%b' % (kind.encode(), durations) for kind in kinds)
    batches = b",".join(b'"%b":%b' % (kind.encode(), durations) for kind in kinds[3:6])
    assert text == (
        b'{"model_stats":[{"name":"simple","version":"1","last_inference":123,"inference_count":4,"execution_count":1,'
        b'"inference_stats":{%b},"response_stats":{},"batch_stats":[{"batch_size":4,%b}],"memory_usage":[]}]}'
        % (expected, batches)
    )
    for path in ("/v2/models/stats", "/v2/models/simple/stats"):
        frontend.requester.answers.append([])
        assert get(frontend, path) == (200, b'{"model_stats":[]}')
    assert frontend.requester.messages == [
        AskStatistics(0, "simple", 1),
        AskStatistics(0, "", 0),
        AskStatistics(0, "simple", 0),
    ]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/v2/models/nope/stats", "requested model 'nope' is not available"),
        ("/v2/models/simple/versions/9/stats", "requested model version is not available for model 'simple'"),
    ],
)
def test_statistics_of_unknown_models(frontend: Frontend, path: str, text: str) -> None:
    status, shown = get(frontend, path)
    assert (status, error(shown)) == (400, text)


# -------------------------------------------------------------------------------------------------- routes and statuses

PATHS = {
    Endpoint.SERVER_LIVE: "/v2/health/live",
    Endpoint.SERVER_READY: "/v2/health/ready",
    Endpoint.SERVER_METADATA: "/v2",
    Endpoint.MODEL_READY: "/v2/models/simple/ready",
    Endpoint.MODEL_METADATA: "/v2/models/simple",
    Endpoint.MODEL_CONFIG: "/v2/models/simple/config",
    Endpoint.STATISTICS: "/v2/models/stats",
    Endpoint.INFER: "/v2/models/simple/infer",
    Endpoint.REPOSITORY_INDEX: "/v2/repository/index",
    Endpoint.MODEL_LOAD: "/v2/repository/models/simple/load",
    Endpoint.MODEL_UNLOAD: "/v2/repository/models/simple/unload",
    Endpoint.SYSTEM_REGIONS: "/v2/systemsharedmemory/status",
    Endpoint.SYSTEM_REGION_REGISTER: "/v2/systemsharedmemory/region/r/register",
    Endpoint.SYSTEM_REGION_UNREGISTER: "/v2/systemsharedmemory/region/r/unregister",
    Endpoint.CUDA_REGIONS: "/v2/cudasharedmemory/status",
    Endpoint.CUDA_REGION_REGISTER: "/v2/cudasharedmemory/region/r/register",
    Endpoint.CUDA_REGION_UNREGISTER: "/v2/cudasharedmemory/region/r/unregister",
    Endpoint.TRACE_SETTINGS: "/v2/trace/setting",
    Endpoint.LOG_SETTINGS: "/v2/logging",
    Endpoint.GENERATE: "/v2/models/simple/generate",
    Endpoint.GENERATE_STREAM: "/v2/models/simple/generate_stream",
    Endpoint.DOCS: "/v2/docs",
    Endpoint.OPENAPI: "/v2/docs/openapi.json",
}


@pytest.mark.parametrize("endpoint", Endpoint)
def test_methods(frontend: Frontend, endpoint: Endpoint) -> None:
    path = PATHS[endpoint]
    match = resolve(path.encode())
    assert match is not None and match.endpoint is endpoint
    assert isinstance(match.category, Category)
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        if method.encode() in match.methods:
            continue
        status, headers, text = frontend.request(method, path)
        assert (status, text) == (405, b'{"error":"Method Not Allowed"}')
        assert headers["allow"] == b", ".join(match.methods).decode()


def test_every_endpoint_has_a_route() -> None:
    assert {route.endpoint for route in ROUTES} == set(Endpoint)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v2/",
        "/v1",
        "/v2/health",
        "/v2/health/live/",
        "//v2/health/live",
        "/V2/health/live",
        "/v2/%68ealth/live",
        "/base/v2/health/live",
        "/v2/models",
        "/v2/models/",
        "/v2/models/simple/",
        "/v2/models/simple/versions/x",
        "/v2/models/simple/versions/1/",
        "/v2/models/simple/nothing",
        "/v2/models/a/b/infer",
        "/v2/logging/",
        "/v2/trace",
        "/v2/models/simple/versions/1/trace/setting",
        "/v2/systemsharedmemory",
        "/v2/cudasharedmemory/region/r",
        "/v2/repository/models/simple",
        "/metrics",
    ],
)
def test_unknown_paths(frontend: Frontend, path: str) -> None:
    for method in ("GET", "POST"):
        status, headers, text = frontend.request(method, path)
        assert (status, text) == (404, b'{"error":"Not Found"}')
        assert headers["content-type"] == "application/json"


def all_errors(base: type[errors.ConchError]) -> Iterator[type[errors.ConchError]]:
    yield base
    for subclass in base.__subclasses__():
        if subclass.__module__ == errors.__name__:  # other tests import modules with errors of their own
            yield from all_errors(subclass)


def test_every_error_has_a_status() -> None:
    expected = {
        "InvalidArgument": 400,
        "MalformedJson": 500,
        "TooLarge": 400,
        "NotFound": 404,
        "AlreadyExists": 400,
        "Unsupported": 501,
        "Forbidden": 403,
        "Cancelled": 400,
        "NotReady": 503,
        "Overloaded": 503,
        "QueueTimeout": 503,
        "Internal": 500,
        "PollFailed": 500,
        "ModelError": 500,
        "WorkerDied": 500,
    }
    for kind in all_errors(errors.ConchError):
        reply = reply_to(kind("text"))
        assert reply.status == expected.get(kind.__name__, STATUSES.get(kind, 503)) == status_of(kind("text"))
        assert (b"Retry-After: 1\r\n" in reply.headers) == (reply.status == 503)
        assert reply.body == b'{"error":"text"}'


def test_a_bug_is_not_shown() -> None:
    reply = reply_to(ValueError("/secret/path"))
    assert reply.status == 500
    assert b"secret" not in reply.body
