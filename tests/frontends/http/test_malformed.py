"""Requests that are wrong, without a server behind: the table of the scenarios, which the real Triton answered."""

import json
import time

import pytest

from tests.frontends.http.support import Frontend, simple_request
from tests.scenarios.malformed_cases import CASES, Case

ANSWER_WITHIN_S = 0.1
TRIES = 3


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_infer(frontend: Frontend, case: Case) -> None:
    seconds = []
    for _ in range(TRIES):
        begin = time.monotonic()
        status, headers, text = frontend.request("POST", case.path, case.body, case.headers)
        seconds.append(time.monotonic() - begin)
        if seconds[-1] < ANSWER_WITHIN_S:
            break
    assert status == case.status, text
    error = json.loads(text)
    assert list(error) == ["error"]
    assert case.text in error["error"]
    assert headers["content-type"] == "application/json"
    assert min(seconds) < ANSWER_WITHIN_S
    assert frontend.infer("simple", simple_request())[0] == 200
