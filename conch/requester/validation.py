"""Checks a client's request against a model's configuration, in Python integers, before anything is allocated.

A good request is recognised in one quick pass. Whatever is not quickly seen to be good goes through ``_refuse``, which
looks at everything in Triton's order, so that a request with several faults gets the text that Triton gives.
"""

from math import prod
from typing import NamedTuple, NoReturn

from conch.datatypes import BYTES_PREFIX_NBYTES, element_count
from conch.errors import InvalidArgument
from conch.refusals import refusal, wrong_elements
from conch.requester.inference import InferenceCall, TensorInput
from conch.requester.models import InputRule, ReadyModel
from conch.tensors import BadBytes, count

#: Triton counts elements and bytes in 64 bits
MAX_COUNT = 2**63 - 1
#: larger ones are refused even where another dimension is 0
MAX_DIM = 2**31 - 1
_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


class Checked(NamedTuple):
    """``batch_size`` is at least 1; ``shape_key`` is equal for requests that may share a batch. ``elsewhere``: some
    input has no data, because it lies in a client's or another process's memory."""

    batch_size: int
    shape_key: str
    elsewhere: bool = False


_ONE = Checked(1, "")


def validate(model: ReadyModel, call: InferenceCall) -> Checked:
    """Raises ``InvalidArgument`` with Triton's text, prefixed by the request id. The requester calls this inside
    ``submit``; a protocol does not have to."""
    rules = model.inputs
    batching = model.max_batch_size > 0
    batch_size = -1
    seen = 0
    elsewhere = False
    for tensor in call.inputs:
        rule = rules.get(tensor.name)
        if rule is None or tensor.datatype != rule.datatype or seen & rule.bit:
            _refuse(model, call)
        seen |= rule.bit
        dims = tensor.shape
        if batching:
            if not dims:
                _refuse(model, call)
            if batch_size < 0:
                batch_size = dims[0]
            elif dims[0] != batch_size:
                _refuse(model, call)
            dims = dims[1:]
        if rule.fixed:
            nbytes = rule.item_nbytes * batch_size if batching else rule.item_nbytes
            if dims != rule.dims:
                _refuse(model, call)
            if len(tensor.data) != nbytes:
                if _nbytes(tensor) != nbytes:
                    _refuse(model, call)
                elsewhere = True
        else:
            if not _variable_is_good(rule, tensor, dims, batch_size if batching else 1):
                _refuse(model, call)
            if tensor.region is not None or tensor.lent is not None:
                elsewhere = True
    if seen & model.required_mask != model.required_mask:
        _refuse(model, call)
    if batching and not 0 < batch_size <= model.max_batch_size and call.inputs:
        _refuse(model, call)
    if call.outputs and (
        len(set(call.outputs)) != len(call.outputs) or not model.output_names.keys() >= set(call.outputs)
    ):
        _refuse(model, call)
    if call.targets and not call.targets.keys() <= (set(call.outputs) or model.output_names.keys()):
        _refuse(model, call)
    if elsewhere:
        return Checked(max(batch_size, 1), _shape_key(model, call), elsewhere)
    if not model.shape_key_rules:
        return _ONE if batch_size < 2 else Checked(batch_size, "")
    return Checked(max(batch_size, 1), _shape_key(model, call))


def _variable_is_good(rule: InputRule, tensor: TensorInput, dims: tuple[int, ...], batch_size: int) -> bool:
    if len(dims) != len(rule.dims):
        return False
    for wanted, dim in zip(rule.dims, dims, strict=True):
        if wanted != dim and not (wanted < 0 and 0 <= dim <= MAX_DIM):
            return False
    if prod(dim or 1 for dim in dims) * (rule.element_nbytes or BYTES_PREFIX_NBYTES) > MAX_COUNT:
        return False
    elements = prod(dims) * batch_size
    if rule.element_nbytes:
        return _nbytes(tensor) == elements * rule.element_nbytes
    if tensor.region is not None or tensor.lent is not None:
        return True  # only the worker looks into memory that is not ours
    if len(tensor.data) < elements * BYTES_PREFIX_NBYTES:
        return False
    try:
        return count(tensor.data, elements) == elements
    except BadBytes:
        return False


def _nbytes(tensor: TensorInput) -> int:
    if tensor.region is not None:
        return tensor.region.nbytes
    return len(tensor.data) if tensor.lent is None else tensor.lent.block.nbytes


def _shape_key(model: ReadyModel, call: InferenceCall) -> str:
    """Which optional inputs there are, and the variable dimensions of inputs, in the configuration's order."""
    if len(call.inputs) == 1:
        found = {call.inputs[0].name: call.inputs[0]}
    else:
        found = {tensor.name: tensor for tensor in call.inputs}
    axis = 1  # rules with a key exist only for models that batch
    parts = []
    for rule in model.shape_key_rules:
        tensor = found.get(rule.name)
        if tensor is None:
            parts.append("-")
        elif rule.in_shape_key:
            parts.append(",".join(str(tensor.shape[axis + i]) for i in rule.variable_axes))
        else:
            parts.append("+")
    return ";".join(parts)


# ------------------------------------------------------------------------------------------------------------ refusing


def refused(call: InferenceCall, text: str) -> InvalidArgument:
    """The error for an invalid request, with the prefix that Triton's core puts before it."""
    return InvalidArgument(refusal(call.client_id, text))


def _refuse(model: ReadyModel, call: InferenceCall) -> NoReturn:
    for find in (_duplicates, _outputs, _input_set, _batch, _each_input, _sizes):
        text = find(model, call)
        if text:
            raise refused(call, text)
    raise refused(call, f"the request is invalid for model '{model.name}'")


