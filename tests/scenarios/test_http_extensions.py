"""generate, compression, HTTPS and the OpenAPI document, with a whole server."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http

from tests.certificates import make, needs_openssl
from tests.scenarios.conftest import Serve
from tests.scenarios.harness import Server


def post(server: Server, path: str, body: Any, **headers: str) -> tuple[int, bytes]:
    return server.request("POST", path, json.dumps(body).encode(), headers)


def test_generate(server: Server) -> None:
    path = "/v2/models/text_to_image/generate"
    status, text = post(server, path, {"id": "7", "PROMPT": "a conch"})
    answer = json.loads(text)
    assert status == 200 and list(answer) == sorted(answer)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "text_to_image", "1")
    status, events = post(server, f"{path}_stream", {"id": "7", "PROMPT": "a conch"})
    assert (status, events) == (200, b"data: %b\n\n" % text)


def test_generate_gives_the_model_all_other_members(server: Server) -> None:
    body = {"INPUT0": "parameters", "a": 1, "b": True, "c": "x", "timeout": 3, "parameters": {"d": 1.5}}
    status, text = post(server, "/v2/models/obey/generate", body)
    assert status == 200
    assert json.loads(json.loads(text)["OUTPUT0"]) == {"a": 1, "b": True, "c": "x", "timeout": 3, "d": 1.5}


@pytest.mark.parametrize("order", ["raise", "error INTERNAL"])
def test_generate_of_a_model_that_fails(server: Server, order: str) -> None:
    status, text = post(server, "/v2/models/obey/generate", {"INPUT0": order})
    assert status == 500 and "told to" in json.loads(text)["error"]
    status, events = post(server, "/v2/models/obey/generate_stream", {"INPUT0": order})
    assert status == 500 and "told to" in json.loads(events.removeprefix(b"data: "))["error"]


def test_compressed_both_ways(server: Server) -> None:
    rows = np.arange(300_000, dtype=np.int32)
    put = tritonclient.http.InferInput("INPUT0", [300_000], "INT32").set_data_from_numpy(rows)
    with tritonclient.http.InferenceServerClient(server.url) as client:
        result = client.infer(
            "echo_int32", [put], request_compression_algorithm="gzip", response_compression_algorithm="deflate"
        )
        assert np.array_equal(result.as_numpy("OUTPUT0"), rows)
    body = {"inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [1], "data": [5]}]}
    headers = {"Accept-Encoding": "gzip"}
    status, text = server.request("POST", "/v2/models/echo_int32/infer", json.dumps(body).encode(), headers)
    assert status == 200 and json.loads(gzip.decompress(text))["outputs"][0]["data"] == [5]


def test_examples_of_the_openapi_document_work(server: Server) -> None:
    document = json.loads(server.request("GET", "/v2/docs/openapi.json")[1])
    examples = document["components"]["examples"]
    tried = set()
    for path, entry in document["paths"].items():
        if "{" in path or path.rpartition("/")[2] not in ("infer", "generate", "generate_stream"):
            continue
        media = entry["post"]["requestBody"]["content"]["application/json"]
        if "examples" in media:
            example = examples[media["examples"]["example"]["$ref"].rpartition("/")[2]]["value"]
            status, text = post(server, path, example)
            assert status == 200, (path, text)
            tried.add(path.split("/")[3])
    assert {"simple", "simple_identity", "text_to_image", "matrix", "scores", "echo_bool", "echo_bytes"} <= tried


@needs_openssl
def test_https_by_two_processes(serve: Serve, simple_repository: Path, tmp_path: Path) -> None:
    authority = make(tmp_path, "authority")
    certificate = make(tmp_path, "server", authority)
    server = serve(
        simple_repository,
        "--http-use-ssl=true",
        f"--http-server-cert={certificate.certificate}",
        f"--http-server-key={certificate.key}",
        "--http-process-count=2",
    )
    numbers = np.arange(16, dtype=np.int32).reshape(1, 16)
    inputs = [
        tritonclient.http.InferInput(name, [1, 16], "INT32").set_data_from_numpy(numbers)
        for name in ("INPUT0", "INPUT1")
    ]
    url = f"localhost:{server.http_port}"
    for _ in range(10):
        options = {"ca_certs": authority.certificate}
        with tritonclient.http.InferenceServerClient(url, ssl=True, ssl_options=options) as client:
            assert client.is_server_ready()
            assert np.array_equal(client.infer("simple", inputs).as_numpy("OUTPUT0"), numbers * 2)
    assert len(server.program_pids("http", "http-2")) == 2
