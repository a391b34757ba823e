"""Models written in Python for Triton: a file ``model.py`` with a class ``TritonPythonModel``."""

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from types import CoroutineType
from typing import Any

from conch import tensors
from conch.messages import Fault
from conch.model_config import decode_config
from workers.backends.base import RESCHEDULED, InputHold, Instance, Item, Output, ReplyClosed, Result, Timing
from workers.backends.base import Backend as BaseBackend
from workers.backends.python_inputs import UNKEPT, keep_when_answered, kept_inputs
from workers.backends.python_loading import ModelCode
from workers.backends.python_loop import ModelLoop
from workers.backends.python_readiness import Readiness
from workers.python_utils import triton_python_backend_utils as pb_utils
from workers.python_utils.failures import TritonError
from workers.python_utils.request import (
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    InferenceRequest,
    received_request,
)
from workers.python_utils.response import InferenceResponse, InferenceResponseSender
from workers.python_utils.tensor import Tensor, input_tensor, read_only_input_tensor

logger = logging.getLogger("conch.workers.backends.python")

#: a parameter of models, beyond Triton's: ``yes`` lets large inputs be views of the sender's memory
_READ_ONLY_INPUTS = "READ_ONLY_INPUT_TENSORS"
#: shapes of outputs that are remembered, so that they need not be looked at again
_MOST_LOOKED_AT = 1000


_NOT_ITERATIVE = (
    "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to handle "
    "such a flag."
)


class ExecuteError(Exception):
    """The model broke the contract of ``execute``."""


