"""The generate extension. What is expected is what Triton 2.51 answered to the same requests, but for the texts of our
own limits."""

import gzip
import json
import struct
from typing import Any

import pytest

from conch.errors import Internal, InvalidArgument, NotReady, QueueTimeout
from conch.requester.inference import InferenceResult, OutputTensor
from frontends.http.generate import encode
from tests.frontends.http.support import MAX_INPUT_NBYTES, Frontend
from tests.frontends.http.wire import head, wait_until

SIXTEEN = list(range(16))


def generate(frontend: Frontend, model: str, body: Any, kind: str = "generate") -> tuple[int, str, Any]:
    """Status, content type, and the answer (a list of events for a stream)."""
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    status, headers, text = frontend.request("POST", f"/v2/models/{model}/{kind}", data)
    content_type = headers["content-type"]
    if not content_type.startswith("text/event-stream"):
        return status, content_type, json.loads(text)
    events = text.split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return status, content_type, [json.loads(event[6:]) for event in events]


@pytest.mark.parametrize(
    ("model", "body", "output"),
    [
        ("echo_bytes", {"INPUT0": "hé"}, "hé"),
        ("echo_bytes", {"INPUT0": ["a", "b"]}, ["a", "b"]),
        ("echo_bytes", {"INPUT0": ""}, ""),
        ("echo_bytes", {"INPUT0": []}, []),
        ("echo_bytes", b'{"INPUT0":"\\u00e9"}', "é"),
        ("echo_bytes", b'{"INPUT0":"\\"INPUT\\u0030\\":"}', '"INPUT0":'),
        ("echo_bytes", {"parameters": {"INPUT0": "x", "id": "5"}}, "x"),
        ("echo_int32", {"INPUT0": 5, "x": 1, "y": "s", "z": True, "w": 1.5}, 5),
        ("echo_int32", {"INPUT0": []}, []),
        ("echo_int32", {"INPUT0": [[1], [2]]}, [1, 2]),
        ("echo_uint64", {"INPUT0": [2**64 - 1]}, 2**64 - 1),
        ("echo_bool", {"INPUT0": [True, False]}, [True, False]),
        ("echo_fp32", b'{"INPUT0":[1,2.5,1e39]}', [1.0, 2.5, float("inf")]),
        ("echo_fp64", b'{"INPUT0":NaN}', None),
        ("matrix", {"INPUT0": [1, 2, 3, 4]}, [1.0, 2.0, 3.0, 4.0]),
        ("four", {"INPUT0": [1, 2, 3, 4] * 2}, [1.0, 2.0, 3.0, 4.0] * 2),
        ("one_string", {"INPUT0": "x", "triton_x": 1, "priority": 2, "timeout": 3, "sequence_id": 4}, "x"),
    ],
)
def test_answers(frontend: Frontend, model: str, body: Any, output: Any) -> None:
    status, content_type, answer = generate(frontend, model, body)
    assert (status, content_type) == (200, "application/json")
    if output is None:
        assert answer["OUTPUT0"] != answer["OUTPUT0"]
    else:
        assert answer == {"OUTPUT0": output, "model_name": model, "model_version": "1"}
    kind = "generate_stream"
    status, content_type, events = generate(frontend, model, body, kind)
    assert (status, content_type) == (200, "text/event-stream; charset=utf-8")
    assert len(events) == 1 and str(events[0]) == str(answer)


def test_shape_goes_to_the_innermost_dimension(frontend: Frontend) -> None:
    frontend.requester.submitted.clear()
    generate(frontend, "matrix", {"INPUT0": [1, 2, 3]})
    generate(frontend, "simple", {"INPUT0": SIXTEEN * 2, "INPUT1": SIXTEEN * 2})
    assert [call.inputs[0].shape for call in frontend.requester.submitted] == [(1, 3), (2, 16)]


