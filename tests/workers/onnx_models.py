"""Small ONNX graphs."""

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
STRING = TensorProto.STRING
Tensors = dict[str, tuple[int, Sequence[Any] | None]]


def graph(nodes: list[tuple[str, list[str], list[str]]], inputs: Tensors, outputs: Tensors) -> Any:
    """A model of ``(operator, inputs, outputs)`` nodes; tensors are ``name: (element type, dims)``, where a dimension
    that is no number is variable."""
    made = helper.make_graph(
        [helper.make_node(*node) for node in nodes],
        "graph",
        [helper.make_tensor_value_info(name, *described) for name, described in inputs.items()],
        [helper.make_tensor_value_info(name, *described) for name, described in outputs.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def add_sub(rows: Any = "n", columns: Any = "m") -> Any:
    described = (FLOAT, [rows, columns])
    return graph(
        [("Add", ["A", "B"], ["SUM"]), ("Sub", ["A", "B"], ["DIFFERENCE"])],
        {"A": described, "B": described},
        {"SUM": described, "DIFFERENCE": described},
    )


def identity(element_type: int, dims: Sequence[Any] | None) -> Any:
    return graph([("Identity", ["X"], ["Y"])], {"X": (element_type, dims)}, {"Y": (element_type, dims)})