class Backend(BaseBackend):
    lends_inputs = True

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance)
        self._code = ModelCode(instance)
        self._readiness = Readiness(None)
        self._model: Any = None
        self._execute: Any = None
        self._loop: ModelLoop | None = None
        self._iterative = False
        self.decoupled = False
        self._tensor_of = input_tensor
        self._output_names: list[str] = []
        self._outputs: frozenset[str] = frozenset()
        self._expected: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._looked_at: set[tuple[str, str, tuple[int, ...]]] = set()
        self._warned: set[str] = set()

    # ----------------------------------------------------------------------------------------------- loading

    def complete_config(self) -> str:
        return self._code.complete_config()

    @property
    def completes_apart(self) -> bool:
        return self._code.has_completed

    @property
    def checks_readiness(self) -> bool:
        return hasattr(self._model, "is_ready")

    def is_ready(self) -> bool:
        return self._readiness.ask()

    def load(self) -> None:
        instance = self.instance
        config = decode_config(instance.config)
        self.decoupled = config.decoupled
        sequences = json.loads(instance.config).get("sequence_batching") or {}
        self._iterative = bool(sequences.get("iterative_sequence"))
        self._output_names = [output.name for output in config.output]
        self._outputs = frozenset(self._output_names)
        batch = (-1,) if config.max_batch_size > 0 else ()
        self._expected = {
            output.name: (output.datatype, batch + (output.reshape.shape if output.reshape else output.dims))
            for output in config.output
        }
        if config.parameter(_READ_ONLY_INPUTS).lower() == "yes":
            self._tensor_of = read_only_input_tensor
        self._model = self._code.initialized(instance)
        self._readiness = Readiness(self._model)
        execute = getattr(self._model, "execute", None)
        self._execute = self.stops(execute) if self.stops is not None and execute is not None else execute
        pb_utils._set_serving(True)

    # --------------------------------------------------------------------------------------------- executing

    def execute(self, items: list[Item], timing: Timing) -> Sequence[Result | None]:
        names, senders = self._output_names, self._sender
        requests = [received_request(item, names, senders, self._tensor_of) for item in items]
        pb_utils._set_running(items[0])
        timing.infer_start_ns = time.monotonic_ns()
        if self.decoupled:
            return self._execute_decoupled(items, requests)
        results: Sequence[Result | None]
        try:
            results = self._answers(items, requests, timing)
        except ExecuteError as error:
            results = self._failed(items, str(error))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever a model raises; asyncio.CancelledError is no Exception
            logger.exception("execute of '%s' failed; requests: %s", self.instance.name, _named(items))
            results = self._failed(items, self._code.described(error))
        # an input's bytes are its sender's again when the batch is answered
        for tensor in kept_inputs(requests, UNKEPT):
            tensor._materialise()
        return results

    def _answers(self, items: list[Item], requests: list[InferenceRequest], timing: Timing) -> list[Result | None]:
        """Raises as ``_call``. The model's responses end here, before kept inputs are looked for."""
        responses = self._call(requests)
        if type(responses) is CoroutineType:
            responses = self._model_loop().run(responses)
        timing.infer_end_ns = time.monotonic_ns()
        if responses is None and all(_is_left_open(request) for request in requests):
            responses = [None] * len(requests)
        _check(responses, requests)
        return [
            self._left_open(request) if response is None else self.result(item, response)
            for item, request, response in zip(items, requests, responses, strict=True)
        ]

    def _sender(self, item: Item, inputs: list[Tensor]) -> InferenceResponseSender:
        if not self.decoupled:
            keep_when_answered(item, inputs)
        return InferenceResponseSender(self, item)

    def _call(self, requests: list[InferenceRequest]) -> Any:
        """Raises ``ExecuteError`` and whatever the model raises."""
        if self._execute is None:
            raise ExecuteError(f"Python model {self._code.shown_file()} does not implement `execute` method.")
        return self._execute(requests)

    def _model_loop(self) -> ModelLoop:
        if self._loop is None:
            self._loop = ModelLoop()
        return self._loop

    def _left_open(self, request: InferenceRequest) -> Result | None:
        """Of a request that ``execute`` has not answered by what it returned."""
        if request._release_flags != TRITONSERVER_REQUEST_RELEASE_RESCHEDULE:
            return None
        if self._iterative:
            return RESCHEDULED
        return Result(error=Fault("InvalidArgument", _NOT_ITERATIVE))

    # ----------------------------------------------------------------------------------------------- decoupled

    def _execute_decoupled(self, items: list[Item], requests: list[InferenceRequest]) -> Sequence[Result | None]:
        for item, request in zip(items, requests, strict=True):
            keep_when_answered(item, request._inputs)
        try:
            returned = self._call(requests)
            if type(returned) is CoroutineType:
                self._model_loop().start(self._run_decoupled(returned, items))
            else:
                self._check_decoupled(returned)
        except ExecuteError as error:
            return self._failed(items, str(error))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            logger.exception("execute of '%s' failed; requests: %s", self.instance.name, _named(items))
            return self._failed(items, self._code.described(error))
        results = [self._left_open(request) for request in requests]
        for item, result in zip(items, results, strict=True):
            if result is RESCHEDULED and item.replies.before_final is not None:
                item.replies.before_final()  # the next time there are other inputs to care for
        return results

    def _check_decoupled(self, returned: Any) -> None:
        if returned is not None:
            raise ExecuteError(
                f"Python model '{self.instance.name}' is using the decoupled mode and the execute function must return "
                "None."
            )

    async def _run_decoupled(self, coroutine: Any, items: list[Item]) -> None:
        """``execute`` of a batch, beside those of others. If it fails, what has no final response gets the error."""
        try:
            self._check_decoupled(await coroutine)
            return
        except ExecuteError as error:
            failures = self._failed(items, str(error))
        except BaseException as error:  # there is nobody to raise it to
            logger.exception("execute of '%s' failed; requests: %s", self.instance.name, _named(items))
            failures = self._failed(items, self._code.described(error))
        for item, failure in zip(items, failures, strict=True):
            with suppress(ReplyClosed):
                item.replies.send(failure, True)

    # ------------------------------------------------------------------------------------------------- responses

    def result(self, item: Item, response: InferenceResponse) -> Result:
        """On any thread."""
        error = response._error
        if error is not None:
            return Result(error=_fault(error), parameters=response._parameters)
        wanted = item.request.outputs or self._outputs
        outputs = []
        for tensor in response._output_tensors:
            name = tensor._name
            if name not in wanted:
                continue
            datatype = tensor._datatype
            shape = tensor._shape
            if (name, datatype, shape) not in self._looked_at:
                self._look_at(name, datatype, shape)
            data: Any
            lent = tensor._lent
            if tensor._source is not None:
                data = tensor._passed_on()
            elif datatype != "BYTES":
                data = tensor._array
            elif tensor._elements is not None:
                data = tensor._elements
            else:
                data = tensors.elements_of(tensor._array)  # of an input, which the model may have changed
            if lent is not None and type(lent.hold) is not InputHold:  # of another model's output
                outputs.append(Output(name, datatype, shape, data, lent))
            else:
                outputs.append(Output(name, datatype, shape, data))
        return Result(outputs, None, response._parameters)

    def _look_at(self, name: str, datatype: str, shape: tuple[int, ...]) -> None:
        """Like Triton, lets a model's output be other than its configuration says, but says so, once."""
        if len(self._looked_at) >= _MOST_LOOKED_AT:
            self._looked_at.clear()
        self._looked_at.add((name, datatype, shape))
        expected_datatype, dims = self._expected[name]
        fits = len(dims) == len(shape) and all(dim in (-1, found) for dim, found in zip(dims, shape, strict=True))
        if (fits and datatype == expected_datatype) or name in self._warned:
            return
        self._warned.add(name)
        logger.warning(
            "output '%s' of model '%s' is %s %s, but its configuration says %s %s",
            name,
            self.instance.model,
            datatype,
            list(shape),
            expected_datatype,
            list(dims),
        )

    def _failed(self, items: list[Item], reason: str) -> list[Result]:
        fault = Fault(
            "ModelError", f"Failed to process the request(s) for model '{self.instance.name}', message: {reason}"
        )
        return [Result(error=fault) for _ in items]

    # ---------------------------------------------------------------------------------------------- unloading

    def finalize(self) -> None:
        pb_utils._set_serving(False)
        finalize = getattr(self._model, "finalize", None)
        if finalize is None:
            return
        try:
            finalize()
        except Exception:
            logger.exception("finalize of '%s' failed", self.instance.name)


