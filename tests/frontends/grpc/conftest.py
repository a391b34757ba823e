from collections.abc import Iterator

import pytest

from tests.frontends.grpc.support import EngineName, Frontend


@pytest.fixture(scope="module", params=["aio", "http2"])
def engine(request: pytest.FixtureRequest) -> EngineName:
    """The engines have to do the same."""
    name: EngineName = request.param
    return name


@pytest.fixture(scope="module")
def frontend(engine: EngineName) -> Iterator[Frontend]:
    with Frontend(engine) as running:
        yield running
