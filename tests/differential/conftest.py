"""Both servers with the same models, started once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks import real_triton, servers
from tests.scenarios.conftest import scenario_models
from tests.scenarios.harness import Server, serving

__all__ = ["scenario_models"]


class Both(NamedTuple):
    triton: servers.Server
    conch: Server


@pytest.fixture(scope="module")
def both(make_run_dir: Callable[[], Path], request: pytest.FixtureRequest) -> Iterator[Both]:
    if real_triton.installed() is None:
        pytest.skip(f"no Triton to compare with: run scripts/differential, which sets {real_triton.VARIABLE}")
    models: Path = request.getfixturevalue("scenario_models")
    with servers.triton([models]) as reference, serving([models], make_run_dir()) as conch:
        yield Both(reference, conch)
