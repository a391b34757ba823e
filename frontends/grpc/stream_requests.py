"""The requests of a stream while they are on their way, and their answers as ``ModelStreamInferResponse`` messages."""

from typing import Any

from conch.errors import ConchError
from conch.requester.inference import InferenceResult, Outcome
from conch.requester.models import ReadyModel
from frontends.grpc.codec import service_pb2, stream_response
from frontends.grpc.errors import failure_of
from frontends.grpc.exchange import Failure, Reply
from frontends.grpc.inference import encode
from frontends.grpc.parameters import EMPTY_FINAL_RESPONSE, FINAL_RESPONSE
from frontends.requesting import AskedLike


class StreamRequest:
    """``nbytes`` is what it holds of the frontend's memory."""

    __slots__ = ("asked", "classes", "message", "model", "nbytes", "waiting")

    def __init__(self, message: Any, nbytes: int) -> None:
        self.message = message
        self.nbytes = nbytes
        #: responses that the client has not taken
        self.waiting = 0
        #: None before it is asked, and after its last answer
        self.asked: AskedLike | None = None
        self.model: ReadyModel
        self.classes: dict[str, int]

    @property
    def wants_empty_final(self) -> bool:
        parameters = self.message.parameters
        return EMPTY_FINAL_RESPONSE in parameters and bool(parameters[EMPTY_FINAL_RESPONSE].bool_param)

    def rendered(self, outcome: Outcome | None, final: bool, strict: bool) -> Reply:
        """A response, None for an empty one. A result has been released when this returns. ``strict``: an error ends
        the stream."""
        if outcome is None:
            return _in_band("", self._empty(final))
        if isinstance(outcome, InferenceResult):
            try:
                return stream_response(encode(outcome, self.classes, self.model, final))
            except Exception as error:
                return self._failed(error, final, strict)
        return self._failed(outcome, final, strict)

    def refused(self, error: Exception) -> bytes:
        """The answer to a request that never ran, as Triton has it: of the response only the id."""
        return _in_band(_whole_text(error), service_pb2.ModelInferResponse(id=self.message.id))

    def _failed(self, error: Exception, final: bool, strict: bool) -> Reply:
        return failure_of(error) if strict else _in_band(_whole_text(error), self._empty(final))

    def _empty(self, final: bool) -> Any:
        """The version is the request's, as Triton has it."""
        message = self.message
        response = service_pb2.ModelInferResponse(
            id=message.id, model_name=message.model_name, model_version=message.model_version
        )
        response.parameters[FINAL_RESPONSE].bool_param = final
        return response


class OrderedRequest(StreamRequest):
    """Of a model that answers once: its answer has its place in the order of such requests."""

    __slots__ = ("reply",)

    def __init__(self, message: Any, nbytes: int) -> None:
        super().__init__(message, nbytes)
        self.reply: Reply | None = None

    def settle(self, reply: Reply) -> int:
        """``reply`` waits for its turn. Returns by how much ``nbytes`` has changed."""
        before = self.nbytes
        self.reply = reply
        self.nbytes = 0 if isinstance(reply, Failure) else len(reply)
        return self.nbytes - before


def _whole_text(error: Exception) -> str:
    """What a status has no room for, a message has."""
    return error.message if isinstance(error, ConchError) else failure_of(error).message


def _in_band(message: str, response: Any) -> bytes:
    text = message.encode(errors="replace").decode()
    encoded: bytes = service_pb2.ModelStreamInferResponse(
        error_message=text, infer_response=response
    ).SerializeToString()
    return encoded