def test_names_in_order_and_what_the_model_gets(frontend: Frontend) -> None:
    frontend.requester.submitted.clear()
    body = {"id": "7", "INPUT0": [3], "echo": 1.5, "big": 2**63, "timeout": 5, "parameters": {"echo2": "a", "big": 1}}
    path = "/v2/models/echo_int32/versions/1/generate"
    _, _, text = frontend.request("POST", path, json.dumps(body))
    assert text == b'{"OUTPUT0":3,"echo":1.5,"echo2":"a","id":"7","model_name":"echo_int32","model_version":"1"}'
    (call,) = frontend.requester.submitted
    assert call.client_id == "7" and not call.timeout_us
    assert call.parameters == {"id": "7", "echo": 1.5, "big": 1, "timeout": 5, "echo2": "a"}
    assert bytes(call.inputs[0].data) == struct.pack("<i", 3)


SHAPE = "The schema can not convert input 'INPUT0' to tensor with proper shape"
WRONG = "has invalid type. It should be either 'int', 'bool', or 'string'."
EXISTS = "[request id: <id_unknown>] input 'INPUT0' already exists in request"
NOT_TEXT = "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
NOT_SIGNED = "Unable to parse 'data': attempt to access JSON non-signed-integer as signed-integer"
NOT_OBJECT = "Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object"
MISSING = (
    "[request id: <id_unknown>] expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing "
    "required input(s) ['INPUT0','INPUT1']. Please provide all required input(s)."
)


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("model", "body", "status", "text"),
    [
        ("nope", {}, 404, "Request for unknown model: 'nope' is not found"),
        ("simple/versions/3", {}, 404, "Request for unknown model: 'simple' version 3 is not found"),
        ("simple", {}, 400, MISSING),
        ("simple", {"abc": 123}, 400, MISSING),
        ("simple", {"INPUT0": [1, 2]}, 400, SHAPE),
        (
            "simple",
            {"INPUT0": SIXTEEN * 2, "INPUT1": SIXTEEN},
            400,
            "[request id: <id_unknown>] input 'INPUT1' batch size does not match other inputs for 'simple'",
        ),
        (
            "simple",
            {"INPUT0": [], "INPUT1": []},
            400,
            "[request id: <id_unknown>] input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 64, "
            "got 0",
        ),
        ("echo_int32", {"INPUT0": 1.5}, 500, NOT_SIGNED),
        ("echo_int32", {"INPUT0": None}, 500, NOT_SIGNED),
        ("echo_int32", {"INPUT0": {"a": 1}}, 500, NOT_SIGNED),
        (
            "echo_int32",
            {"INPUT0": [[1, 2], [3]]},
            500,
            "Unable to parse 'data': Shape does not match true shape of 'data' field",
        ),
        (
            "echo_bool",
            {"INPUT0": 1},
            500,
            "Unable to parse 'data': attempt to access JSON non-boolean as boolean",
        ),
        ("echo_bytes", {"INPUT0": 5}, 500, NOT_TEXT),
        ("echo_bytes", {"INPUT0": {"USER": "x"}}, 500, NOT_TEXT),
        ("echo_bytes", b'{"INPUT0":"a","INPUT0":"c"}', 400, EXISTS),
        ("echo_bytes", b'{"INPUT0":"a","INPUT\\u0030":"c"}', 400, EXISTS),
        ("echo_bytes", b'{"INPUT0":"\\"\\u0030","INPUT\\u0030" :"c"}', 400, EXISTS),
        (
            "echo_bytes",
            b'{"parameters":{"INPUT0":"a","INPUT\\u0030":"c"}}',
            400,
            f"Converting keyword: 'parameters': {EXISTS}",
        ),
        ("echo_bytes", b'{"INPUT0":5,"INPUT0":"c"}', 500, NOT_TEXT),
        (
            "echo_bytes",
            {"INPUT0": "a", "parameters": {"INPUT0": "x"}},
            400,
            f"Converting keyword: 'parameters': {EXISTS}",
        ),
        ("echo_bytes", {"INPUT0": "a", "p": {"q": 1}}, 400, f"parameter 'p' {WRONG}"),
        ("echo_bytes", {"INPUT0": "a", "p": None}, 400, f"parameter 'p' {WRONG}"),
        ("echo_bytes", {"INPUT0": "a", "parameters": 1}, 500, NOT_OBJECT),
        (
            "echo_bytes",
            {"INPUT0": "a", "parameters": {"n": {"a": 1}}},
            400,
            f"Converting keyword: 'parameters': parameter 'n' {WRONG}",
        ),
        ("echo_bytes", {"id": 7}, 500, "Unable to parse 'id': attempt to access JSON non-string as string"),
        ("echo_bytes", [], 500, "attempt to get members for non-object"),
        ("echo_bytes", b"", 500, "failed to parse the request JSON buffer: The document is empty. at 0"),
        (
            "echo_fp16",
            {"INPUT0": [1]},
            400,
            "receiving FP16 data via JSON is not supported. Please use the binary data format for input INPUT0",
        ),
    ],
)
def test_invalid_requests(frontend: Frontend, kind: str, model: str, body: Any, status: int, text: str) -> None:
    assert generate(frontend, model, body, kind) == (status, "application/json", {"error": text})


