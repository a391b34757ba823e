"""Builds a model repository with a file-type classifier: Magika's ONNX model, out of the ``magika`` package.

    python build_repository.py DIRECTORY

writes

    DIRECTORY/
    └── file_type/
        ├── config.pbtxt     what Conch cannot read from the ONNX file: the labels, and how large a batch may be
        ├── labels.txt       one label per class, in the order of the model's output
        └── 1/
            └── model.onnx
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

MODEL_NAME = "file_type"

# Inputs are not mentioned: Conch completes them from the ONNX file.
CONFIG = """\
backend: "onnxruntime"
max_batch_size: 16
output [
  {
    name: "target_label"
    data_type: TYPE_FP32
    dims: [ %d ]
    label_filename: "labels.txt"
  }
]
dynamic_batching { }
"""


def find_model() -> Path:
    """The folder of the newest model inside the installed ``magika`` package, which is not imported."""
    package = importlib.util.find_spec("magika")
    if package is None or package.origin is None:
        raise SystemExit("The weights come in the package 'magika': pip install magika")
    folders = sorted((Path(package.origin).parent / "models").glob("standard_*"))
    if not folders:
        raise SystemExit(f"No model found in {package.origin}: this version of magika keeps it elsewhere")
    return folders[-1]


def build_repository(repository: Path) -> Path:
    """Write the model's folder into ``repository`` and return it. An earlier one is replaced."""
    source = find_model()
    labels = json.loads((source / "config.min.json").read_text())["target_labels_space"]
    folder = repository / MODEL_NAME
    version_folder = folder / "1"
    version_folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "model.onnx", version_folder / "model.onnx")
    (folder / "labels.txt").write_text("\n".join(labels) + "\n")
    (folder / "config.pbtxt").write_text(CONFIG % len(labels))
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: build_repository.py DIRECTORY")
    print(build_repository(Path(sys.argv[1])))
