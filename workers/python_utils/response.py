"""``pb_utils.InferenceResponse``, and the senders that come later."""

from collections.abc import Sequence
from typing import Any

import msgspec

from workers.python_utils.failures import Absent, TritonError, TritonModelException
from workers.python_utils.request import checked_parameters
from workers.python_utils.tensor import Tensor

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class InferenceResponse:
    """The answer to one request. With an error the tensors are ignored."""

    __slots__ = ("_error", "_output_tensors", "_parameters")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(output_tensors, (list, tuple)):
            raise TypeError(f"InferenceResponse expects a list of Tensor objects, got {type(output_tensors)}")
        for tensor in output_tensors:
            if type(tensor) is not Tensor and not isinstance(tensor, Tensor):
                if tensor is None:
                    raise TritonModelException("Output tensor for inference response should not be empty.")
                raise TypeError(f"InferenceResponse expects a list of Tensor objects, found {type(tensor)} in it")
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(f"InferenceResponse expects a TritonError, got {type(error)}")
        self._output_tensors = list(output_tensors)
        self._error = error
        self._parameters = checked_parameters(parameters)

    def output_tensors(self) -> list[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """The parameters as a JSON object."""
        return msgspec.json.encode(self._parameters).decode()


class InferenceResponseSender(Absent):
    _feature = "InferenceResponseSender"


class ResponseIterator(Absent):
    _feature = "ResponseIterator"
