"""One stage per test: starting a launcher takes a third of a second."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.harness import Stage


@pytest.fixture
def stage(run_dir: Path) -> Iterator[Stage]:
    stage = Stage(run_dir)
    yield stage
    stage.close()
