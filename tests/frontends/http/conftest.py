from collections.abc import Iterator

import pytest

from tests.frontends.http.support import Frontend


@pytest.fixture(scope="module")
def frontend() -> Iterator[Frontend]:
    with Frontend() as running:
        yield running
