"""The OpenAPI document and the page that is made from it."""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import quote

import pytest

from conch.messages import ModelEntry
from frontends.http.routes import ROUTES, resolve
from tests.frontends.http.support import Frontend, config, table

HOSTILE = '</script><img src=x onerror="alert(1)">'


def document(frontend: Frontend) -> dict[str, Any]:
    status, headers, text = frontend.request("GET", "/v2/docs/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = json.loads(text)
    return found


def resolved(found: dict[str, Any], part: dict[str, Any]) -> Any:
    target: Any = found
    for key in part["$ref"].removeprefix("#/").split("/"):
        target = target[key]
    return target


def references(part: Any) -> list[dict[str, Any]]:
    if isinstance(part, dict):
        return [part] * ("$ref" in part) + [found for value in part.values() for found in references(value)]
    return [found for value in part for found in references(value)] if isinstance(part, list) else []


def test_document(frontend: Frontend) -> None:
    """All references lead somewhere; keys are ones that OpenAPI allows; operations have a known tag."""
    found = document(frontend)
    assert found["openapi"] == "3.1.0"
    assert len(references(found)) > 100
    for reference in references(found):
        resolved(found, reference)
    for part in found["components"].values():
        assert all(re.fullmatch(r"[a-zA-Z0-9._-]+", key) for key in part)
    tags = {tag["name"] for tag in found["tags"]}
    for path, entry in found["paths"].items():
        names = {parameter["name"] for parameter in entry.get("parameters", ())}
        assert names == set(re.findall(r"\{([^}]*)\}", path))
        for method in entry.keys() - {"parameters"}:
            assert set(entry[method]["tags"]) <= tags


def test_every_endpoint_is_in_it(frontend: Frontend) -> None:
    """And what is in it is there, with that method."""
    described = set()
    for path, entry in document(frontend)["paths"].items():
        for method in entry.keys() - {"parameters"}:
            match = resolve(re.sub(r"\{[^}]*\}", "1", path).encode())
            assert match is not None and method.upper().encode() in match.methods
            described.add((match.endpoint, method.upper().encode()))
    every = {(route.endpoint, method) for route in ROUTES for method in route.methods}
    missing = {endpoint.name for endpoint, _ in every - described}
    assert missing == {"DOCS", "OPENAPI"}


def model_operations(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        path: entry["post"]
        for path, entry in found["paths"].items()
        if path.rpartition("/")[2] in ("infer", "generate", "generate_stream")
    }


def test_examples_work(frontend: Frontend) -> None:
    found = document(frontend)
    tried = 0
    for path, operation in model_operations(found).items():
        media = operation["requestBody"]["content"]["application/json"]
        if "examples" not in media or re.search("/(held|failing|stream|count)/", path):
            continue
        example = resolved(found, media["examples"]["example"])["value"]
        status, _, text = frontend.request("POST", path, json.dumps(example))
        assert status == 200, (path, text)
        tried += 1
    assert tried > 60


def test_what_has_no_example_and_what_is_left_out(frontend: Frontend) -> None:
    """JSON cannot hold FP16; decoupled models have no ``infer``."""
    operations = model_operations(document(frontend))
    assert "examples" not in operations["/v2/models/echo_fp16/infer"]["requestBody"]["content"]["application/json"]
    assert "/v2/models/four/versions/1/generate_stream" in operations
    assert "/v2/models/a%20b%2Bc.d/infer" in operations
    assert {path for path in operations if path.startswith("/v2/models/stream/g")} == {
        "/v2/models/stream/generate",
        "/v2/models/stream/generate_stream",
    }
    assert "/v2/models/stream/infer" not in operations and "/v2/models/stream/versions/1/infer" not in operations


def test_schema_of_a_model(frontend: Frontend) -> None:
    found = document(frontend)
    media = model_operations(found)["/v2/models/simple/infer"]["requestBody"]["content"]["application/json"]
    inputs = resolved(found, media["schema"])["properties"]["inputs"]
    assert (inputs["minItems"], inputs["maxItems"]) == (2, 2)
    first = inputs["items"]["oneOf"][0]
    assert first["properties"]["name"] == {"const": "INPUT0"}
    assert first["properties"]["datatype"] == {"const": "INT32"}
    shape = first["properties"]["shape"]
    assert shape["prefixItems"] == [{"type": "integer", "minimum": 1, "maximum": 8}, {"const": 16}]
    assert {"data", "parameters"} == {name for way in first["oneOf"] for name in way["properties"]}
    example = resolved(found, media["examples"]["example"])["value"]
    assert example["inputs"][0]["shape"] == [1, 16]


def test_page(frontend: Frontend) -> None:
    """Nothing comes from elsewhere, and nothing that is not written in the page runs."""
    status, headers, page = frontend.request("GET", "/v2/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["x-content-type-options"] == "nosniff"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for kind in ("script", "style"):
        (text,) = re.findall(rf"<{kind}>(.*?)</{kind}>".encode(), page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(
        rb"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(| on[a-z]+=| style=", page
    )


def test_changes_with_the_models() -> None:
    """Also to one whose name would be markup."""
    with Frontend() as frontend:
        first = document(frontend)
        assert document(frontend) == first
        text = json.dumps(config(HOSTILE, "INT32", [-1]))
        entry = ModelEntry(HOSTILE, 3, "READY", "", True, text)
        frontend.do(lambda: frontend.requester.models.update(table(extra=(entry,))))
        path = f"/v2/models/{quote(HOSTILE, safe='')}/versions/3/infer"
        assert path in document(frontend)["paths"] and path not in first["paths"]
        assert HOSTILE.encode() not in frontend.request("GET", "/v2/docs")[2]


def test_many_models_of_images() -> None:
    """A few have examples; the document of hundreds would hold everybody up while it is made."""
    with Frontend() as frontend:
        texts = {f"image{i}": json.dumps(config(f"image{i}", "FP32", [3, 224, 224])) for i in range(9)}
        extra = tuple(ModelEntry(name, 1, "READY", "", True, text) for name, text in texts.items())
        frontend.do(lambda: frontend.requester.models.update(table(extra=extra)))
        found = document(frontend)
        shown = [name for name in found["components"]["examples"] if name.startswith("image") and "infer" in name]
        assert len(shown) == 3
        assert all(f"/v2/models/{name}/infer" in found["paths"] for name in texts)


@pytest.mark.parametrize("path", ["/v2/docs", "/v2/docs/openapi.json"])
def test_they_are_metadata(path: str) -> None:
    with Frontend(http_restricted_api=("metadata:key=value",)) as frontend:
        assert frontend.request("GET", path)[0] == 403
        assert frontend.request("GET", path, headers={"key": "value"})[0] == 200
