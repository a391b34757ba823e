from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.frontends.grpc.support import EngineName, Frontend

HAS_NATIVE = find_spec("pygrpc_native") is not None
NEEDS_NATIVE = pytest.mark.skipif(not HAS_NATIVE, reason="pygrpc-native is not installed")


@pytest.fixture(scope="session", autouse=True)
def native_is_warm() -> Iterator[None]:
    """The first engine of a process opens sockets for signals that stay: not a leak of the test that came first."""
    if HAS_NATIVE:
        from pygrpc_native import NativeGrpcFront

        front = NativeGrpcFront("127.0.0.1:0", [])
        front.start()
        front.close()
    yield


@pytest.fixture(scope="module", params=["aio", pytest.param("native", marks=NEEDS_NATIVE)])
def engine(request: pytest.FixtureRequest) -> EngineName:
    """The engines have to do the same."""
    name: EngineName = request.param
    return name


@pytest.fixture(scope="module")
def frontend(engine: EngineName) -> Iterator[Frontend]:
    with Frontend(engine) as running:
        yield running
