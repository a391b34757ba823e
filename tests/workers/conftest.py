"""Stages: a launcher of its own for a test that is about launchers and brokers, one per module for the others."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workers.harness import Stage


@pytest.fixture(scope="module")
def stage_of_module(make_run_dir: Callable[[], Path]) -> Iterator[Stage]:
    stage = Stage(make_run_dir())
    stage.broker.await_launcher()
    yield stage
    stage.close()


@pytest.fixture
def stage(stage_of_module: Stage) -> Iterator[Stage]:
    """With a requester of the test's own; the workers that the test has started end with it."""
    stage_of_module.enter()
    yield stage_of_module
    stage_of_module.leave()


@pytest.fixture
def own_stage(run_dir: Path) -> Iterator[Stage]:
    stage = Stage(run_dir)
    stage.enter()
    yield stage
    stage.leave(expect_deaths=False)
    stage.close()
