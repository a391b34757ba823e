"""Log and trace settings over HTTP. What the real Triton answers was asked of it."""

import json
from typing import Any

import pytest

from conch.errors import InvalidArgument
from conch.messages import LogSettings, ServerSettings, TraceSettings, UpdateLogSettings, UpdateTraceSettings
from tests.frontends.http.support import Frontend

LOGGING = "/v2/logging"
TRACE = "/v2/trace/setting"
NOT_STRING = "attempt to access JSON non-string as string"
NOT_BOOLEAN = "attempt to access JSON non-boolean as boolean"
NOT_UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"


@pytest.fixture(autouse=True)
def no_messages(frontend: Frontend) -> None:
    frontend.requester.messages.clear()


def ask(frontend: Frontend, path: str, body: Any = None) -> tuple[int, bytes]:
    if body is None:
        status, _, text = frontend.request("GET", path)
    else:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, text = frontend.request("POST", path, data)
    return status, text


def error(status: int, text: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": text}, separators=(",", ":")).encode()


def test_the_current_log_settings(frontend: Frontend) -> None:
    frontend.requester.server_settings = ServerSettings(1, LogSettings(warning=False, verbose_level=2), {})
    assert ask(frontend, LOGGING) == (
        200,
        b'{"log_file":"","log_info":true,"log_warning":false,"log_error":true,"log_verbose_level":2,'
        b'"log_format":"default"}',
    )


def test_changing_log_settings(frontend: Frontend) -> None:
    frontend.requester.answers += [LogSettings(info=False, format="ISO8601"), LogSettings(), LogSettings()]
    everything = {
        "log_file": None,
        "log_info": False,
        "log_warning": True,
        "log_error": None,
        "log_verbose_level": 2**40,
        "log_format": "ISO8601",
        "more": 1,
    }
    assert ask(frontend, LOGGING, everything) == (
        200,
        b'{"log_file":"","log_info":false,"log_warning":true,"log_error":true,"log_verbose_level":0,'
        b'"log_format":"ISO8601"}',
    )
    assert ask(frontend, LOGGING, {})[0] == 200
    assert ask(frontend, LOGGING, b"[]")[0] == 200
    assert frontend.requester.messages == [
        UpdateLogSettings(0, {"info": False, "warning": True, "verbose_level": 2**31 - 1, "format": "ISO8601"}),
        UpdateLogSettings(0, {}),
        UpdateLogSettings(0, {}),
    ]


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"", error(500, "failed to parse the request JSON buffer: The document is empty. at 0")),
        *(
            (
                {"log_file": file, "log_info": 5},
                error(501, "log file location can not be updated through network protocol"),
            )
            for file in ("x", "", 5)
        ),
        ({"log_info": "true", "log_format": "x"}, error(500, NOT_BOOLEAN)),
        ({"log_warning": 0}, error(500, NOT_BOOLEAN)),
        ({"log_error": "x"}, error(500, NOT_BOOLEAN)),
        *(({"log_verbose_level": bad}, error(500, NOT_UNSIGNED)) for bad in (-1, "1", 1.5, True, 2**64)),
        ({"log_format": 5}, error(500, NOT_STRING)),
        ({"log_format": "iso8601"}, error(503, "invalid argument for --log_format, got: iso8601")),
    ],
)
def test_bad_log_settings(frontend: Frontend, body: Any, answer: tuple[int, bytes]) -> None:
    assert ask(frontend, LOGGING, body) == answer
    assert not frontend.requester.messages


def test_the_current_trace_settings(frontend: Frontend) -> None:
    own = TraceSettings(level=("TIMESTAMPS", "TENSORS"), rate=5, count=7, log_frequency=3, file="x.log")
    frontend.requester.server_settings = ServerSettings(1, LogSettings(), {"": TraceSettings(), "simple": own})
    default = (
        b'{"trace_level":["OFF"],"trace_rate":"1000","trace_count":"-1","log_frequency":"0","trace_file":"",'
        b'"trace_mode":"triton"}'
    )
    assert ask(frontend, TRACE) == (200, default)
    assert ask(frontend, "/v2/models/four/trace/setting") == (200, default)
    assert ask(frontend, "/v2/models/simple/trace/setting") == (
        200,
        b'{"trace_level":["TIMESTAMPS","TENSORS"],"trace_rate":"5","trace_count":"7","log_frequency":"3",'
        b'"trace_file":"x.log","trace_mode":"triton"}',
    )
    frontend.requester.server_settings = ServerSettings(1, LogSettings(), {"": TraceSettings(mode="opentelemetry")})
    assert ask(frontend, TRACE) == (
        200,
        b'{"trace_level":["OFF"],"trace_rate":"1000","trace_count":"-1","trace_mode":"opentelemetry"}',
    )
    assert frontend.request("GET", "/v2/models/simple/versions/1/trace/setting")[0] == 404


def test_changing_trace_settings(frontend: Frontend) -> None:
    frontend.requester.answers += [TraceSettings(rate=5), TraceSettings()]
    body = {"trace_level": ["TIMESTAMPS"], "trace_rate": "5", "trace_count": None, "log_frequency": "x", "more": 1}
    status, text = ask(frontend, "/v2/models/simple/trace/setting", body)
    assert status == 200 and json.loads(text)["trace_rate"] == "5"
    assert ask(frontend, TRACE, {})[0] == 200
    assert frontend.requester.messages == [
        UpdateTraceSettings(
            0, "simple", {"level": ("TIMESTAMPS",), "rate": ("5",), "count": None, "log_frequency": ("x",)}
        ),
        UpdateTraceSettings(0, "", {}),
    ]
    frontend.requester.answers.append(InvalidArgument("Unable to parse 'trace_rate', got: x"))
    assert ask(frontend, TRACE, {"trace_rate": "x"}) == error(400, "Unable to parse 'trace_rate', got: x")


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"{", error(500, "failed to parse the request JSON buffer: Missing a name for object member. at 1")),
        *(
            ({"trace_file": file}, error(501, "trace file location can not be updated through network protocol"))
            for file in ("x", None)
        ),
        ({"trace_level": "OFF"}, error(500, "attempt to access JSON non-array as array")),
        ({"trace_level": [5]}, error(500, NOT_STRING)),
        *(({name: 5}, error(500, NOT_STRING)) for name in ("trace_rate", "trace_count", "log_frequency")),
    ],
)
def test_bad_trace_settings(frontend: Frontend, body: Any, answer: tuple[int, bytes]) -> None:
    assert ask(frontend, TRACE, body) == answer
    assert not frontend.requester.messages


def test_models_that_are_not_there(frontend: Frontend) -> None:
    for body in (None, b"{"):
        answer = ask(frontend, "/v2/models/nope/trace/setting", body)
        assert answer == error(400, "Request for unknown model : nope")
