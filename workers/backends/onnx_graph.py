"""What an ONNX graph says about its inputs and outputs, and how a model's configuration follows from or must fit it.

The rules and texts are those of Triton's onnxruntime backend.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from conch.datatypes import to_config_type
from conch.model_config import ModelConfig, ModelInput, ModelOutput
from workers.backends.base import LoadError

DEFAULT_MAX_BATCH_SIZE = 4

#: onnxruntime's names of tensor types -> protocol names
DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
    "tensor(bfloat16)": "BF16",
}


class GraphTensor(NamedTuple):
    """``dims``: -1 is variable; empty for a scalar."""

    name: str
    datatype: str
    dims: tuple[int, ...]


class Graph(NamedTuple):
    """``initializers`` are inputs with a default, which need not be given."""

    inputs: dict[str, GraphTensor]
    outputs: dict[str, GraphTensor]
    initializers: dict[str, GraphTensor]


def graph_of(session: Any, model: str) -> Graph:
    """Raises ``LoadError`` for an input or output that is no tensor."""
    return Graph(
        _tensors(session.get_inputs(), model),
        _tensors(session.get_outputs(), model),
        _tensors(session.get_overridable_initializers(), model),
    )


def _tensors(nodes: Iterable[Any], model: str) -> dict[str, GraphTensor]:
    found = {}
    for node in nodes:
        datatype = DATATYPES.get(node.type)
        if datatype is None:
            raise LoadError(
                f"unable to load model '{model}': Unsupported ONNX Type '{node.type}' for I/O '{node.name}', expected "
                "'ONNX_TYPE_TENSOR'"
            )
        dims = tuple([dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape])
        found[node.name] = GraphTensor(node.name, datatype, dims)
    return found


# ------------------------------------------------------------------------------------------------------- completion


def complete(config: dict[str, Any], graph: Graph, default_max_batch_size: int) -> None:
    """Fills in inputs, outputs and batching, in place, if inputs or outputs are missing. Raises ``LoadError``."""
    needs_inputs = not (config.get("input") or config.get("batch_input"))
    needs_outputs = not config.get("output")
    if not (needs_inputs or needs_outputs):
        return
    _complete_batching(config, graph, default_max_batch_size)
    batched = config["max_batch_size"] > 0
    if needs_inputs:
        config["input"] = [_described(tensor, batched) for tensor in graph.inputs.values()]
    if needs_outputs:
        config["output"] = [_described(tensor, batched) for tensor in graph.outputs.values()]


def _complete_batching(config: dict[str, Any], graph: Graph, default_max_batch_size: int) -> None:
    tensors = [*graph.inputs.values(), *graph.outputs.values()]
    max_batch_size = config.get("max_batch_size", 0)
    if not all(tensor.dims[:1] == (-1,) for tensor in tensors):
        if max_batch_size:
            raise LoadError(
                f"autofill failed for model '{config['name']}': model does not support batching while non-zero "
                "max_batch_size is specified"
            )
        config["max_batch_size"] = 0
        return
    config["max_batch_size"] = max_batch_size or max(default_max_batch_size, 0)
    if config["max_batch_size"] > 1 and not ("sequence_batching" in config or "dynamic_batching" in config):
        config["dynamic_batching"] = {}


def _described(tensor: GraphTensor, batched: bool) -> dict[str, Any]:
    dims = list(tensor.dims[batched:])
    described: dict[str, Any] = {"name": tensor.name, "data_type": to_config_type(tensor.datatype), "dims": dims or [1]}
    if batched and not dims:
        described["reshape"] = {"shape": []}
    return described


# ------------------------------------------------------------------------------------------------------- validation


def validate(config: ModelConfig, graph: Graph) -> None:
    """Raises ``LoadError`` where the configuration does not fit the graph."""
    allowed = {**graph.inputs, **graph.initializers}
    given = [each for each in config.input if each.name not in graph.initializers]
    if len(given) != len(graph.inputs):
        raise LoadError(
            f"unable to load model '{config.name}', configuration expects {len(given)} inputs, model provides "
            f"{len(graph.inputs)}"
        )
    for each in config.input:
        if each.optional and config.max_batch_size:
            raise LoadError(
                f"unable to load model '{config.name}', optional input '{each.name}' is not supported for models that "
                "support batching"
            )
        _check(config, "input", each, allowed, exact=False)
    for output in config.output:
        _check(config, "output", output, graph.outputs, exact=True)


def _check(
    config: ModelConfig, kind: str, configured: ModelInput | ModelOutput, graph: dict[str, GraphTensor], exact: bool
) -> None:
    name = configured.name
    tensor = graph.get(name)
    if tensor is None:
        raise LoadError(
            f"unable to load model '{config.name}': unexpected inference {kind} '{name}', allowed {kind}s are: "
            f"{', '.join(sorted(graph))}"
        )
    if configured.datatype != tensor.datatype:
        raise LoadError(
            f"unable to load model '{config.name}', configuration expects datatype {configured.data_type} for {kind} "
            f"'{name}', model provides TYPE_{tensor.datatype}"
        )
    dims = configured.dims if configured.reshape is None else configured.reshape.shape
    if tensor.dims:
        _check_dims(config, tensor, dims, exact)
    elif any(dim != 1 for dim in dims):
        raise LoadError(
            f"unable to load model '{config.name}', scalar tensor '{name}', should only provide 1 in the model "
            "configuration when the model doesn't support batching. Model configuration provided: "
            f"{_text(dims)}."
        )


def _check_dims(config: ModelConfig, tensor: GraphTensor, dims: tuple[int, ...], exact: bool) -> None:
    where = f"model '{config.name}', tensor '{tensor.name}'"
    expected = dims
    if config.max_batch_size > 0:
        if tensor.dims[0] != -1:
            raise LoadError(
                f"{where}: for the model to support batching the shape should have at least 1 dimension and the first "
                f"dimension must be -1; but shape expected by the model is {_text(tensor.dims)}"
            )
        expected = (-1, *dims)
    fits = len(expected) == len(tensor.dims) and all(
        found == wanted or (found == -1 and not exact) for found, wanted in zip(tensor.dims, expected, strict=True)
    )
    if fits:
        return
    what = f"{where}: the model expects {len(tensor.dims)} dimensions (shape {_text(tensor.dims)}) but the model "
    what += f"configuration specifies {len(expected)} dimensions "
    if config.max_batch_size > 0:
        what += "(an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making "
        what += f"complete shape {_text(expected)})"
    else:
        what += f"(shape {_text(expected)})"
    raise LoadError(what)


def _text(dims: Sequence[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"
