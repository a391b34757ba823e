"""``pb_utils.InferenceResponse``, and the senders that come later."""

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from workers.backends.base import Item, ReplyClosed, Result
from workers.python_utils import asking
from workers.python_utils.failures import TritonError, TritonModelException
from workers.python_utils.parameters import checked_parameters
from workers.python_utils.tensor import Tensor

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

_CLOSED = "Unable to send response. Response sender has been closed."


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


class Answers(Protocol):
    """How the model's answers become results."""

    @property
    def decoupled(self) -> bool: ...

    def result(self, item: Item, response: InferenceResponse) -> Result: ...


class InferenceResponseSender:
    """Answers one request, from any thread, while ``execute`` runs or later: any number of times if the model is
    decoupled, otherwise once, and ``execute`` returns None for it.

    A sender and its request that are both dropped before a final response answer the client with an error.
    """

    __slots__ = ("_answers", "_closed", "_item", "_lock", "_responses")

    def __init__(self, answers: Answers, item: Item) -> None:
        self._answers = answers
        self._item = item
        # of the kind that its holder may take again: a garbage collection may run code of the model that sends
        self._lock = threading.RLock()
        self._closed = False
        self._responses = 0

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Waits while the client does not read what was sent before. What is sent to a client that has gone is dropped.

        Raises ``TritonModelException`` for what cannot be sent.
        """
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None:
            if flags == 0:
                raise TritonModelException(
                    "Inference Response object must be provided when the response flags is set to zero."
                )
        elif not isinstance(response, InferenceResponse):
            raise TypeError(f"InferenceResponseSender.send expects an InferenceResponse, got {type(response)}")
        asking.check_process()
        final = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._count(response is not None, final)
        item = self._item
        decoupled = self._answers.decoupled
        if response is None and not decoupled:
            return  # its only response was the final one
        try:
            result = None if response is None else self._answers.result(item, response)
            item.replies.send(result, final or not decoupled)
        except ReplyClosed as error:
            raise TritonModelException(_CLOSED) from error

    def is_cancelled(self) -> bool:
        return self._item.is_cancelled()

    def _count(self, has_response: bool, final: bool) -> None:
        """One that is sent, or returned by ``execute``. Raises ``TritonModelException``."""
        with self._lock:
            if not self._answers.decoupled:
                if has_response and self._responses:
                    raise TritonModelException(
                        "Unable to send response. Non-decoupled model cannot send more than one response."
                    )
                if not has_response and not self._responses:
                    raise TritonModelException(
                        "Unable to send response. Non-decoupled model cannot send complete final before sending a "
                        "response."
                    )
            if self._closed:
                raise TritonModelException(_CLOSED)
            self._closed = final
            self._responses += 1
