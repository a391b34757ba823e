"""``pb_utils.InferenceRequest`` and what belongs to it."""

import enum
from collections.abc import Sequence
from typing import Any, cast

import msgspec

from conch.messages import Parameter
from workers.backends.base import Item
from workers.python_utils.failures import TritonModelException, not_there_yet
from workers.python_utils.tensor import Tensor, input_tensor

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2


class MemoryType(enum.IntEnum):
    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


TRITONSERVER_MEMORY_GPU = MemoryType.TRITONSERVER_MEMORY_GPU
TRITONSERVER_MEMORY_CPU = MemoryType.TRITONSERVER_MEMORY_CPU


class PreferredMemory:
    """Where the outputs of a request that a model sends should lie."""

    def __init__(self, preferred_memory_type: int, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class InferenceTrace:
    """``get_context``: the request's OpenTelemetry context as JSON, None if it has none."""

    def __init__(self, context: str = "") -> None:
        self._context = context

    def get_context(self) -> str | None:
        return self._context or None


class InferenceRequest:
    """A request that the model executes or, in time, one that it sends."""

    __slots__ = (
        "__weakref__",
        "_correlation_id",
        "_flags",
        "_inputs",
        "_item",
        "_model_name",
        "_model_version",
        "_output_names",
        "_parameters",
        "_preferred_memory",
        "_request_id",
        "_timeout_us",
        "_trace",
    )

    _item: Item | None

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        *,
        inputs: Sequence[Tensor],
        requested_output_names: Sequence[str],
        model_name: str,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(correlation_id, (int, str)):
            raise TritonModelException("Correlation ID must be integer or string")
        of_whom = f"for request with id '{request_id}' and model name '{model_name}' should not be empty."
        for tensor in inputs:
            if tensor is None:
                raise TritonModelException(f"Input tensor {of_whom}")
            if not isinstance(tensor, Tensor):
                raise TypeError(f"InferenceRequest expects a list of Tensor inputs, got {type(tensor)}")
        if not all(requested_output_names):
            raise TritonModelException(f"Requested output name {of_whom}")
        self._item = None
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._output_names = sorted(set(requested_output_names))
        self._model_name = model_name
        self._model_version = model_version
        self._flags = flags
        self._timeout_us = timeout
        self._preferred_memory = preferred_memory
        self._trace = trace or InferenceTrace()
        self._parameters = checked_parameters(parameters)

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._request_id

    def correlation_id(self) -> int | str:
        """0 outside a sequence."""
        return self._correlation_id

    def flags(self) -> int:
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def timeout(self) -> int:
        """In microseconds, 0 when none was given."""
        return self._timeout_us

    def parameters(self) -> str:
        """The request's parameters as a JSON object."""
        return msgspec.json.encode(self._parameters).decode()

    def trace(self) -> InferenceTrace:
        item = self._item
        return self._trace if item is None else InferenceTrace(item.request.trace)

    def preferred_memory(self) -> PreferredMemory:
        return self._preferred_memory or PreferredMemory(TRITONSERVER_MEMORY_CPU, 0)

    def requested_output_names(self) -> list[str]:
        """The outputs that are wanted; all of the model's if the client named none."""
        return self._output_names

    def is_cancelled(self) -> bool:
        return self._item is not None and self._item.is_cancelled()

    def get_response_sender(self) -> Any:
        not_there_yet("InferenceRequest.get_response_sender()")

    def set_release_flags(self, flags: int) -> None:
        if flags != TRITONSERVER_REQUEST_RELEASE_ALL:
            not_there_yet("InferenceRequest.set_release_flags(TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)")

    def exec(self, decoupled: bool = False) -> Any:
        not_there_yet("InferenceRequest.exec(), a request from within a model,")

    def async_exec(self, decoupled: bool = False) -> Any:
        not_there_yet("InferenceRequest.async_exec(), a request from within a model,")


def checked_parameters(parameters: dict[str, Any] | None) -> dict[str, Parameter]:
    """The same with Python's own types instead of what inherits from them, such as NumPy's scalars. Raises
    ``TritonModelException`` for what cannot travel."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise TypeError(f"parameters must be a dict, got {type(parameters)}")
    checked: dict[str, Parameter] = {}
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        checked[str.__str__(key)] = _plain(value)
    return checked


def _plain(value: Any) -> Parameter:
    match value:
        case bool():
            return value
        case int():
            if not -(2**63) <= value < 2**64:
                raise TritonModelException(f"Expect parameters values of at most 64 bits, found {value}")
            return int(value)
        case float():
            return float(value)
        case str():
            return str.__str__(value)  # an enumeration's own is its name
    raise TritonModelException(f"Expect parameters values to have type bool/int/float/str, found type {type(value)}")


_new = cast(Any, object.__new__)


def received_request(item: Item, all_output_names: list[str]) -> InferenceRequest:
    """The model's view of one request of its batch."""
    source = item.request
    request: InferenceRequest = _new(InferenceRequest)
    request._item = item
    request._request_id = source.client_id
    request._inputs = [input_tensor(each) for each in item.inputs]
    request._output_names = list(source.outputs) or all_output_names
    request._model_name = source.model
    request._model_version = source.version
    request._timeout_us = source.timeout_us
    request._preferred_memory = None
    request._parameters = source.parameters
    sequence = source.sequence
    if sequence is None:
        request._correlation_id = 0
        request._flags = 0
    else:
        request._correlation_id = sequence.id
        request._flags = sequence.start + 2 * sequence.end
    return request
