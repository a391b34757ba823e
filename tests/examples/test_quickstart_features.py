"""The quickstart's preprocessing against the package that the model comes from."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy
import onnxruntime
import pytest

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
magika = pytest.importorskip("magika")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"quickstart_{name}", QUICKSTART / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def client() -> ModuleType:
    return load("client")


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = load("build_repository").build_repository(tmp_path_factory.mktemp("repository"))
    return folder


def sample_files(folder: Path) -> Iterator[Path]:
    """Real files of many kinds, and the corner cases of the padding."""
    yield from sorted(Path(__file__).parents[2].glob("*.toml"))
    yield from sorted(QUICKSTART.glob("*.py"))
    yield Path(sys.executable)
    yield Path(numpy.__file__)
    contents = {
        "eight_bytes": b"12345678",
        "between": b"a,b\n1,2\n" * 400,  # longer than 1 KiB, shorter than 4 KiB
        "long": b"x = 1  # a comment\n" * 2000,
        "spaces": b" " * 3000 + b"def f():\n    return 1\n" + b"\n" * 3000,
        "png": bytes.fromhex("89504e470d0a1a0a0000000d49484452000000100000001008060000001ff3ff61") + bytes(500),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name


def test_same_answers_as_the_package(client: ModuleType, repository: Path, tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(repository / "1" / "model.onnx")
    labels = (repository / "labels.txt").read_text().splitlines()
    package = magika.Magika()
    for path in sample_files(tmp_path):
        if path.stat().st_size < client.LEAST_BYTES:
            continue
        tokens = client.extract_features(*client.read_ends(path))
        scores = session.run(["target_label"], {"bytes": tokens[None]})[0][0]
        expected = package.identify_path(path)
        assert labels[scores.argmax()] == str(expected.prediction.dl.label), path
        assert scores.max() == pytest.approx(expected.score, abs=1e-5), path
