"""Runs one batch: inputs in, the model, outputs and responses out."""

import logging
import time
from collections.abc import Sequence
from functools import partial

from conch.errors import Unsupported
from conch.messages import Batch, Block, Dispatch, Done, Fault, Response
from conch.model_config import ModelConfig
from shm.base import BadReference
from shm.leases import LeasedArena
from workers.backends.base import Backend, Input, Item, Result, Timing
from workers.outputs import respond
from workers.responses import Connections, RequesterGone
from workers.shapes import Reshapes
from workers.shared_state import SharedState

logger = logging.getLogger("conch.workers.batch")


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
        undelivered: list[int] = []
        for position, dispatch in enumerate(batch.items):
            try:
                items.append(self._item(dispatch))
                results.append(None)
            except RequesterGone as error:
                logger.info("%s", error)
                undelivered.append(position)
                results.append(Result())
            except Unsupported as error:
                results.append(Result(error=Fault("Unsupported", error.message)))
            except BadReference as error:
                logger.error("an input cannot be read: %s", error)
                results.append(Result(error=Fault("Internal", "the server could not read this request's inputs")))
        timing = Timing(infer_start_ns=time.monotonic_ns())
        answers = iter(self._execute(items, timing) if items else ())
        timing.infer_end_ns = timing.infer_end_ns or time.monotonic_ns()

        failed: list[int] = []
        responses: dict[str, list[tuple[int, Response]]] = {}
        for position, dispatch in enumerate(batch.items):
            result = results[position] or next(answers)
            if position in undelivered:
                continue
            response = respond(self._arena, dispatch.requester, dispatch.request, result, self._reshapes)
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
        """The request with its inputs mapped. Raises ``RequesterGone``, ``BadReference`` and ``Unsupported``."""
        requester, request = dispatch.requester, dispatch.request
        if request.targets:
            raise Unsupported("outputs in shared memory of the client are not supported yet")
        view = self._connections.view
        reshapes = self._reshapes
        inputs = []
        for tensor in request.inputs:
            reference = tensor.reference
            if type(reference) is not Block:
                raise Unsupported(f"input '{tensor.name}' lies in a kind of memory that is not supported yet")
            shape = tensor.shape if reshapes is None else reshapes.to_model(tensor.name, tensor.shape)
            inputs.append(Input(tensor.name, tensor.datatype, shape, view(requester, reference)))
        return Item(request, inputs, partial(self._shared.is_cancelled, requester, request.id))

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
