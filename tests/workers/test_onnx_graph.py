"""Completion and validation of an ONNX model's configuration, without onnxruntime."""

from typing import Any

import msgspec
import pytest

from conch.model_config import ModelConfig
from workers.backends.base import LoadError
from workers.backends.onnx_graph import Graph, GraphTensor, complete, validate


def graph(inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], **initializers: Any) -> Graph:
    return Graph(
        {name: GraphTensor(name, "FP32", dims) for name, dims in inputs.items()},
        {name: GraphTensor(name, "FP32", dims) for name, dims in outputs.items()},
        {name: GraphTensor(name, "FP32", dims) for name, dims in initializers.items()},
    )


def completed(found: Graph, default: int = 4, **config: Any) -> dict[str, Any]:
    full: dict[str, Any] = {"name": "m", "max_batch_size": 0, "input": [], "output": []} | config
    complete(full, found, default)
    return full


BATCHING = graph({"X": (-1, 3)}, {"Y": (-1,)})


def test_a_model_that_can_batch() -> None:
    assert completed(BATCHING) == {
        "name": "m",
        "max_batch_size": 4,
        "dynamic_batching": {},
        "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": [3]}],
        "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}],
    }


def test_a_given_batch_size_and_scheduler_stay() -> None:
    found = completed(BATCHING, max_batch_size=16, dynamic_batching={"preferred_batch_size": [8]})
    assert (found["max_batch_size"], found["dynamic_batching"]) == (16, {"preferred_batch_size": [8]})
    assert "dynamic_batching" not in completed(BATCHING, sequence_batching={})
    assert "dynamic_batching" not in completed(BATCHING, max_batch_size=1)
    assert completed(BATCHING, default=0)["max_batch_size"] == 0
    assert completed(BATCHING, default=0)["input"][0]["dims"] == [-1, 3]


def test_a_model_that_cannot_batch() -> None:
    fixed = graph({"X": (1, 3)}, {"Y": ()})
    assert completed(fixed)["max_batch_size"] == 0
    assert completed(fixed)["output"] == [{"name": "Y", "data_type": "TYPE_FP32", "dims": [1]}]
    with pytest.raises(LoadError) as raised:
        completed(fixed, max_batch_size=2)
    assert raised.value.message == (
        "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified"
    )


def test_what_is_complete_is_left_alone() -> None:
    given: dict[str, Any] = {"input": [{"name": "X"}], "output": [{"name": "Y"}]}
    assert completed(BATCHING, **given) == {"name": "m", "max_batch_size": 0, **given}
    assert completed(BATCHING, input=[{"name": "X"}])["input"] == [{"name": "X"}]


def config(max_batch_size: int = 0, **tensors: Any) -> ModelConfig:
    full = {"name": "m", "max_batch_size": max_batch_size, "input": [tensor("X", -1, 3)], "output": [tensor("Y", -1)]}
    return msgspec.convert(full | tensors, ModelConfig)


def tensor(name: str, *dims: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": "TYPE_FP32", "dims": list(dims)} | more


def test_configurations_that_fit() -> None:
    validate(config(), BATCHING)
    validate(config(input=[tensor("X", 7, 3)]), BATCHING)
    validate(config(8, input=[tensor("X", 3)], output=[tensor("Y", 1, reshape={"shape": []})]), BATCHING)
    validate(config(input=[tensor("X", 1)], output=[tensor("Y", 1)]), graph({"X": ()}, {"Y": ()}))
    validate(config(input=[tensor("X", 3), tensor("W", 3)]), graph({"X": (3,)}, {"Y": (-1,)}, W=(3,)))
    validate(config(output=[]), BATCHING)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            config(input=[tensor("X", -1, 3), tensor("Z", 1)]),
            "unable to load model 'm', configuration expects 2 inputs, model provides 1",
        ),
        (
            config(input=[tensor("Z", -1, 3)]),
            "unable to load model 'm': unexpected inference input 'Z', allowed inputs are: X",
        ),
        (
            config(output=[tensor("Z", -1)]),
            "unable to load model 'm': unexpected inference output 'Z', allowed outputs are: Y",
        ),
        (
            config(output=[{"name": "Y", "data_type": "TYPE_INT32", "dims": [-1]}]),
            "unable to load model 'm', configuration expects datatype TYPE_INT32 for output 'Y', model provides "
            "TYPE_FP32",
        ),
        (
            config(input=[tensor("X", -1, 4)]),
            "model 'm', tensor 'X': the model expects 2 dimensions (shape [-1,3]) but the model configuration "
            "specifies 2 dimensions (shape [-1,4])",
        ),
        (
            config(8, input=[tensor("X", 4)]),
            "model 'm', tensor 'X': the model expects 2 dimensions (shape [-1,3]) but the model configuration "
            "specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit "
            "tensor shape, making complete shape [-1,4])",
        ),
        (
            config(output=[tensor("Y", 5)]),
            "model 'm', tensor 'Y': the model expects 1 dimensions (shape [-1]) but the model configuration specifies "
            "1 dimensions (shape [5])",
        ),
        (
            config(8, input=[tensor("X", 3, optional=True)]),
            "unable to load model 'm', optional input 'X' is not supported for models that support batching",
        ),
    ],
)
def test_configurations_that_do_not_fit(wrong: ModelConfig, text: str) -> None:
    with pytest.raises(LoadError) as raised:
        validate(wrong, BATCHING)
    assert raised.value.message == text


def test_dimensions_that_cannot_be_a_batch() -> None:
    with pytest.raises(LoadError, match=r"the first dimension must be -1; but shape expected by the model is \[1,3\]"):
        validate(config(8, input=[tensor("X", 3)]), graph({"X": (1, 3)}, {"Y": (-1,)}))
    with pytest.raises(LoadError, match="scalar tensor 'X', should only provide 1"):
        validate(config(input=[tensor("X", 2)]), graph({"X": ()}, {"Y": (-1,)}))
