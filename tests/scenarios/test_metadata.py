"""Health, metadata, configuration, statistics and the repository index, byte for byte where scripts grep."""

import json
import time
from typing import Any

import pytest

from tests.scenarios.harness import Server

# of a Triton with everything switched on, in its order
EXTENSIONS = [
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
]
# the real Triton's answers
SIMPLE_METADATA = (
    b'{"name":"simple","versions":["1"],"platform":"python","inputs":['
    b'{"name":"INPUT0","datatype":"INT32","shape":[-1,16]},{"name":"INPUT1","datatype":"INT32","shape":[-1,16]}],'
    b'"outputs":[{"name":"OUTPUT0","datatype":"INT32","shape":[-1,16]},'
    b'{"name":"OUTPUT1","datatype":"INT32","shape":[-1,16]}]}'
)
MATRIX_METADATA = (
    b'{"name":"matrix","versions":["1"],"platform":"python","inputs":['
    b'{"name":"INPUT0","datatype":"FP32","shape":[-1,2]}],"outputs":[{"name":"OUTPUT0","datatype":"FP32","shape":[-1,2]}]}'
)


def get(server: Server, path: str) -> Any:
    status, body = server.request("GET", path)
    assert status == 200, body
    return json.loads(body)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/simple/ready",
        "/v2/models/simple/versions/1/ready",
        "/v2/health/live?query=ignored",
    ],
)
def test_ready(server: Server, path: str) -> None:
    assert server.request("GET", path) == (200, b"")


def test_server_metadata(server: Server) -> None:
    answer = get(server, "/v2")
    assert answer["name"] == "triton"
    # only what is there
    assert answer["extensions"] == [name for name in EXTENSIONS if name in answer["extensions"]]
    assert {"classification", "binary_tensor_data", "parameters", "statistics"} <= set(answer["extensions"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2/models/simple", SIMPLE_METADATA),
        ("/v2/models/simple/versions/1", SIMPLE_METADATA),
        ("/v2/models/matrix", MATRIX_METADATA),
    ],
)
def test_model_metadata(server: Server, path: str, expected: bytes) -> None:
    assert server.request("GET", path) == (200, expected)


def test_model_config(server: Server) -> None:
    config = get(server, "/v2/models/simple/config")
    assert config["name"] == "simple"
    assert config["backend"] == "python"
    assert config["max_batch_size"] == 8
    assert config["version_policy"] == {"latest": {"num_versions": 1}}
    assert config["input"][0] == {
        "name": "INPUT0",
        "data_type": "TYPE_INT32",
        "format": "FORMAT_NONE",
        "dims": [16],
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": False,
        "is_non_linear_format_io": False,
    }
    assert config["dynamic_batching"]["preferred_batch_size"] == [8]
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["default_model_filename"] == "model.py"
    picture = get(server, "/v2/models/text_to_image/versions/1/config")
    assert picture["parameters"]["cell_pixels"] == {"string_value": "32"}
    assert picture["output"][0]["dims"] == [-1, -1, 3]


def test_statistics_count(server: Server) -> None:
    def ask() -> dict[str, Any]:
        answer: dict[str, Any] = get(server, "/v2/models/echo_fp64/stats")["model_stats"][0]
        return answer

    before = ask()
    body = b'{"inputs":[{"name":"INPUT0","shape":[2],"datatype":"FP64","data":[1,2]}]}'
    for _ in range(3):
        assert server.request("POST", "/v2/models/echo_fp64/infer", body)[0] == 200
    # an answer may be a moment ahead of its count, as in Triton
    deadline = time.monotonic() + 2
    while (after := ask())["inference_count"] - before["inference_count"] < 3:
        assert time.monotonic() < deadline, after
    assert after["name"] == "echo_fp64"
    assert after["version"] == "1"
    assert after["inference_count"] - before["inference_count"] == 3
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 3
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert after["last_inference"] >= before["last_inference"]


def test_statistics_of_all_models(server: Server) -> None:
    names = [each["name"] for each in get(server, "/v2/models/stats")["model_stats"]]
    assert names == sorted(names)
    assert {"simple", "simple_identity", "text_to_image", "echo_bf16"} <= set(names)


@pytest.mark.parametrize("body", [None, b"{}", b'{"ready":true}', b'{"ready":false}'])
def test_repository_index(server: Server, body: bytes | None) -> None:
    status, text = server.request("POST", "/v2/repository/index", body)
    assert status == 200, text
    assert b'{"name":"simple","version":"1","state":"READY"}' in text
    assert [each["name"] for each in json.loads(text)] == sorted(each["name"] for each in json.loads(text))


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v2/models/nope", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/simple/versions/4", 404, "Request for unknown model: 'simple' version 4 is not found"),
        ("GET", "/v2/models/nope/config", 404, "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope/stats", 400, "requested model 'nope' is not available"),
        ("GET", "/v2/models/simple/versions/abc", 404, "Not Found"),
        ("GET", "/v2/models/simple/", 404, "Not Found"),
        ("GET", "/v2/models", 404, "Not Found"),
        ("GET", "/v3", 404, "Not Found"),
        ("POST", "/v2", 405, "Method Not Allowed"),
        ("GET", "/v2/models/simple/infer", 405, "Method Not Allowed"),
        ("GET", "/v2/repository/index", 405, "Method Not Allowed"),
        (
            "POST",
            "/v2/repository/models/simple/load",
            503,
            "explicit model load / unload is not allowed if polling is enabled",
        ),
    ],
)
def test_what_is_not_there(server: Server, method: str, path: str, status: int, error: str) -> None:
    answer = server.request(method, path, b"" if method == "POST" else None)
    assert answer == (status, json.dumps({"error": error}, separators=(",", ":")).encode())
