"""Servers to be fuzzed: small arenas, so that what is not freed is missed soon."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest

from conch.settings import Settings
from tests.scenarios.conftest import copy_examples
from tests.scenarios.fuzz.watch import ARENA_NBYTES, Watch
from tests.scenarios.harness import serving
from tests.scenarios.models import ECHO, write_classifier, write_model

FLAGS = (
    *("--model-control-mode=explicit", "--load-model=*", "--http-header-forward-pattern=x-.*"),
    *(f"--frontend-arena-nbytes={ARENA_NBYTES}", f"--worker-arena-nbytes={ARENA_NBYTES}"),
)
ENGINES = sorted({*get_args(Settings.__annotations__["grpc_engine"])} - {"auto"})


@pytest.fixture(scope="session")
def fuzzed_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``other`` is there to be loaded and unloaded."""
    repository = copy_examples(tmp_path_factory.mktemp("fuzz") / "models", "simple")
    for name, datatype in (("echo_int32", "INT32"), ("echo_bytes", "STRING"), ("echo_fp32", "FP32")):
        write_model(repository, name, ECHO, datatype)
    write_model(repository, "matrix", ECHO, "FP32", [-1, 2])
    write_model(repository, "other", ECHO)
    write_classifier(repository, "scores", "FP32", 8, ["cat", "dog", "cow"])
    return repository


@contextlib.contextmanager
def watching(models: Path, run_dir: Path, engine: str = "auto") -> Iterator[Watch]:
    with (
        serving([models], run_dir, *FLAGS, f"--grpc-engine={engine}") as running,
        contextlib.closing(Watch(running)) as watch,
    ):
        watch.begin()
        yield watch


@pytest.fixture(scope="module")
def watch(fuzzed_models: Path, make_run_dir: Callable[[], Path]) -> Iterator[Watch]:
    with watching(fuzzed_models, make_run_dir()) as found:
        yield found


@pytest.fixture(scope="module", params=ENGINES)
def watch_grpc(
    fuzzed_models: Path, make_run_dir: Callable[[], Path], request: pytest.FixtureRequest
) -> Iterator[Watch]:
    """One server for each gRPC engine."""
    with watching(fuzzed_models, make_run_dir(), request.param) as found:
        yield found
