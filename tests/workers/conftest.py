"""Stages: one per test where the launcher is what is tested, one per module where only a worker is."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workers.harness import Stage


@pytest.fixture
def stage(run_dir: Path) -> Iterator[Stage]:
    stage = Stage(run_dir)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def stage_of_module(make_run_dir: Callable[[], Path]) -> Iterator[Stage]:
    stage = Stage(make_run_dir())
    yield stage
    stage.close()