def _duplicates(model: ReadyModel, call: InferenceCall) -> str:
    for kind, names in (("input", [tensor.name for tensor in call.inputs]), ("output", list(call.outputs))):
        seen = set()
        for name in names:
            if name in seen:
                return f"{kind} '{name}' already exists in request"
            seen.add(name)
    return ""


def _outputs(model: ReadyModel, call: InferenceCall) -> str:
    unexpected = [name for name in call.outputs if name not in model.output_names]
    wanted = frozenset(call.outputs) or model.output_names
    unexpected += [name for name in call.targets if name not in wanted]
    if unexpected:
        raise _unexpected("output", unexpected[0], model)
    return ""


def _input_set(model: ReadyModel, call: InferenceCall) -> str:
    required = sum(not rule.optional for rule in model.inputs.values())
    return "" if required <= len(call.inputs) <= len(model.inputs) else _wrong_count(model, call)


def _wrong_count(model: ReadyModel, call: InferenceCall) -> str:
    got = [tensor.name for tensor in call.inputs]
    required = [rule.name for rule in model.inputs.values() if not rule.optional]
    if len(required) == len(model.inputs):
        expected = f"expected {len(required)} inputs"
    else:
        expected = f"expected number of inputs between {len(required)} and {len(model.inputs)}"
    missing = [name for name in required if name not in got]
    return (
        f"{expected} but got {len(got)} inputs for model '{model.name}'. Got input(s) {_name_list(got)}, but missing "
        f"required input(s) {_name_list(missing)}. Please provide all required input(s)."
    )


def _batch(model: ReadyModel, call: InferenceCall) -> str:
    if not model.max_batch_size:
        return ""
    batch_size = None
    for tensor in call.inputs:
        if tensor.name not in model.inputs:
            raise _unexpected("input", tensor.name, model)
        if not tensor.shape:
            return f"input '{tensor.name}' has no shape but model requires batch dimension for '{model.name}'"
        if batch_size is None:
            batch_size = tensor.shape[0]
        elif tensor.shape[0] != batch_size:
            return f"input '{tensor.name}' batch size does not match other inputs for '{model.name}'"
    if batch_size is None:
        return ""
    if batch_size > model.max_batch_size:
        return f"inference request batch-size must be <= {model.max_batch_size} for '{model.name}'"
    if batch_size < 1:
        return f"inference request batch-size must be >= 1 for '{model.name}'"
    return ""


def _each_input(model: ReadyModel, call: InferenceCall) -> str:
    for tensor in call.inputs:
        rule = model.inputs.get(tensor.name)
        if rule is None:
            raise _unexpected("input", tensor.name, model)
        if tensor.datatype != rule.datatype:
            return (
                f"inference input '{tensor.name}' data-type is '{tensor.datatype}', but model '{model.name}' expects "
                f"'{rule.datatype}'"
            )
        text = _shape(model, rule, tensor)
        if text:
            return text
    got = {tensor.name for tensor in call.inputs}
    if any(not rule.optional and rule.name not in got for rule in model.inputs.values()):
        return _wrong_count(model, call)  # an optional one stands in for it in the count
    return ""


def _shape(model: ReadyModel, rule: InputRule, tensor: TensorInput) -> str:
    where = f"for input '{rule.name}' for model '{model.name}'"
    dims = tensor.shape[1:] if model.max_batch_size else tensor.shape
    for dim in tensor.shape:
        if dim < 0:
            return f"All input dimensions should be specified {where}, got {_dims(tensor.shape)}"
    if len(dims) != len(rule.dims) or any(wanted not in (-1, dim) for wanted, dim in zip(rule.dims, dims, strict=True)):
        expected = (-1, *rule.dims) if model.max_batch_size else rule.dims
        note = f" {_NOTE}" if model.max_batch_size else ""
        return f"unexpected shape {where}. Expected {_dims(expected)}, got {_dims(tensor.shape)}.{note}"
    if max(tensor.shape, default=0) > MAX_DIM or prod(dim or 1 for dim in tensor.shape) > MAX_COUNT:
        return (
            f"unexpected shape {where}: {_dims(tensor.shape)} causes total element count to exceed maximum size of "
            f"{MAX_COUNT}"
        )
    if prod(dim or 1 for dim in tensor.shape) * (rule.element_nbytes or BYTES_PREFIX_NBYTES) > MAX_COUNT:
        return f"byte size overflow {where}, shape {_dims(tensor.shape)}"
    return ""


def _sizes(model: ReadyModel, call: InferenceCall) -> str:
    for tensor in call.inputs:
        rule = model.inputs[tensor.name]
        nbytes = _nbytes(tensor)
        elements = element_count(tensor.shape)
        if rule.element_nbytes:
            if nbytes != elements * rule.element_nbytes:
                return (
                    f"input byte size mismatch for input '{rule.name}' for model '{model.name}'. Expected "
                    f"{elements * rule.element_nbytes}, got {nbytes}"
                )
            continue
        if tensor.region is None and tensor.lent is None:
            text = wrong_elements(tensor.data, elements, rule.name, model.name)
            if text:
                return text
    return ""


def _unexpected(kind: str, name: str, model: ReadyModel) -> InvalidArgument:
    """Triton looks names up in the model, which does not know the request's id."""
    return InvalidArgument(f"unexpected inference {kind} '{name}' for model '{model.name}'")


def _name_list(names: list[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


def _dims(dims: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"
