"""Every route passes the one place that checks restrictions, before anything else happens."""

import socket
from collections.abc import Iterator

import pytest

from conch.categories import Category
from conch.errors import InvalidArgument
from conch.settings import Settings
from frontends.http.application import HttpApplication
from frontends.http.routes import ROUTES
from tests.frontends.http.support import Frontend, StubRequester, read_response, simple_request
from tests.frontends.http.test_endpoints import PATHS

ALL = ",".join(category.value for category in Category)
REFUSAL = b'{"error":"This API is restricted, expecting header \'Admin-Key\'"}'


@pytest.fixture(scope="module")
def restricted() -> Iterator[Frontend]:
    with Frontend(http_restricted_api=(f"{ALL}:Admin-Key=s3cret",)) as running:
        yield running


SAMPLES = [*PATHS.values(), "/v2/models/simple/stats", "/v2/models/simple/trace/setting"]


def test_every_route_has_a_category_and_is_tried() -> None:
    for route in ROUTES:
        assert isinstance(route.category, Category)
        assert any(route.pattern.fullmatch(path.encode()) for path in SAMPLES), route


@pytest.mark.parametrize("path", SAMPLES)
def test_every_route_asks_for_the_header(restricted: Frontend, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        for headers in ({}, {"Admin-Key": "wrong"}, {"Admin-Key": "s3cre"}, {"Other": "s3cret"}, {"Admin-Key": ""}):
            status, _, text = restricted.request(method, path, headers=headers)
            assert (status, text) == (403, REFUSAL)
    status, _, text = restricted.request("DELETE", path, headers={"admin-KEY": "s3cret"})
    assert (status, text) == (405, b'{"error":"Method Not Allowed"}')


def test_the_header_opens_the_api(restricted: Frontend) -> None:
    assert restricted.infer("simple", simple_request(), {"ADMIN-key": "s3cret"})[0] == 200


def test_a_large_body_is_refused_before_it_is_sent(restricted: Frontend) -> None:
    with restricted.connect() as connection:
        connection.sendall(b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 500000\r\n\r\n")
        assert read_response(connection)[::2] == (403, REFUSAL)
    with restricted.connect() as connection:
        connection.sendall(
            b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
        assert read_response(connection)[::2] == (403, REFUSAL)
    with restricted.connect() as connection:
        connection.sendall(b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert read_response(connection)[::2] == (403, REFUSAL)
        connection.shutdown(socket.SHUT_WR)


def test_other_categories_stay_open() -> None:
    with Frontend(http_restricted_api=("model-repository:k=v", "logging,trace:k2=v2")) as frontend:
        assert frontend.infer("simple", simple_request())[0] == 200
        assert frontend.request("GET", "/v2/health/ready")[0] == 200
        assert frontend.request("POST", "/v2/repository/index")[0] == 403
        assert frontend.request("POST", "/v2/repository/index", headers={"k": "v"})[0] == 200
        assert frontend.request("GET", "/v2/logging", headers={"k": "v"})[0] == 403
        assert frontend.request("GET", "/v2/logging", headers={"k2": "v2"})[0] == 200


def test_a_secret_may_have_any_characters() -> None:
    with Frontend(http_restricted_api=("health:k=schlüssel",)) as frontend:
        assert (
            frontend.request("GET", "/v2/health/live", headers={"k": "schlüssel".encode().decode("latin-1")})[0] == 200
        )
        assert frontend.request("GET", "/v2/health/live", headers={"k": "\xff\xfe"})[0] == 403


def test_what_cannot_be_understood_is_refused_at_the_start() -> None:
    with pytest.raises(InvalidArgument, match="unknown restricted api 'x'"):
        HttpApplication(StubRequester(), Settings(http_restricted_api=("x:k=v",)))
    with pytest.raises(InvalidArgument, match="is not a regular expression"):
        HttpApplication(StubRequester(), Settings(http_header_forward_pattern="("))
