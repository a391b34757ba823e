"""Models written in Python for Triton: a file ``model.py`` with a class ``TritonPythonModel``."""

import logging
import time
from collections.abc import Sequence
from sys import getrefcount
from types import CoroutineType
from typing import Any

import numpy as np

from conch import tensors
from conch.messages import Fault
from conch.model_config import decode_config
from workers.backends.base import Backend as BaseBackend
from workers.backends.base import Instance, Item, LoadError, Output, Result, Timing
from workers.backends.python_loading import ModelCode
from workers.backends.python_readiness import Readiness
from workers.python_utils.failures import TritonError
from workers.python_utils.request import InferenceRequest, received_request
from workers.python_utils.response import InferenceResponse
from workers.python_utils.tensor import Tensor

logger = logging.getLogger("conch.workers.backends.python")

#: shapes of outputs that are remembered, so that they need not be looked at again
_MOST_LOOKED_AT = 1000


class ExecuteError(Exception):
    """The model broke the contract of ``execute``."""


class Backend(BaseBackend):
    def __init__(self, instance: Instance) -> None:
        super().__init__(instance)
        self._code = ModelCode(instance)
        self._readiness = Readiness(None)
        self._model: Any = None
        self._execute: Any = None
        self._loop: Any = None
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
        if config.decoupled:
            raise LoadError(
                f"unable to load model '{instance.model}': the decoupled transaction policy is not supported yet"
            )
        self._output_names = [output.name for output in config.output]
        self._outputs = frozenset(self._output_names)
        batch = (-1,) if config.max_batch_size > 0 else ()
        self._expected = {
            output.name: (output.datatype, batch + (output.reshape.shape if output.reshape else output.dims))
            for output in config.output
        }
        self._model = self._code.initialized(instance)
        self._readiness = Readiness(self._model)
        self._execute = getattr(self._model, "execute", None)

    # --------------------------------------------------------------------------------------------- executing

    def execute(self, items: list[Item], timing: Timing) -> Sequence[Result]:
        names = self._output_names
        requests = [received_request(item, names) for item in items]
        timing.infer_start_ns = time.monotonic_ns()
        results: Sequence[Result]
        try:
            results = self._answers(items, requests, timing)
        except ExecuteError as error:
            results = self._failed(items, str(error))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever a model raises; asyncio.CancelledError is no Exception
            logger.exception("execute of '%s' failed", self.instance.name)
            results = self._failed(items, self._code.described(error))
        # an input's bytes are its sender's again when the batch is answered
        for tensor in _kept(requests, _UNKEPT):
            tensor._materialise()
        return results

    def _answers(self, items: list[Item], requests: list[InferenceRequest], timing: Timing) -> list[Result]:
        """Raises as ``_call``. The model's responses end here, before kept inputs are looked for."""
        responses = self._call(requests)
        timing.infer_end_ns = time.monotonic_ns()
        return [self._result(item, response) for item, response in zip(items, responses, strict=True)]

    def _call(self, requests: list[InferenceRequest]) -> list[InferenceResponse]:
        """Raises ``ExecuteError`` and whatever the model raises."""
        if self._execute is None:
            raise ExecuteError(f"Python model {self._code.shown_file()} does not implement `execute` method.")
        responses = self._execute(requests)
        if type(responses) is CoroutineType:
            responses = self._await(responses)
        _check(responses, len(requests))
        return responses  # type: ignore[no-any-return]

    def _await(self, coroutine: Any) -> Any:
        if self._loop is None:
            import asyncio  # only for models that need it

            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(coroutine)

    def _result(self, item: Item, response: InferenceResponse) -> Result:
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
            if tensor._source is not None:
                data = tensor._passed_on()
            elif datatype != "BYTES":
                data = tensor._array
            elif tensor._elements is not None:
                data = tensor._elements
            else:
                data = tensors.elements_of(tensor._array)  # of an input, which the model may have changed
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
        finalize = getattr(self._model, "finalize", None)
        if finalize is None:
            return
        try:
            finalize()
        except Exception:
            logger.exception("finalize of '%s' failed", self.instance.name)


def _check(responses: Any, expected: int) -> None:
    if type(responses) is not list and not isinstance(responses, list):
        raise ExecuteError(f"Expected a list in the execute return, found type '{type(responses)}'.")
    if len(responses) != expected:
        raise ExecuteError(
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            f"InferenceRequest(s) size is:{expected}, and InferenceResponse(s) size is:{len(responses)}\n"
        )
    for response in responses:
        if type(response) is not InferenceResponse and not isinstance(response, InferenceResponse):
            found = "NoneType" if response is None else str(type(response))
            raise ExecuteError(
                f"Expected an 'InferenceResponse' object in the execute function return list, found type '{found}'."
            )


def _fault(error: TritonError) -> Fault:
    return error._fault()


def _kept(requests: list[InferenceRequest], unkept: Sequence[int]) -> list[Tensor]:
    """The inputs whose arrays have not been made and that somebody beside the worker can still get at.

    ``unkept``: how many references the interpreter counts, right here, to the list, a request, its list of inputs, and
    an input, when nobody has kept them.
    """
    found = []
    all_kept = getrefcount(requests) > unkept[0]
    for request in requests:
        request_kept = all_kept or getrefcount(request) > unkept[1]
        inputs = request._inputs
        request_kept = request_kept or getrefcount(inputs) > unkept[2]
        for tensor in inputs:
            if tensor._source is not None and (request_kept or getrefcount(tensor) > unkept[3]):
                found.append(tensor)
    return found


def _count_unkept() -> list[int]:
    """Measured, because interpreters differ in how they count a function's own variables."""
    tensor = Tensor("sample", np.zeros(1))
    tensor._source = memoryview(b"")
    requests = [InferenceRequest(inputs=[tensor], requested_output_names=[], model_name="")]
    del tensor
    unkept = []
    for position in range(4):
        limits = [1000] * 4
        limits[position] = next(count for count in range(100) if not _kept(requests, _with(limits, position, count)))
        unkept.append(limits[position])
    return unkept


def _with(limits: list[int], position: int, limit: int) -> list[int]:
    return [*limits[:position], limit, *limits[position + 1 :]]


_UNKEPT = _count_unkept()
