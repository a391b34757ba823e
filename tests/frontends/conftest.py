"""What the frontends' tests share."""

import asyncio
from collections.abc import Iterator

import pytest
import uvloop

from tests.certificates import Files


@pytest.fixture(scope="session", autouse=True)
def uvloop_is_warm() -> Iterator[None]:
    """The first uvloop of a process opens a pipe for signals that stays: not a leak of the test that came first."""
    uvloop.run(asyncio.sleep(0))
    yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))
