"""``pb_utils.InferenceRequest`` and what belongs to it."""

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from conch import messages
from conch.requester.inference import InferenceCall
from workers.backends.base import Input, Item
from workers.python_utils import bls
from workers.python_utils.failures import TritonModelException
from workers.python_utils.parameters import checked_parameters
from workers.python_utils.response import InferenceResponse, InferenceResponseSender
from workers.python_utils.tensor import Tensor, input_tensor
from workers.python_utils.texts import text

if TYPE_CHECKING:
    import asyncio

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


#: of arguments that come after others with defaults: Triton takes all of them by position too
_REQUIRED: Any = object()


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
        "_release_flags",
        "_request_id",
        "_sender",
        "_senders",
        "_timeout_us",
        "_trace",
    )

    _item: Item | None
    #: makes the response sender of a request that the model executes, at the first call
    _senders: "Callable[[Item, list[Tensor]], InferenceResponseSender] | None"
    _sender: "InferenceResponseSender | None"
    _release_flags: int

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str | bytes = 0,
        inputs: Sequence[Tensor] = _REQUIRED,
        requested_output_names: Sequence[str] = _REQUIRED,
        model_name: str = _REQUIRED,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        for name, value in (
            ("inputs", inputs),
            ("requested_output_names", requested_output_names),
            ("model_name", model_name),
        ):
            if value is _REQUIRED:
                raise TypeError(f"InferenceRequest misses its argument '{name}'")
        if not isinstance(correlation_id, (int, str, bytes)):
            raise TritonModelException("Correlation ID must be integer or string")
        if isinstance(correlation_id, bytes):
            correlation_id = text(correlation_id, "correlation_id of InferenceRequest")
        request_id = text(request_id, "request_id of InferenceRequest")
        model_name = text(model_name, "model_name of InferenceRequest")
        _check_number(model_version=model_version)
        _check_number(0, flags=flags, timeout=timeout)
        if not isinstance(correlation_id, str):
            _check_number(0, correlation_id=correlation_id)
        for list_name, listed in (("inputs", inputs), ("requested_output_names", requested_output_names)):
            if isinstance(listed, (str, bytes, Tensor)) or not isinstance(listed, Iterable):
                raise TypeError(f"InferenceRequest expects a list of {list_name}, got {type(listed)}")
        of_whom = f"for request with id '{request_id}' and model name '{model_name}' should not be empty."
        for tensor in inputs:
            if tensor is None:
                raise TritonModelException(f"Input tensor {of_whom}")
            if not isinstance(tensor, Tensor):
                raise TypeError(f"InferenceRequest expects a list of Tensor inputs, got {type(tensor)}")
        if not all(requested_output_names):
            raise TritonModelException(f"Requested output name {of_whom}")
        output_names = {text(name, "a name in requested_output_names") for name in requested_output_names}
        self._item = self._sender = self._senders = None
        self._release_flags = TRITONSERVER_REQUEST_RELEASE_ALL
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._output_names = sorted(output_names)
        self._model_name = model_name
        self._model_version = int(model_version)
        self._flags = int(flags)
        self._timeout_us = int(timeout)
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

    def get_response_sender(self) -> "InferenceResponseSender":
        """The same one at every call."""
        if self._sender is None:
            if self._item is None or self._senders is None:
                raise TritonModelException("Only a request that the model executes has a response sender.")
            self._sender = self._senders(self._item, self._inputs)
        return self._sender

    def set_release_flags(self, flags: int) -> None:
        """With ``TRITONSERVER_REQUEST_RELEASE_RESCHEDULE``, ``execute`` gets the request once more, if it has not had a
        final response and the model's configuration has iterative sequences."""
        if flags not in (TRITONSERVER_REQUEST_RELEASE_ALL, TRITONSERVER_REQUEST_RELEASE_RESCHEDULE):
            raise TritonModelException(f"Unsupported release flags: {flags}")
        self._release_flags = flags

    def exec(self, decoupled: bool = False) -> "InferenceResponse | bls.ResponseIterator":
        """Asks ``model_name`` and waits: for its response, or for the first of any number. Whatever goes wrong there is
        a response with an error. Raises ``TritonModelException`` outside of ``execute``."""
        return bls.ask_and_wait(self._question(waits=True), decoupled)

    def async_exec(self, decoupled: bool = False) -> "asyncio.Future[InferenceResponse | bls.ResponseIterator]":
        """``exec`` for a coroutine; several can be under way at once. Cancelling what this returns, or the task that
        awaits it, cancels the request."""
        return bls.ask_in_loop(self._question(waits=False), decoupled)

    def _question(self, waits: bool) -> bls.Question:
        correlation_id = self._correlation_id
        flags = self._flags
        sequence = None
        if correlation_id:
            start = bool(flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_START)
            sequence = messages.Sequence(correlation_id, start, bool(flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_END))
        call = InferenceCall(
            [tensor._as_input(waits) for tensor in self._inputs],
            tuple(self._output_names),
            self._request_id,
            self._parameters,
            timeout_us=self._timeout_us,
            sequence=sequence,
            trace=self.trace().get_context() or "",
        )
        return bls.Question(self._model_name, self._model_version, call)


def _check_number(least: int = -1, **numbers: Any) -> None:
    for name, number in numbers.items():
        if not isinstance(number, (int, np.integer)) or not least <= number < 2**64:
            raise TypeError(f"InferenceRequest expects {name} to be an int of at least {least}, got {number!r}")


_new = cast(Any, object.__new__)


def received_request(
    item: Item,
    all_output_names: list[str],
    senders: "Callable[[Item, list[Tensor]], InferenceResponseSender]",
    tensor_of: Callable[[Input], Tensor] = input_tensor,
) -> InferenceRequest:
    """The model's view of one request of its batch. ``tensor_of``: or ``read_only_input_tensor``."""
    source = item.request
    request: InferenceRequest = _new(InferenceRequest)
    request._item = item
    request._sender = None
    request._senders = senders
    request._release_flags = TRITONSERVER_REQUEST_RELEASE_ALL
    request._request_id = source.client_id
    request._inputs = [tensor_of(each) for each in item.inputs]
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
