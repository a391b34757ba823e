from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.frontends.grpc.support import EngineName, Frontend

HAS_NATIVE = find_spec("pygrpc_native") is not None
NEEDS_NATIVE = pytest.mark.skipif(not HAS_NATIVE, reason="pygrpc-native is not installed")


@pytest.fixture(scope="module", params=["aio", pytest.param("native", marks=NEEDS_NATIVE)])
def engine(request: pytest.FixtureRequest) -> EngineName:
    """The engines have to do the same."""
    name: EngineName = request.param
    return name


@pytest.fixture(scope="module")
def frontend(engine: EngineName) -> Iterator[Frontend]:
    with Frontend(engine) as running:
        yield running
