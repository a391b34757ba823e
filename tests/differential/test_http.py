"""Every HTTP request gets from Conch the status and the JSON that it gets from Triton."""

import http.client
import json
from collections.abc import Iterable, Sequence
from functools import partial

import pytest

from tests.differential.conftest import Both
from tests.differential.differences import HTTP_ENDPOINTS, HTTP_INFERENCE, TRITON_DIES
from tests.differential.http_cases import LENGTH, HttpCase, endpoint_cases, inference_cases
from tests.differential.outcomes import Comparison, Difference, shown

pytestmark = pytest.mark.timeout(240)

_ANSWER_TIMEOUT_S = 5


def ask(address: str, case: HttpCase) -> str:
    """Status, what the headers say of the body, and the body: JSON without regard to spaces, blobs as they are."""
    connection = http.client.HTTPConnection(address, timeout=_ANSWER_TIMEOUT_S)
    try:
        headers = {"Content-Length": "0"} if case.body is None and case.method == "POST" else {}
        connection.request(case.method, case.path, case.body, {**headers, **dict(case.headers)})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        return f"no answer: {type(error).__name__}"
    finally:
        connection.close()
    length = response.headers.get(LENGTH)
    header, blobs = (body, b"") if length is None else (body[: int(length)], body[int(length) :])
    try:
        text: object = json.loads(header)
    except ValueError:
        text = header.decode(errors="replace")
    tail = f" {blobs.hex()}" if blobs else ""
    return shown(response.status, text) + tail


def compare(both: Both, cases: Iterable[HttpCase], differences: Sequence[Difference]) -> None:
    comparison = Comparison(differences, TRITON_DIES)
    for case in cases:
        comparison.compare(case.name, partial(ask, both.triton.address, case), partial(ask, both.conch.url, case))
        assert both.triton.ready(), f"Triton died of: {case.name}"
    comparison.check()


def test_inference(both: Both) -> None:
    compare(both, inference_cases(), HTTP_INFERENCE)


def test_endpoints(both: Both) -> None:
    compare(both, endpoint_cases(), HTTP_ENDPOINTS)
