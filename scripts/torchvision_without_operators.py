"""Lets torchvision be imported where its compiled operators cannot: built for CUDA, beside a PyTorch for the CPU.

Copied into the environment of the examples by `scripts/python-backend-examples`, which need none of the operators.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[object] = []


class _Declaring(importlib.abc.MetaPathFinder):
    """Declares, before torchvision is imported, the operators that it must find."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                library.define(operator + SIGNATURE)
            _kept.append(library)
        return None


sys.meta_path.insert(0, _Declaring())
