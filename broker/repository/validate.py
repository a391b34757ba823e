"""Triton's checks of a configuration, with Triton's reasons (they are matched by tests and by people's memory).

``check_config`` needs the normalised configuration only; a model that fails it is as good as not found in its
repository. ``check_tensors`` comes after the backend completed inputs and outputs; a model that fails it is found but
fails to load.
"""

import math
from collections.abc import Sequence
from typing import Any

from broker.repository import platforms
from broker.repository.config_file import ModelConfigMessage
from conch.datatypes import from_config_type
from conch.errors import InvalidArgument, Unsupported
from conch.model_config import ModelConfig, StringParameter
from conch.protos import model_config_pb2

_VARIABLE = -1
_CONTROL_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")


def check_config(config: ModelConfigMessage) -> None:
    """Raises ``InvalidArgument`` with the first thing that is wrong."""
    platforms.check(config)
    name = config.name
    if config.max_batch_size < 0:
        raise InvalidArgument(f"'max_batch_size' must be non-negative value for {name}")
    if config.HasField("dynamic_batching"):
        _check_dynamic_batching(config)
    if config.HasField("sequence_batching"):
        _check_sequence_batching(config)
    if config.HasField("ensemble_scheduling"):
        _check_ensemble(config)
    elif config.platform == platforms.ENSEMBLE:
        raise InvalidArgument(f"ensemble scheduling must be set for ensemble {name} whose platform is ensemble")
    if config.model_transaction_policy.decoupled and config.response_cache.enable:
        raise InvalidArgument(
            f"Response Cache does not currently support model {name} with 'decoupled' transaction policy. "
            "Please disable the response cache."
        )
    for control in config.model_metrics.metric_control:
        if not control.HasField("metric_identifier"):
            raise InvalidArgument("metric control must specify 'metric_identifier'")
        if not control.metric_identifier.family:
            raise InvalidArgument("metric identifier must specify non-empty 'family'")
        if not control.HasField("histogram_options"):
            raise InvalidArgument("metric control must specify 'histogram_options'")
        if not control.histogram_options.buckets:
            raise InvalidArgument("histogram options must specify non-empty 'buckets'")
    _check_file_name(config)


def check_tensors(config: ModelConfigMessage) -> None:
    """Raises ``InvalidArgument`` with the first thing that is wrong with an input or output."""
    for kind, tensors in (("input", config.input), ("output", config.output)):
        seen = set()
        for tensor in tensors:
            try:
                _check_tensor(tensor, config, f"model {kind} ")
            except InvalidArgument as error:
                raise InvalidArgument(f"{error.message} for {config.name}") from None
            if tensor.name in seen:
                raise InvalidArgument(f"model {kind} '{tensor.name}' is specified more than once for {config.name}")
            seen.add(tensor.name)


def check_supported(config: ModelConfigMessage) -> None:
    """Raises ``Unsupported`` for a feature that would change what a model answers and that Conch does not have yet."""
    missing = ""
    if config.HasField("ensemble_scheduling") or config.platform == platforms.ENSEMBLE:
        missing = "ensembles (ensemble_scheduling)"
    elif config.HasField("sequence_batching") and not _is_only_iterative(config.sequence_batching):
        missing = "the sequence batcher (sequence_batching)"
    elif config.HasField("model_repository_agents"):
        missing = "repository agents (model_repository_agents)"
    elif config.batch_input or config.batch_output:
        missing = "ragged batches (batch_input, batch_output)"
    elif any(tensor.allow_ragged_batch for tensor in config.input):
        missing = "ragged batches (allow_ragged_batch)"
    if missing:
        raise Unsupported(f"model '{config.name}' uses {missing}, which Conch does not have yet")


def check_parameters(config: ModelConfigMessage) -> None:
    """Raises ``InvalidArgument`` for a parameter of ours that cannot be read."""
    parameters = {key: StringParameter(value.string_value) for key, value in config.parameters.items()}
    typed = ModelConfig(name=config.name, parameters=parameters)
    try:
        _ = typed.idempotent, typed.execution_timeout_s, typed.load_timeout_s, typed.memory_limit_nbytes
    except InvalidArgument as error:
        raise InvalidArgument(f"{error.message} for {config.name}") from None


def _is_only_iterative(batching: Any) -> bool:
    """Each request is a sequence of its own, which its model may ask to be given again; none needs a slot."""
    return bool(batching.iterative_sequence and not batching.control_input and not batching.state)


