"""What a browser asks for on behalf of another site's page must not change this server."""

import pytest

from conch.categories import Category
from frontends.http.cross_origin import is_cross_origin
from frontends.http.routes import ROUTES, resolve
from tests.frontends.http.support import Frontend, simple_request
from tests.frontends.http.test_endpoints import PATHS

#: as browsers send them: to their own machine or with TLS, otherwise, and from a page without an origin
FOREIGN = (
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://other.example"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
    {"Origin": "http://other.example:8000"},
    {"Origin": "null"},
)
CHANGING = [
    path
    for path in PATHS.values()
    if (match := resolve(path.encode())) and b"POST" in match.methods and match.category is not Category.INFERENCE
]


def test_all_that_changes_something_is_tried() -> None:
    for route in ROUTES:
        if b"POST" in route.methods and route.category is not Category.INFERENCE:
            assert any(
                route.pattern.fullmatch(path.encode()) for path in [*CHANGING, "/v2/models/simple/trace/setting"]
            )


@pytest.mark.parametrize("path", CHANGING)
@pytest.mark.parametrize("headers", FOREIGN)
def test_other_sites_pages_change_nothing(frontend: Frontend, path: str, headers: dict[str, str]) -> None:
    status, _, text = frontend.request("POST", path, b"{}", headers)
    assert (status, b"other sites' pages may not do this" in text) == (403, True)
    assert frontend.requester.messages == []


def test_a_large_body_is_refused_before_it_is_read(frontend: Frontend) -> None:
    status, _, _ = frontend.request("POST", "/v2/repository/models/m/load", bytes(100_000), FOREIGN[0])
    assert status == 403


def test_inference_and_reading_are_as_ever(frontend: Frontend) -> None:
    """Whoever lets a browser's page infer has a proxy before this server that says so."""
    for headers in FOREIGN:
        assert frontend.infer("simple", simple_request(), headers)[0] == 200
        assert frontend.request("GET", "/v2/logging", headers=headers)[0] == 200


def test_own_pages_and_programs() -> None:
    assert not is_cross_origin({b"host": b"localhost:8000"})
    assert not is_cross_origin({b"sec-fetch-site": b"same-origin", b"origin": b"http://a", b"host": b"behind-a-proxy"})
    assert not is_cross_origin({b"sec-fetch-site": b"none"})
    assert not is_cross_origin({b"origin": b"http://10.0.0.5:8000", b"host": b"10.0.0.5:8000"})
    assert is_cross_origin({b"origin": b"http://10.0.0.5:3000", b"host": b"10.0.0.5:8000"})
