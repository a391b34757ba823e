"""What the examples of the python_backend repository would download or build with TensorRT, made here instead.

None of it is right: weights are random, pictures are squares. The examples' own code reads it unmodified.
"""

from pathlib import Path

import numpy
import onnx
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

CLASSES = 1000
#: the repository that `torch.hub.load` of the `instance_kind` client names, as it is unpacked
HUB_REPOSITORY = "NVIDIA_DeepLearningExamples_torchhub"
HUB_CODE = """\
import torch

dependencies = ["torch"]


class _Utils:
    def prepare_input_from_uri(self, uri):
        return torch.zeros(1, 3, 224, 224)


def nvidia_convnets_processing_utils(*args, **kwargs):
    return _Utils()
"""


def write_stand_ins(folder: Path) -> None:
    """``folder`` can be torch's home. Beside ``hub`` it holds a picture, and models by their names."""
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    (folder / "hub" / HUB_REPOSITORY).mkdir()
    (folder / "hub" / HUB_REPOSITORY / "hubconf.py").write_text(HUB_CODE)
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    torch.save(
        torchvision.models.resnet50().state_dict(), folder / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    )
    Image.new("RGB", (300, 300), (255, 0, 0)).save(folder / "picture.png")
    onnx.save(classifier(), str(folder / "resnet50_trt.onnx"))


def classifier() -> onnx.ModelProto:
    """Scores from the mean colour: FP32 [batch, 3, height, width] to FP32 [batch, 1000]."""
    weights = numpy.random.default_rng(1).standard_normal((3, CLASSES), dtype=numpy.float32)
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["input"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["output"]),
        ],
        "classifier",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
