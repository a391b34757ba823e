"""Runs one batch: inputs in, the model, outputs and responses out."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn
from weakref import ref

from conch.datatypes import element_count
from conch.errors import ConchError, InvalidArgument, Unsupported, to_fault
from conch.messages import (
    Batch,
    Block,
    ClientRegion,
    CudaRegion,
    Dispatch,
    Done,
    Fault,
    Request,
    Response,
    TensorDescription,
    TensorReference,
)
from conch.model_config import ModelConfig
from conch.refusals import refusal, wrong_elements
from conch.tensors import STORAGE_DTYPES
from shm.base import BadReference
from shm.client_regions import ClientWindow
from workers.backends.base import RESCHEDULED, Backend, Input, InputHold, Item, Result, Timing
from workers.flow import Flow, Flows
from workers.outputs import Place
from workers.replies import Desk, Replies
from workers.responses import RequesterGone
from workers.shapes import Reshapes

logger = logging.getLogger("conch.workers.batch")

#: smaller inputs are cheaper to copy than to pass on
_COPIED_NBYTES = 64 * 1024
#: requests to be given to the model once more
_MOST_AGAIN = 10_000


class BatchRunner:
    def __init__(self, backend: Backend, config: ModelConfig, desk: Desk) -> None:
        self._backend = backend
        self._desk = desk
        self._pid = os.getpid()
        self._connections = desk.connections
        self._decoupled = config.decoupled
        self._flows = Flows(desk.arena.arena.cap_nbytes)
        self._lends = self._connections.lends_inputs = backend.lends_inputs
        #: those that the model wants to be given once more, by requester, id and attempt
        self._again: dict[tuple[str, int, int], Replies] = {}
        self._reshapes = desk.reshapes = Reshapes(config) or None

    def run(self, batch: Batch) -> None:
        """Answers the items of ``batch``, as far as the model does not do so later, and tells the broker."""
        started_ns = time.monotonic_ns()
        results: list[Result | None] = []
        replies: list[Replies] = []
        items: list[Item] = []
        with self._desk.lock:
            self._connections.look_around()
            for dispatch in batch.items:
                each = self._replies(dispatch)
                replies.append(each)
                try:
                    if dispatch.request.targets:
                        each.targets = self._targets(dispatch)
                    items.append(self._item(dispatch, each))
                    results.append(None)
                except RequesterGone as error:
                    logger.info("%s", error)
                    each.undelivered = each.closed = True
                    each.leave()
                    results.append(Result())
                except ConchError as error:
                    results.append(Result(error=to_fault(error)))
                except MemoryError:
                    text = "the model's process has no memory for a copy of the inputs; try again, or send less"
                    results.append(Result(error=Fault("Overloaded", text)))
                except BadReference as error:
                    logger.error("memory of request %d cannot be used: %s", dispatch.request.id, error)
                    text = "the server could not find the memory of this request's inputs or outputs"
                    results.append(Result(error=Fault("Internal", text)))
        timing = Timing(infer_start_ns=time.monotonic_ns())
        if items:
            try:
                answers = iter(self._execute(items, timing))
            finally:
                if os.getpid() != self._pid:
                    _end_forked(self._backend.instance.name)
            results = [next(answers) if early is None else early for early in results]
        timing.infer_end_ns = timing.infer_end_ns or time.monotonic_ns()
        self._answer(batch, started_ns, replies, results, timing)

    def _answer(
        self, batch: Batch, started_ns: int, replies: list[Replies], results: Sequence[Result | None], timing: Timing
    ) -> None:
        places: list[tuple[Replies, Result, Place | None]] = []
        with self._desk.lock:
            for each, result in zip(replies, results, strict=True):
                if result is not None and result is not RESCHEDULED and not each.closed:
                    place, result = each.place(result)
                    places.append((each, result, place))
        written = [
            (each, result, place, () if place is None else place.write(self._reshapes))
            for each, result, place in places
        ]
        ended_ns = time.monotonic_ns()
        with self._desk.lock:
            responses: dict[str, list[Response]] = {}
            for each, result, place, outputs in written:
                if each.closed:  # another thread of the model was quicker
                    each.free(place)
                    continue
                response = each.response(result, place, outputs, True)
                each.leave()
                if each.requester in responses:
                    responses[each.requester].append(response)
                else:
                    responses[each.requester] = [response]
            for requester, those in responses.items():
                unsent = self._connections.send(requester, those)
                if unsent:
                    ids = {response.id for response in unsent}
                    for each in replies:
                        each.undelivered |= each.requester == requester and each.request.id in ids
            failed: list[int] = []
            undelivered: list[int] = []
            opened: list[int] = []
            again: list[int] = []
            for position, each in enumerate(replies):
                if results[position] is RESCHEDULED and not each.closed:
                    again.append(position)
                    self._keep(each)
                elif each.held or not each.closed:
                    opened.append(position)
                    each.open = True
                else:
                    if each.undelivered:
                        undelivered.append(position)
                    if each.failed:
                        failed.append(position)
            done = Done(
                batch.epoch,
                batch.id,
                started_ns,
                timing.infer_start_ns,
                timing.infer_end_ns,
                ended_ns,
                tuple(failed),
                tuple(undelivered),
                tuple(opened),
                tuple(again),
            )
            self._desk.reports.done(done)

    def _replies(self, dispatch: Dispatch) -> Replies:
        request = dispatch.request
        if self._again:
            again = self._again.pop((dispatch.requester, request.id, request.attempt), None)
            if again is not None:
                again.reopen(dispatch)
                return again
        if not self._decoupled:
            return Replies(self._desk, dispatch, None)
        flow = self._connections.streams[dispatch.requester, request.id] = Flow(self._flows)
        return Replies(self._desk, dispatch, flow)

    def _keep(self, replies: Replies) -> None:
        """For the next time. One that is cancelled meanwhile never comes again."""
        if len(self._again) >= _MOST_AGAIN:
            self._again.pop(next(iter(self._again))).leave()
        self._again[replies.requester, replies.request.id, replies.request.attempt] = replies

    def _item(self, dispatch: Dispatch, replies: Replies) -> Item:
        """The request with its inputs mapped. Raises ``RequesterGone``, ``BadReference``, ``Unsupported`` and
        ``InvalidArgument``."""
        requester, request = dispatch.requester, dispatch.request
        view = self._connections.view
        reshapes = self._reshapes
        lends = self._lends
        inputs: list[Input] = []
        hold = None
        for tensor in request.inputs:
            reference = tensor.reference
            lent = None
            if type(reference) is Block:
                data = view(requester, reference)
                if lends and reference.nbytes > _COPIED_NBYTES:
                    if hold is None:
                        hold = InputHold()
                        replies.inputs, replies.hold = inputs, ref(hold)
                    lent = self._connections.lend(requester, reference, hold)
            else:
                data = self._client_input(requester, request, tensor)
            shape = tensor.shape if reshapes is None else reshapes.to_model(tensor.name, tensor.shape)
            inputs.append(Input(tensor.name, tensor.datatype, shape, data, lent))
        return Item(request, inputs, replies.is_cancelled, replies, requester)

    def _client_input(self, requester: str, request: Request, tensor: TensorDescription) -> memoryview:
        """An input in a client's region, read-only: a view of it where that is safe. Of BYTES it is a copy, because the
        client might change lengths that have been checked; frameworks expect numbers to lie at a multiple of their
        size."""
        window = self._window(requester, tensor.reference, f"input '{tensor.name}'")
        if tensor.datatype != "BYTES":
            if window.is_aligned(STORAGE_DTYPES[tensor.datatype].itemsize):
                return window.view.toreadonly()
            return memoryview(bytes(window.view))
        data = bytes(window.view)
        text = wrong_elements(data, element_count(tensor.shape), tensor.name, request.model)
        if text:
            raise InvalidArgument(refusal(request.client_id, text))
        return memoryview(data)

    def _targets(self, dispatch: Dispatch) -> dict[str, ClientWindow]:
        """Where outputs go that are not to go to the arena, by name. Raises as ``_item``."""
        return {
            target.name: self._window(dispatch.requester, target.reference, f"output '{target.name}'")
            for target in dispatch.request.targets
        }

    def _window(self, requester: str, reference: TensorReference, tensor: str) -> ClientWindow:
        if type(reference) is ClientRegion:
            return self._connections.window(requester, reference, tensor)
        if type(reference) is CudaRegion:
            raise Unsupported(f"{tensor} is in CUDA shared memory, which cannot be used yet: use system shared memory")
        raise Unsupported(f"{tensor} is in a kind of memory that is not supported yet")

    def _execute(self, items: list[Item], timing: Timing) -> Sequence[Result | None]:
        """As many results as items, whatever the backend does. ``SystemExit`` passes."""
        instance = self._backend.instance.name
        try:
            results = self._backend.execute(items, timing)
            if len(results) != len(items):
                raise RuntimeError(f"{len(results)} results for {len(items)} requests")
            return results
        except Exception as error:  # the boundary between the server and a framework
            logger.exception("a batch of '%s' failed", instance)
            text = f"Failed to process the request(s) for model '{instance}', message: {error}"
            return [Result(error=Fault("ModelError", text)) for _ in items]


def _end_forked(instance: str) -> NoReturn:
    """What a model has forked must not go on as this worker, whose connections it shares."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    else:
        code = 1
        logger.error("a process that '%s' has forked has come back from execute: it has to end by os._exit", instance)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 0xFF)
