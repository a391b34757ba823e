"""A model that asks other models (business logic scripting): ``exec``, ``async_exec``, and iterating over responses."""

import weakref
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from conch.errors import Cancelled, ConchError, NotFound, NotReady, Unsupported
from conch.later import Later
from conch.requester.inference import InferenceCall, InferenceResult, Outcome
from workers.python_utils import asking
from workers.python_utils.asking import Asker, Handle
from workers.python_utils.failures import TritonError, TritonModelException, triton_error
from workers.python_utils.mailbox import Delivery, Mailbox
from workers.python_utils.response import InferenceResponse
from workers.python_utils.tensor import Tensor, output_tensor

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

#: an iterator's responses are kept for another iteration until their tensors have this many bytes
MOST_KEPT_NBYTES = 64 << 20
#: what each of them counts besides
RESPONSE_NBYTES = 1024


class Question(NamedTuple):
    """``version`` -1 is the latest."""

    model_name: str
    version: int
    call: InferenceCall


class Asked:
    """A question that has been sent; what comes back is in ``mailbox``."""

    __slots__ = ("_handle", "mailbox")

    def __init__(self, question: Question, decoupled: bool) -> None:
        """Raises ``TritonModelException`` where no model may be asked. Whatever else is wrong is a response."""
        self.mailbox = Mailbox()
        self._handle: Handle | None = None
        asker = asking.asker_for_inference()
        refused = _refusal(asker, question, decoupled)
        if refused is not None:
            self.mailbox.put(refused, True)
            return
        call = question.call
        asking.set_parent(call)
        self._handle = asker.ask(question.model_name, question.version, call, call.parent, self.mailbox.put)

    def cancel(self) -> None:
        """The model need not go on. What has come can still be taken; after it comes ``Cancelled``."""
        if asking.is_forked():
            return
        if self._handle is not None:
            self._handle.cancel()
        self.mailbox.put(Cancelled("the request was cancelled by the model that sent it"), True)


def ask_and_wait(question: Question, decoupled: bool) -> "InferenceResponse | ResponseIterator":
    asked = Asked(question, decoupled)
    try:
        first = asked.mailbox.wait()
    except BaseException:  # a signal: the model ends
        asked.cancel()
        raise
    return _answer(asked, decoupled, first)


def ask_in_loop(question: Question, decoupled: bool) -> "asyncio.Future[InferenceResponse | ResponseIterator]":
    """Raises ``RuntimeError`` where no loop is running."""
    loop = asyncio.get_running_loop()
    asked = Asked(question, decoupled)
    task = loop.create_task(_await_answer(asked, decoupled))
    # not in the coroutine: one that is cancelled before it has begun never begins
    task.add_done_callback(partial(_cancel_with, asked))
    return task


async def _await_answer(asked: Asked, decoupled: bool) -> "InferenceResponse | ResponseIterator":
    return _answer(asked, decoupled, await asked.mailbox.wait_in_loop())


def _cancel_with(asked: Asked, task: "asyncio.Future[InferenceResponse | ResponseIterator]") -> None:
    if task.cancelled():
        asked.cancel()
        asked.mailbox.close()


def _answer(asked: Asked, decoupled: bool, first: Delivery) -> "InferenceResponse | ResponseIterator":
    if decoupled:
        return ResponseIterator(asked, first)
    if not first.final:  # the model has become a decoupled one just now
        asked.cancel()
    asked.mailbox.close()
    if first.outcome is None:
        return InferenceResponse(error=TritonError("Unexpected empty response."))
    response = _response(first.outcome)
    if isinstance(first.outcome, InferenceResult):
        first.outcome.release()  # the tensors hold what is lent
    return response


def _refusal(asker: Asker, question: Question, decoupled: bool) -> ConchError | None:
    name = question.model_name
    try:
        model = asker.model(name, question.version)
    except (NotFound, NotReady) as error:
        # what Triton has said at different times
        return NotReady(
            f"Failed for execute the inference request. Model '{name}' is not ready. Error when running inference: "
            f"{error.message}"
        )
    except ConchError as error:
        return error
    if model.decoupled and not decoupled:
        return Unsupported(
            f"Model {name} is using the decoupled. The current BLS request call doesn't support models using the "
            "decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls "
            "for decoupled models.'"
        )
    return None