def without_effect(config: ModelConfigMessage) -> list[str]:
    """Fields that are set and that nothing here acts on yet, for a warning."""
    fields = [field for field in ("model_warmup", "cc_model_filenames", "metric_tags") if getattr(config, field)]
    fields += [field for field in ("response_cache", "model_metrics") if config.HasField(field)]
    if any(group.HasField("rate_limiter") for group in config.instance_group):
        fields.append("instance_group.rate_limiter")
    if any(group.passive for group in config.instance_group):
        fields.append("instance_group.passive")
    return fields


# ------------------------------------------------------------------------------------------------------------ tensors


def _check_tensor(tensor: Any, config: ModelConfigMessage, prefix: str) -> None:
    if not tensor.name:
        raise InvalidArgument(f"{prefix}must specify 'name'")
    named = f"{prefix}'{tensor.name}' "
    if not from_config_type(_type_name(tensor.data_type)):
        raise InvalidArgument(f"{named}must specify 'data_type'")
    if not tensor.dims:
        raise InvalidArgument(f"{named}must specify 'dims'")
    if tensor.HasField("reshape") and not tensor.reshape.shape and config.max_batch_size == 0:
        raise InvalidArgument(
            f"{named}cannot have empty reshape for non-batching model as scalar tensors are not supported"
        )
    for dims, what in ((tensor.dims, "dimension"), (tensor.reshape.shape, "reshape dimensions")):
        if any(dim < 1 and dim != _VARIABLE for dim in dims):
            raise InvalidArgument(
                f"{named}{what} must be integer >= 1, or {_VARIABLE} to indicate a variable-size dimension"
            )
    if tensor.HasField("reshape"):
        _check_reshape(list(tensor.dims), list(tensor.reshape.shape), named)
    if "format" in tensor.DESCRIPTOR.fields_by_name and tensor.format != tensor.FORMAT_NONE and len(tensor.dims) != 3:
        raise InvalidArgument("model input NHWC/NCHW require 3 dims")
    if tensor.is_shape_tensor and config.platform != "tensorrt_plan":
        raise InvalidArgument("shape tensors are only supported for TensorRT platform")
    if tensor.is_non_linear_format_io:
        if config.platform != "tensorrt_plan":
            raise InvalidArgument("Non-linear IO format is only supported for the TensorRT platform")
        if len(tensor.dims) != 3:
            raise InvalidArgument(f"Non-linear IO format {prefix.split()[1]} requires 3 dims")


def _check_reshape(dims: Sequence[int], shape: Sequence[int], named: str) -> None:
    """Both must hold equally many elements, also within each stretch between variable dimensions."""
    dims_parts, shape_parts = _products_between_variables(dims), _products_between_variables(shape)
    if not shape:  # an empty shape drops a dims of one element
        if dims_parts != [1]:
            raise InvalidArgument(f"{named}has different size for dims and reshape")
        return
    if (len(dims_parts) > 1) == (len(shape_parts) > 1) and len(dims_parts) != len(shape_parts):
        raise InvalidArgument(f"{named}has different number of variable-size dimensions for dims and reshape")
    if dims_parts != shape_parts:
        raise InvalidArgument(f"{named}has different size for dims and reshape")


def _products_between_variables(dims: Sequence[int]) -> list[int]:
    """``[2, 4, -1, 6]`` -> ``[8, 6]``."""
    parts: list[list[int]] = [[]]
    for dim in dims:
        if dim == _VARIABLE:
            parts.append([])
        else:
            parts[-1].append(dim)
    return [math.prod(part) for part in parts]


def _type_name(number: int) -> str:
    found = model_config_pb2.DataType.DESCRIPTOR.values_by_number.get(number)
    return str(found.name) if found is not None else ""


def _check_file_name(config: ModelConfigMessage) -> None:
    """The artifact lies in the version folder or at least in the model's: configurations also come over the network."""
    filename = config.default_model_filename
    depth = 1  # the version folder
    for part in filename.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            break
    if filename.startswith("/") or depth < 0 or "\0" in filename:
        raise InvalidArgument(f"'default_model_filename' must stay within the model directory for {config.name}")


# ---------------------------------------------------------------------------------------------------------- schedulers


