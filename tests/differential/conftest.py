"""Both servers with the same models, started once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.differential.reference import Triton, environment_folder, running_triton
from tests.scenarios.conftest import scenario_models
from tests.scenarios.harness import Server, serving

__all__ = ["scenario_models"]


class Both(NamedTuple):
    triton: Triton
    conch: Server


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory,
    make_run_dir: Callable[[], Path],
    request: pytest.FixtureRequest,
) -> Iterator[Both]:
    environment_folder()
    models: Path = request.getfixturevalue("scenario_models")
    with running_triton(models, tmp_path_factory.mktemp("triton")) as triton:
        with serving([models], make_run_dir()) as conch:
            yield Both(triton, conch)