def test_limit_on_what_numbers_become(frontend: Frontend) -> None:
    numbers = MAX_INPUT_NBYTES // 8 + 1
    status, _, answer = generate(frontend, "echo_fp64", b'{"INPUT0":[%b]}' % b",".join([b"1"] * numbers))
    assert status == 400
    assert f"'INPUT0' of size {numbers * 8} bytes exceeds the maximum allowed input size of" in answer["error"]


def test_compressed_bodies_are_refused(frontend: Frontend) -> None:
    body = gzip.compress(b'{"INPUT0":"a"}')
    headers = {"Content-Encoding": "gzip"}
    status, _, text = frontend.request("POST", "/v2/models/echo_bytes/generate", body, headers)
    assert (status, text) == (400, b'{"error":"Unsupported content-encoding, only \'identity\' is supported."}')


@pytest.mark.parametrize("error", [Internal("it broke"), QueueTimeout("waited too long"), NotReady("gone")])
def test_failed_responses(frontend: Frontend, error: Any) -> None:
    """The first response decides the status of a stream; the error is an event."""
    frontend.requester.errors["it"] = error
    status, _, answer = generate(frontend, "failing", {"INPUT0": "it"})
    assert (status, answer) == (500 if isinstance(error, Internal) else 503, {"error": error.message})
    again = generate(frontend, "failing", {"INPUT0": "it"}, "generate_stream")
    assert again == (status, "text/event-stream; charset=utf-8", [answer])


def test_names_that_mean_two_things() -> None:
    """The response's own come first, then parameters."""
    outputs = [OutputTensor(name, "INT32", (1,), bytes(4)) for name in ("model_name", "p", "o")]
    result = InferenceResult("m", 2, "", {"p": "x", "model_version": 5}, outputs, None)
    assert encode(result) == b'{"model_name":"m","model_version":"2","o":0,"p":"x"}'


def test_outputs_that_json_cannot_hold() -> None:
    with pytest.raises(InvalidArgument, match="sending FP16 data via JSON is not supported"):
        encode(InferenceResult("m", 1, "", {}, [OutputTensor("o", "FP16", (1,), bytes(2))], None))


def test_large_outputs_are_given_back(frontend: Frontend) -> None:
    numbers = list(range(50_000))
    for kind in ("generate", "generate_stream"):
        answer = generate(frontend, "echo_int32", {"INPUT0": numbers}, kind)[2]
        assert (answer if kind == "generate" else answer[0])["OUTPUT0"] == numbers
    assert frontend.requester.borrowed == frontend.requester.released


@pytest.mark.parametrize("kind", [b"generate", b"generate_stream"])
def test_a_client_that_goes_cancels(frontend: Frontend, kind: bytes) -> None:
    cancelled = frontend.requester.cancelled
    with frontend.connect() as connection:
        connection.sendall(head(b"POST /v2/models/held/%b HTTP/1.1" % kind, b"Content-Length: 12") + b'{"INPUT0":7}')
        wait_until(lambda: bool(frontend.requester.held))
    wait_until(lambda: frontend.requester.cancelled == cancelled + 1)
    frontend.do(frontend.requester.finish_held)
