"""Typed parameters of inference requests: of the whole request, and of its tensors."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from conch.errors import InvalidArgument
from conch.messages import Parameter, Sequence
from conch.requester.inference import InferenceCall

_MAX_64_UNSIGNED: Final = 2**64 - 1
_MAX_64: Final = 2**63 - 1
_MAX_32_UNSIGNED: Final = 2**32 - 1
#: of a request in a stream: a response that has nothing but the final flag is wanted, too
EMPTY_FINAL_RESPONSE: Final = "triton_enable_empty_final_response"
#: of every response in a stream
FINAL_RESPONSE: Final = "triton_final_response"
_CHOICE: Final = "parameter_choice"
_CUSTOM: Final = frozenset({"int64_param", "bool_param", "string_param", "double_param"})


def take_parameters(parameters: Mapping[str, Any], call: InferenceCall) -> None:
    """Puts a request's parameters where they belong in ``call``. Raises ``InvalidArgument``."""
    sequence_id: int | str = 0
    start = end = False
    rest: dict[str, Parameter] = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof(_CHOICE)
        match key:
            case "sequence_id":
                _expect(key, choice, "int64_param", "string_param")
                # Triton's numbers are unsigned
                sequence_id = (
                    parameter.int64_param & _MAX_64_UNSIGNED if choice == "int64_param" else parameter.string_param
                )
            case "sequence_start":
                _expect(key, choice, "bool_param")
                start = parameter.bool_param
            case "sequence_end":
                _expect(key, choice, "bool_param")
                end = parameter.bool_param
            case "priority":
                _expect(key, choice, "int64_param", "uint64_param")
                call.priority = getattr(parameter, choice)
                if call.priority < 0:
                    raise InvalidArgument("invalid value for 'priority', expected value >= 0.")
            case "timeout":
                _expect(key, choice, "int64_param")
                call.timeout_us = parameter.int64_param & _MAX_64_UNSIGNED
            case "triton_enable_empty_final_response":
                # the stream's business
                _expect(key, choice, "bool_param")
            case _:
                if key.startswith("triton_"):
                    raise InvalidArgument(
                        "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                        f"starting with 'triton_' are allowed: {EMPTY_FINAL_RESPONSE}"
                    )
                if choice not in _CUSTOM:
                    raise InvalidArgument(
                        f"invalid value type for '{key}' parameter, expected int64_param, bool_param, or string_param."
                    )
                rest[key] = getattr(parameter, choice)
    if sequence_id:
        call.sequence = Sequence(sequence_id, start, end)
    if rest:
        call.parameters = rest


def _expect(key: str, choice: str | None, *wanted: str) -> None:
    if choice not in wanted:
        raise InvalidArgument(f"invalid value type for '{key}' parameter, expected {' or '.join(wanted)}.")


def set_parameters(target: Any, parameters: Mapping[str, Parameter]) -> None:
    """Writes a response's parameters into a map of ``InferParameter``."""
    for key, value in parameters.items():
        match value:
            case bool():
                target[key].bool_param = value
            case str():
                target[key].string_param = value
            case float():
                target[key].double_param = value
            case _ if value > _MAX_64:
                target[key].uint64_param = value
            case _:
                target[key].int64_param = value


class Place(NamedTuple):
    """Where in a client's memory a tensor lies, as the client says."""

    region: str
    offset: int
    nbytes: int


def place_of(tensor: Any) -> Place | None:
    """None for a tensor that is in the message. Raises ``InvalidArgument``."""
    parameters = tensor.parameters
    region = None
    if "shared_memory_region" in parameters:
        parameter = parameters["shared_memory_region"]
        if parameter.WhichOneof(_CHOICE) != "string_param":
            raise _wrong_type("shared_memory_region", tensor.name, "string_param")
        region = parameter.string_param
    offset = _size(tensor, "shared_memory_offset", region)
    nbytes = _size(tensor, "shared_memory_byte_size", region)
    if region is None:
        return None
    if nbytes is None:
        raise InvalidArgument(
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor "
            f"'{tensor.name}'"
        )
    return Place(region, offset or 0, nbytes & _MAX_64_UNSIGNED)


def _size(tensor: Any, key: str, region: str | None) -> int | None:
    if key not in tensor.parameters:
        return None
    if region is None:
        raise InvalidArgument(
            f"'{key}' can not be specified without 'shared_memory_region' parameter for tensor '{tensor.name}'"
        )
    parameter = tensor.parameters[key]
    if parameter.WhichOneof(_CHOICE) != "int64_param":
        raise _wrong_type(key, tensor.name, "int64_param")
    size: int = parameter.int64_param
    return size


def _wrong_type(key: str, name: str, wanted: str) -> InvalidArgument:
    return InvalidArgument(f"invalid value type for '{key}' parameter for tensor '{name}', expected {wanted}.")


def class_count(output: Any) -> int:
    """How many classes the client wants of an output; 0 for the tensor itself. Raises ``InvalidArgument``."""
    if "classification" not in output.parameters:
        return 0
    parameter = output.parameters["classification"]
    if parameter.WhichOneof(_CHOICE) != "int64_param":
        raise InvalidArgument("invalid value type for 'classification' parameter, expected int64_param")
    count: int = parameter.int64_param
    if count <= 0:
        raise InvalidArgument("invalid value for 'classification' parameter, expected >= 0")
    return min(count, _MAX_32_UNSIGNED)