def _response(outcome: Outcome | None) -> InferenceResponse:
    if outcome is None:
        return InferenceResponse()
    if isinstance(outcome, ConchError):
        return InferenceResponse(error=triton_error(outcome))
    return InferenceResponse([output_tensor(output) for output in outcome.outputs], None, outcome.parameters)


class ResponseIterator:
    """The responses to one request that a model has sent. A final one without outputs is one of them, as in Triton.

    Whoever answers is told that a response has been read when the next one is asked for. A tensor that is still there
    then, and that nobody has looked at, is copied out of memory that would otherwise be missing where it was made: a
    model may keep as many responses as it likes. The iterator itself keeps those that it has given, so that they can be
    iterated over again, until they are ``MOST_KEPT_NBYTES``.

    ``async for`` waits without blocking the loop. An iterator that is dropped lets the request go on; ``cancel`` does
    not.
    """

    def __init__(self, asked: Asked, first: Delivery) -> None:
        self._asked = asked
        self._first: Delivery | None = first
        #: what the model is looking at
        self._result: InferenceResult | None = None
        self._lent_tensors: list[weakref.ref[Tensor]] = []
        #: None when there were too many
        self._kept: list[InferenceResponse] | None = []
        self._kept_nbytes = 0
        self._position = 0
        self._finished = False

    def __iter__(self) -> "ResponseIterator":
        """Goes on where the iterator is; from the first response if it has given all."""
        if self._finished:
            if self._kept is None:
                raise TritonModelException(
                    "the responses cannot be iterated over again: there were more than an iterator keeps; keep what "
                    "you need of them while you iterate"
                )
            if self._position >= len(self._kept):
                self._position = 0
        return self

    def __next__(self) -> InferenceResponse:
        if self._finished:
            response = self._again()
            if response is None:
                raise StopIteration("Iteration is done for the responses.")
            return response
        self._pass()
        return self._received(self._take_first() or self._asked.mailbox.wait())

    def __aiter__(self) -> "ResponseIterator":
        return self.__iter__()

    async def __anext__(self) -> InferenceResponse:
        if self._finished:
            response = self._again()
            if response is None:
                raise StopAsyncIteration
            return response
        self._pass()
        return self._received(self._take_first() or await self._asked.mailbox.wait_in_loop())

    def cancel(self) -> None:
        """Nothing that is sent from now on arrives; the last response is an error with the code ``CANCELLED``."""
        if not self._finished:
            self._asked.cancel()

    def __del__(self) -> None:
        if not asking.is_forked():
            self._asked.mailbox.close()

    def _again(self) -> InferenceResponse | None:
        kept = self._kept
        if kept is None or self._position >= len(kept):
            return None
        self._position += 1
        return kept[self._position - 1]

    def _take_first(self) -> Delivery | None:
        """Raises ``TritonModelException`` where nothing else would come."""
        asking.check_process()
        first, self._first = self._first, None
        return first

    def _pass(self) -> None:
        """The model is done with the last response."""
        result = self._result
        if result is None:
            return
        for reference in self._lent_tensors:
            tensor = reference()
            if tensor is not None:
                tensor._keep()
        self._lent_tensors = []
        self._result = None
        result.release()

    def _received(self, delivery: Delivery) -> InferenceResponse:
        outcome = delivery.outcome
        response = _response(outcome)
        if isinstance(outcome, InferenceResult):
            if delivery.final:
                outcome.release()  # nobody waits for its memory: the tensors hold what is lent
            else:
                self._result = outcome
                self._lent_tensors = [weakref.ref(each) for each in response._output_tensors if each._lent is not None]
        self._remember(response)
        if delivery.final:
            self._finished = True
            if self._asked.mailbox.flooded:
                self._asked.cancel()
            self._asked.mailbox.close()
        return response

    def _remember(self, response: InferenceResponse) -> None:
        kept = self._kept
        if kept is None:
            return
        self._kept_nbytes += RESPONSE_NBYTES + sum(len(each._source or b"") for each in response._output_tensors)
        if self._kept_nbytes > MOST_KEPT_NBYTES:
            self._kept = None
            return
        kept.append(response)
        self._position = len(kept)