def _check_dynamic_batching(config: ModelConfigMessage) -> None:
    batching, name = config.dynamic_batching, config.name
    for size in batching.preferred_batch_size:
        if size <= 0:
            raise InvalidArgument(f"dynamic batching preferred size must be positive for {name}")
        if size > config.max_batch_size:
            raise InvalidArgument(f"dynamic batching preferred size must be <= max batch size for {name}")
    levels = batching.priority_levels
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            raise InvalidArgument(f"default priority level must be in range [1, {levels}] for {name}")
        if any(not 1 <= level <= levels for level in batching.priority_queue_policy):
            raise InvalidArgument(f"priority queue policy must have priority level in range [1, {levels}] for {name}")
    if batching.preserve_ordering:
        if levels > 1:
            raise InvalidArgument(f"Only one priority level is allowed when 'preserve_ordering' is true for {name}")
        for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values()):
            if policy.default_timeout_microseconds and policy.timeout_action == policy.DELAY:
                raise InvalidArgument(
                    "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for " + name
                )


def _check_sequence_batching(config: ModelConfigMessage) -> None:
    batching, name = config.sequence_batching, config.name
    if config.response_cache.enable:
        raise InvalidArgument(
            f"Response Cache does not currently support model {name} with sequence batching scheduler. "
            "Please disable the response cache."
        )
    _check_controls(batching, name)
    for size in batching.oldest.preferred_batch_size:
        if size <= 0:
            raise InvalidArgument(f"sequence batching preferred batch size must be positive for {name}")
        if size > config.max_batch_size:
            raise InvalidArgument(f"sequence batching preferred batch size must be <= max batch size for {name}")
    if not 0.0 <= batching.direct.minimum_slot_utilization <= 1.0:
        raise InvalidArgument(f"sequence batching minimum slot utilization must be in range (0.0, 1.0] for {name}")


def _check_controls(batching: Any, name: str) -> None:
    tensors: set[str] = set()
    kinds: set[int] = set()
    for control_input in batching.control_input:
        if not control_input.name:
            raise InvalidArgument(f"sequence batching control tensor must have a name for {name}")
        if control_input.name in tensors:
            raise InvalidArgument(
                f"sequence batching control tensor '{control_input.name}' is specified for multiple control kinds for "
                f"{name}"
            )
        tensors.add(control_input.name)
        for control in control_input.control:
            kind = control.Kind.Name(control.kind)
            if control.kind in kinds:
                raise InvalidArgument(f"sequence batching specifies multiple {kind} tensors for {name}")
            kinds.add(control.kind)
            lists = [
                (field, len(getattr(control, field)))
                for field in ("int32_false_true", "fp32_false_true", "bool_false_true")
                if getattr(control, field)
            ]
            if control.kind == control.CONTROL_SEQUENCE_CORRID:
                if lists:
                    raise InvalidArgument(
                        "sequence batching must not specify either 'int32_false_true', 'fp32_false_true' or "
                        f"'bool_false_true' for {kind} for {name}"
                    )
                if _type_name(control.data_type) not in _CONTROL_TYPES:
                    raise InvalidArgument(
                        f"unexpected data type for control {kind} for {name}. Allowed data types are TYPE_UINT64, "
                        "TYPE_INT64, TYPE_UINT32, TYPE_INT32 and TYPE_STRING"
                    )
                continue
            if not lists:
                raise InvalidArgument(
                    "sequence batching must specify either 'int32_false_true', 'fp32_false_true' or "
                    f"'bool_false_true' for {kind} for {name}"
                )
            if len(lists) > 1:
                raise InvalidArgument(
                    "sequence batching specifies more than one from 'int32_false_true', 'fp32_false_true' and "
                    f"'bool_false_true' for {kind} for {name}"
                )
            field, entries = lists[0]
            if entries != 2:
                raise InvalidArgument(
                    f"sequence batching control '{field}' must have exactly 2 entries for {kind} for {name}"
                )


def _check_ensemble(config: ModelConfigMessage) -> None:
    """What can be said about an ensemble by itself; how its steps fit together is for the day when ensembles run."""
    name = config.name
    if config.platform != platforms.ENSEMBLE:
        raise InvalidArgument(f"ensemble scheduling cannot be set for model '{name}' whose platform is not ensemble")
    if config.instance_group:
        raise InvalidArgument(f"instance group should not be specified for ensemble '{name}'")
    if config.HasField("optimization"):
        raise InvalidArgument(f"optimization should not be specified for ensemble '{name}'")
    if config.model_warmup:
        raise InvalidArgument(f"model_warmup can not be specified for ensemble '{name}'")
    if not config.ensemble_scheduling.step:
        raise InvalidArgument(f"must specify 'step' for ensemble '{name}'")
    for index, step in enumerate(config.ensemble_scheduling.step):
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                raise InvalidArgument(f"must specify '{field}' in step {index} of ensemble '{name}'")
