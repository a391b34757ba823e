"""Servers for the scenarios. Most tests of a module share one; those that break it start their own."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scenarios.harness import EXAMPLE_MODELS, Server, serving
from tests.scenarios.models import (
    ECHO,
    INCREMENT,
    KEEP,
    OBEY,
    write_classifier,
    write_datatype_models,
    write_model,
)

Serve = Callable[..., Server]


@pytest.fixture
def serve(run_dir: Path) -> Iterator[Serve]:
    """``serve(repository, *flags)`` starts the test's own server, stopped and looked over after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda repository, *flags, **variables: stack.enter_context(
            serving([repository], run_dir, *flags, **variables)
        )


def copy_examples(repository: Path, *names: str) -> Path:
    """The named example models in a repository of their own."""
    for name in names:
        shutil.copytree(EXAMPLE_MODELS / name, repository / name)
    return repository


@pytest.fixture
def simple_repository(tmp_path: Path) -> Path:
    return copy_examples(tmp_path / "models", "simple")


@pytest.fixture(scope="module")
def scenario_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that the oracle's answers were taken with."""
    repository = tmp_path_factory.mktemp("scenario") / "models"
    shutil.copytree(EXAMPLE_MODELS, repository)
    write_datatype_models(repository)
    write_model(repository, "obey", OBEY, "STRING", [1])
    write_model(repository, "increment", INCREMENT)
    write_model(repository, "keep", KEEP)
    write_model(repository, "matrix", ECHO, "FP32", [-1, 2])
    write_model(repository, "matrix_var", ECHO, "FP32", [-1, -1])
    write_classifier(repository, "scores", "FP32", 8, ["cat", "dog", "cow"])
    write_classifier(repository, "scores_nobatch", "FP32", 0, ["cat", "dog", "cow", "emu", "fox"])
    write_classifier(repository, "scores_int", "INT32", 0, ["cat"])
    return repository


@pytest.fixture(scope="module")
def server(scenario_models: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    """One server with all of ``scenario_models`` for the tests of a module that leave it as it is."""
    with serving([scenario_models], make_run_dir()) as running:
        yield running
