import json
from collections.abc import Iterator

import pytest

from tests.frontends.http.support import Frontend, read_response, simple_request


@pytest.fixture(scope="module")
def forwarding() -> Iterator[Frontend]:
    with Frontend(http_header_forward_pattern="^(PREFIX_|(?:sequence_id|triton_.*)$)") as running:
        yield running


def test_headers_become_parameters_as_the_client_spelled_them(forwarding: Frontend) -> None:
    body = simple_request(parameters={"a": 1, "PREFIX_Own": 2})
    headers = {"PREFIX_My-Header": "my value", "prefix_no": "x", "PREFIX_Own": "3"}
    assert forwarding.infer("simple", body, headers)[0] == 200
    call = forwarding.requester.submitted[-1]
    assert call.parameters == {"a": 1, "PREFIX_My-Header": "my value", "PREFIX_Own": "3"}


def test_large_and_chunked_bodies(forwarding: Frontend) -> None:
    body = json.dumps(simple_request(id="x" * 100_000)).encode()
    assert forwarding.infer("simple", body, {"PREFIX_A": "1"})[0] == 200
    assert forwarding.requester.submitted[-1].parameters == {"PREFIX_A": "1"}
    small = json.dumps(simple_request()).encode()
    with forwarding.connect() as connection:
        for value in (b"1", b"2"):
            connection.sendall(
                b"POST /v2/models/simple/infer HTTP/1.1\r\nPREFIX_B: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"%x\r\n%b\r\n0\r\nPREFIX_Trailer: x\r\n\r\n" % (value, len(small), small)
            )
            assert read_response(connection)[0] == 200
            assert forwarding.requester.submitted[-1].parameters == {"PREFIX_B": value.decode()}


@pytest.mark.parametrize("name", ["sequence_id", "triton_x"])
def test_reserved_names(forwarding: Frontend, name: str) -> None:
    answer = forwarding.infer("simple", simple_request(), {name: "1"})
    assert answer == (400, {"error": f"Header '{name}' is reserved for Triton usage and cannot be forwarded."})


def test_nothing_is_forwarded_by_default(frontend: Frontend) -> None:
    assert frontend.infer("simple", simple_request(), {"PREFIX_A": "1"})[0] == 200
    assert frontend.requester.submitted[-1].parameters == {}