def _is_left_open(request: InferenceRequest) -> bool:
    """``execute`` may return None for it."""
    return request._sender is not None or request._release_flags == TRITONSERVER_REQUEST_RELEASE_RESCHEDULE


def _named(items: Sequence[Item]) -> str:
    """The requests' ids, as their clients gave them, for a log; in place of one that is missing, who sent it and the
    end of a number."""
    return ", ".join(
        item.request.client_id or f"#{item.requester[:4]}-{item.request.id & 0xFFFFFF:06x}" for item in items
    )


def _check(responses: Any, requests: list[InferenceRequest]) -> None:
    if type(responses) is not list and not isinstance(responses, list):
        raise ExecuteError(f"Expected a list in the execute return, found type '{type(responses)}'.")
    if len(responses) != len(requests):
        raise ExecuteError(
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            f"InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) size is:{len(responses)}\n"
        )
    for request, response in zip(requests, responses, strict=True):
        if response is None and _is_left_open(request):
            continue
        if request._release_flags == TRITONSERVER_REQUEST_RELEASE_RESCHEDULE:
            raise ExecuteError(
                "Expected a None object in the execute function return list for reschduled request, found type "
                f"'{type(response)}'."
            )
        if type(response) is not InferenceResponse and not isinstance(response, InferenceResponse):
            found = "NoneType" if response is None else str(type(response))
            raise ExecuteError(
                f"Expected an 'InferenceResponse' object in the execute function return list, found type '{found}'."
            )
        if request._sender is not None:
            request._sender._count(True, True)


def _fault(error: TritonError) -> Fault:
    return error._fault()
