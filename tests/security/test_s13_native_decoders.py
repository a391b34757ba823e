"""S13, native decoders: frameworks, and whatever else turns a client's bytes into images or tensors by code that is
not Python's, run in workers only. A crash in them is a model's, not the server's."""

import re
from pathlib import Path

import pytest

from tests.scenarios.conftest import copy_examples
from tests.scenarios.harness import serving
from tests.test_imports import ROOT, imports

DECODERS = {
    *("PIL", "cv2", "imageio", "skimage", "av", "torch", "torchvision", "torchaudio", "onnx", "onnxruntime"),
    *("tensorflow", "tensorrt", "nvidia", "cupy", "numba", "scipy", "pandas", "sklearn", "h5py", "lxml"),
}
#: libraries of theirs, as they are called in /proc/PID/maps
LIBRARIES = re.compile(r"onnxruntime|libtorch|libc10|_imaging|cv2|opencv|libjpeg|libpng|libwebp|libav(codec|format)")
ENTRIES = ("broker", "frontends/http", "frontends/grpc", "frontends/metrics", "conch/cli")
#: what a model needs, so that the workers can be told from the others
MODEL = """
import onnxruntime
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", r.inputs()[0].as_numpy())]) for r in requests]
"""


def closure(entry: Path) -> dict[str, set[str]]:
    """Every module outside of ours that the files below ``entry``, and ours that they import, import: who does."""
    waiting = sorted(entry.rglob("*.py"))
    seen, found = set(waiting), dict[str, set[str]]()
    while waiting:
        path = waiting.pop()
        for _, name in imports(path):
            place = ROOT.joinpath(*name.split("."))
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file() and file not in seen:
                    seen.add(file)
                    waiting.append(file)
            found.setdefault(name.split(".")[0], set()).add(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("entry", ENTRIES)
def test_no_process_but_a_worker_imports_one(entry: str) -> None:
    found = closure(ROOT / entry)
    assert "msgspec" in found, "nothing was read"
    assert {name: files for name, files in found.items() if name in DECODERS} == {}
    assert "workers" not in found


@pytest.mark.timeout(60)
def test_no_process_but_a_worker_has_one_loaded(tmp_path: Path, run_dir: Path) -> None:
    """In a server whose model needs onnxruntime."""
    repository = copy_examples(tmp_path / "models", "simple")
    folder = repository / "decodes"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(MODEL)
    (folder / "config.pbtxt").write_text(
        'backend: "python" input { name: "INPUT0" data_type: TYPE_INT32 dims: [-1] } '
        'output { name: "OUTPUT0" data_type: TYPE_INT32 dims: [-1] }'
    )
    with serving([repository], run_dir) as server:
        workers = server.worker_pids("decodes")
        assert LIBRARIES.search(Path(f"/proc/{workers[0]}/maps").read_text()), "the model has it"
        others = [pid for pid in server.pids() if pid not in workers]
        assert len(others) >= 6
        for pid in others:
            found = LIBRARIES.search(Path(f"/proc/{pid}/maps").read_text())
            assert found is None, (pid, found)
