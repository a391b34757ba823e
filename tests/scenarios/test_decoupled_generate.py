"""generate and generate_stream with models that answer any number of times."""

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.decoupled import write_decoupled_models
from tests.scenarios.harness import Server, serving

NOT_ONE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("generate") / "models"
    write_decoupled_models(repository)
    with serving([repository], make_run_dir()) as running:
        yield running


def generate(server: Server, order: str, kind: str = "generate_stream", **more: Any) -> tuple[int, bytes]:
    body = json.dumps({"IN": order, **more}).encode()
    return server.request("POST", f"/v2/models/tell/{kind}", body, timeout_s=20)


def events(text: bytes) -> list[Any]:
    parts = text.split(b"\n\n")
    assert parts.pop() == b""
    return [json.loads(part.removeprefix(b"data: ")) for part in parts]


@pytest.mark.parametrize(
    ("order", "texts"),
    [
        ("r a,r b,f", ["a", "b"]),
        ("r a,rf b", ["a", "b"]),
        ("f", []),
        ("r a,e broken,r b,f", ["a", None, "b"]),
    ],
)
def test_events(server: Server, order: str, texts: list[str | None]) -> None:
    status, text = generate(server, order, id="7")
    named = {"id": "7", "model_name": "tell", "model_version": "1"}
    assert status == 200
    assert events(text) == [{"error": "broken"} if text is None else {"OUT": text, **named} for text in texts]


def test_the_first_response_decides_the_status(server: Server) -> None:
    status, text = generate(server, "e broken,r b,f")
    assert (status, events(text)[0]) == (503, {"error": "broken"})


@pytest.mark.parametrize(("order", "one"), [("rf a", True), ("r a,f", True), ("f", False), ("r a,r b,f", False)])
def test_generate_is_one_response(server: Server, order: str, one: bool) -> None:
    status, text = generate(server, order, "generate")
    if one:
        assert (status, json.loads(text)) == (200, {"OUT": "a", "model_name": "tell", "model_version": "1"})
    else:
        assert (status, json.loads(text)) == (500, {"error": NOT_ONE})


def test_many_events_in_order(server: Server) -> None:
    status, text = generate(server, "n 2000,f")
    assert status == 200
    assert [event["OUT"] for event in events(text)] == [str(i) for i in range(2000)]


def state(server: Server) -> tuple[int, int]:
    """How many requests the model is working on, and how many large responses it has sent in all."""
    running, sent = events(generate(server, "state")[1])[0]["OUT"].split()
    return int(running), int(sent)


@pytest.mark.timeout(60)
def test_a_client_that_does_not_read_and_goes(server: Server) -> None:
    """The model waits for it, other requests do not; when it goes, the model sees that it is cancelled."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20)
    connection.request("POST", "/v2/models/tell/generate_stream", json.dumps({"IN": "big 100000"}))
    response = connection.getresponse()
    assert response.readline().startswith(b"data: ")
    before = -1
    while before != state(server)[1]:
        before = state(server)[1]
        assert generate(server, "n 200,f")[0] == 200
    assert state(server)[0] == 1
    response.close()
    connection.close()
    while state(server)[0]:
        pass


def test_what_the_documentation_offers(server: Server) -> None:
    document = json.loads(server.request("GET", "/v2/docs/openapi.json")[1])
    paths = {path for path in document["paths"] if path.startswith("/v2/models/tell/")}
    base = "/v2/models/tell"
    kinds = ("generate", "generate_stream")
    assert paths == {f"{base}{version}/{kind}" for version in ("", "/versions/1") for kind in kinds}
