"""Runs one batch: inputs in, the model, outputs and responses out."""

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType

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
from shm.leases import LeasedArena
from workers.backends.base import Backend, Input, Item, Result, Timing
from workers.outputs import respond
from workers.responses import Connections, RequesterGone
from workers.shapes import Reshapes
from workers.shared_state import SharedState

logger = logging.getLogger("conch.workers.batch")

_NO_TARGETS: Mapping[str, ClientWindow] = MappingProxyType({})


class BatchRunner:
    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        connections: Connections,
        arena: LeasedArena,
        shared: SharedState,
    ) -> None:
        self._backend = backend
        self._connections = connections
        self._arena = arena
        self._shared = shared
        self._reshapes = Reshapes(config) or None

    def run(self, batch: Batch) -> Done:
        """Answers every item of ``batch`` with one final response, and returns what to tell the broker."""
        started_ns = time.monotonic_ns()
        self._connections.look_around()
        results: list[Result | None] = []
        items: list[Item] = []
        targets: dict[int, dict[str, ClientWindow]] = {}
        undelivered: list[int] = []
        for position, dispatch in enumerate(batch.items):
            try:
                if dispatch.request.targets:
                    targets[position] = self._targets(dispatch)
                items.append(self._item(dispatch))
                results.append(None)
            except RequesterGone as error:
                logger.info("%s", error)
                undelivered.append(position)
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
        answers = iter(self._execute(items, timing) if items else ())
        timing.infer_end_ns = timing.infer_end_ns or time.monotonic_ns()

        failed: list[int] = []
        responses: dict[str, list[tuple[int, Response]]] = {}
        for position, dispatch in enumerate(batch.items):
            result = results[position] or next(answers)
            if position in undelivered:
                continue
            windows = targets.get(position, _NO_TARGETS)
            response = respond(self._arena, dispatch.requester, dispatch.request, result, self._reshapes, windows)
            if response.error is not None:
                failed.append(position)
            if dispatch.requester in responses:
                responses[dispatch.requester].append((position, response))
            else:
                responses[dispatch.requester] = [(position, response)]
        ended_ns = time.monotonic_ns()
        for requester, positioned in responses.items():
            unsent = self._connections.send(requester, [response for _, response in positioned])
            if unsent:
                ids = {response.id for response in unsent}
                undelivered += [position for position, response in positioned if response.id in ids]
        return Done(
            batch.epoch,
            batch.id,
            started_ns,
            timing.infer_start_ns,
            timing.infer_end_ns,
            ended_ns,
            tuple(failed),
            tuple(undelivered),
        )

    def _item(self, dispatch: Dispatch) -> Item:
        """The request with its inputs mapped. Raises ``RequesterGone``, ``BadReference``, ``Unsupported`` and
        ``InvalidArgument``."""
        requester, request = dispatch.requester, dispatch.request
        view = self._connections.view
        reshapes = self._reshapes
        inputs = []
        for tensor in request.inputs:
            reference = tensor.reference
            if type(reference) is Block:
                data = view(requester, reference)
            else:
                data = self._client_input(requester, request, tensor)
            shape = tensor.shape if reshapes is None else reshapes.to_model(tensor.name, tensor.shape)
            inputs.append(Input(tensor.name, tensor.datatype, shape, data))
        return Item(request, inputs, partial(self._shared.is_cancelled, requester, request.id))

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

    def _execute(self, items: list[Item], timing: Timing) -> Sequence[Result]:
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
