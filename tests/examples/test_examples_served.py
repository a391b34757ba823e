"""The examples as their readers run them: served by ``conch serve``, asked by their own clients."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.examples.test_quickstart_features import QUICKSTART, load
from tests.scenarios.harness import EXAMPLE_MODELS, REPOSITORY_ROOT, Server, serving


@pytest.fixture(scope="module")
def server(make_run_dir: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    quickstart_models = tmp_path_factory.mktemp("quickstart")
    load("build_repository").build_repository(quickstart_models)
    with serving([EXAMPLE_MODELS, quickstart_models], make_run_dir()) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[tritonclient.http.InferenceServerClient]:
    connected = tritonclient.http.InferenceServerClient(server.url)
    yield connected
    connected.close()


def strings(name: str, *texts: bytes) -> tritonclient.http.InferInput:
    tensor = tritonclient.http.InferInput(name, [len(texts)], "BYTES")
    tensor.set_data_from_numpy(numpy.array(texts, dtype=numpy.object_))
    return tensor


def ask_quickstart(server: Server, *files: str) -> str:
    command = [sys.executable, str(QUICKSTART / "client.py"), "--url", server.url, *files]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout


def test_quickstart_with_its_own_files(server: Server) -> None:
    output = ask_quickstart(server)
    best = dict(re.findall(r"^(\S+)\n\s+[\d.]+%\s+(\w+)$", output, flags=re.MULTILINE))
    assert best["pyproject.toml"] == "toml"
    assert best["examples/quickstart/client.py"] == "python"
    assert best["examples/model_repository/text_to_image/1/palette.json"] == "json"
    assert output.count("%") == 3 * len(best)


def test_quickstart_with_given_files(server: Server, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("<!DOCTYPE html><html><head><title>t</title></head><body><p>Hello</p></body></html>")
    (tmp_path / "short").write_text("a")
    files = [str(tmp_path / name) for name in ("page", "short", "missing")]
    output = ask_quickstart(server, *files, *[str(REPOSITORY_ROOT / "pyproject.toml")] * 20)
    assert re.search(r"page\n\s+[\d.]+%\s+html\n", output)
    assert "short: fewer than 8 bytes" in output
    assert "missing: No such file or directory" in output
    assert output.count("pyproject.toml") == 20  # more than one batch


def test_an_onnx_model_is_completed(client: tritonclient.http.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("file_type")
    assert metadata["inputs"] == [{"name": "bytes", "datatype": "INT32", "shape": [-1, 2048]}]
    assert metadata["outputs"] == [{"name": "target_label", "datatype": "FP32", "shape": [-1, 214]}]
    assert metadata["platform"] == "onnxruntime_onnx"


def test_text_to_image(client: tritonclient.http.InferenceServerClient) -> None:
    def draw(prompt: bytes) -> numpy.ndarray:
        answer: numpy.ndarray | None = client.infer("text_to_image", [strings("PROMPT", prompt)]).as_numpy("IMAGE")
        assert answer is not None
        return answer

    picture = draw(b"a horn in the sea")
    assert picture.dtype == numpy.dtype(numpy.uint8)
    assert picture.shape == (4 * 32, 5 * 32, 3)
    numpy.testing.assert_array_equal(draw(b"a horn in the sea"), picture)
    assert draw(b"a").shape == (32, 32, 3)
    with pytest.raises(InferenceServerException, match="the prompt is empty") as raised:
        draw(b"")
    assert raised.value.status() == "400"


def test_simple_identity(client: tritonclient.http.InferenceServerClient) -> None:
    tensor = tritonclient.http.InferInput("INPUT0", [2, 2], "BYTES")
    texts = numpy.array([[b"a", b""], [b"\xff\0", "é".encode()]], dtype=numpy.object_)
    tensor.set_data_from_numpy(texts)
    answer = client.infer("simple_identity", [tensor]).as_numpy("OUTPUT0")
    assert answer is not None
    assert answer.tolist() == texts.tolist()
