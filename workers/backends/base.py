"""What a backend is: one file with one class, which runs models of one kind in a worker.

The worker reads the requests' inputs as views of shared memory, calls ``execute``, and writes what that returns into
shared memory. A backend sees no message, socket or arena.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol

import numpy.typing as npt

from conch.errors import InvalidArgument
from conch.messages import Fault, Parameter, Request
from shm.lent import Lent

Array = npt.NDArray[Any]

#: backend name in a model's configuration -> module, which has a class ``Backend``
BACKENDS: Final = {
    "python": "workers.backends.python",
    "onnxruntime": "workers.backends.onnxruntime",
}


class LoadError(InvalidArgument):
    """The model cannot be completed or loaded. The text is the reason that clients and operators see."""


class MissingFramework(LoadError):
    """A package that the backend needs is not installed."""

    def __init__(self, model: str, package: str, extra: str) -> None:
        super().__init__(f"unable to load model '{model}': {package} is not installed; pip install 'conch[{extra}]'")


@dataclass(frozen=True, slots=True)
class Instance:
    """One model instance, as ``messages.Spawn`` describes it. ``config`` is the configuration's JSON. ``device`` is a
    GPU number where ``kind`` is ``"KIND_GPU"``. ``backend_config`` holds the server's settings for this backend.
    ``backend_dir``: of a Python-based backend, which holds the code; the model's folder may hold none then."""

    model: str
    version: int
    name: str
    kind: str
    device: int
    config: str
    model_dir: str
    version_dir: str
    backend_config: dict[str, str]
    backend_dir: str = ""


class InputHold:
    """``Input.lent.hold``, one for all inputs of a request: who keeps it keeps their bytes where they are. For the
    request's own outputs that is not needed."""

    __slots__ = ("__weakref__",)


class Input(NamedTuple):
    """``shape`` is the full one that the model sees, ``data`` a read-only view of the sender's memory that is valid
    until the request has had its final response: elements in C order, BYTES length-prefixed. ``lent``: what another
    process needs to read the same bytes; None where they cannot be passed on."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: memoryview
    lent: Lent | None = None


class Replies(Protocol):
    """Answers one request while its batch runs or later, from any thread, with any number of responses.

    ``before_final`` is called before the final response is sent, whoever sends it: the inputs' bytes go away with that.
    """

    before_final: Callable[[], None] | None

    @property
    def closed(self) -> bool:
        """The final response has been sent."""
        ...

    def send(self, result: "Result | None", final: bool) -> None:
        """None: a final response that holds nothing. Waits while whoever asked does not read (``conch.windows``). What
        is sent for a request that was cancelled goes nowhere. Raises ``ReplyClosed`` after a final response."""
        ...


class ReplyClosed(Exception):
    """The request has had its final response."""


class Item(NamedTuple):
    """One request of a batch. ``is_cancelled`` tells whether anybody still waits for the answer. ``requester`` is who
    sent it."""

    request: Request
    inputs: list[Input]
    is_cancelled: Callable[[], bool]
    replies: Replies
    requester: str = ""


class Output(NamedTuple):
    """``data``: a numeric array (any layout), or the elements of a BYTES tensor, valid as long as ``hold`` is kept.
    ``shape`` is the full one."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: "Array | list[bytes]"
    hold: Any = None


class Result(NamedTuple):
    """The answer to one request: outputs, or an error."""

    outputs: Sequence[Output] = ()
    error: Fault | None = None
    parameters: dict[str, Parameter] = {}


#: instead of a result: the request is to be given to the model once more
RESCHEDULED: Final = Result()


@dataclass(slots=True)
class Timing:
    """Monotonic ns that the backend sets where they differ from the start and end of ``execute``: when the inputs were
    ready for the model, and when the model had returned."""

    infer_start_ns: int = 0
    infer_end_ns: int = 0


class Backend(ABC):
    """One instance of one model. Every method but ``is_ready`` runs on the worker's main thread.

    The order is ``complete_config`` (only where the configuration is to be completed), ``load``, ``execute`` again and
    again, ``finalize``. What ``complete_config`` or ``load`` raise is the reason that the model fails with: a
    ``LoadError`` as it reads, anything else with its type and where it happened.
    """

    #: whether ``Input.lent`` is of use to the models
    lends_inputs: ClassVar[bool] = False

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        #: in a debugged process, what a model's own ``execute`` is to be wrapped with
        self.stops: Callable[[Callable[[Any], Any]], Callable[[Any], Any]] | None = None

    @abstractmethod
    def complete_config(self) -> str:
        """``instance.config`` with what the model itself says about its inputs, outputs and batching added."""

    @property
    def completes_apart(self) -> bool:
        """After ``complete_config``: it ran the model's own code, which must not be seen by the model that is loaded,
        so this process ends and another one calls ``load``."""
        return False

    @property
    def checks_readiness(self) -> bool:
        """After ``load``: the model is to be asked whether it is ready."""
        return False

    def is_ready(self) -> bool:
        """Asked on a thread of its own, while the main thread runs the model. Whatever it raises means that the model
        is not ready."""
        return True

    @abstractmethod
    def load(self) -> None:
        """With ``instance.config`` as it was completed and validated."""

    @abstractmethod
    def execute(self, items: list[Item], timing: Timing) -> "Sequence[Result | None]":
        """One result per item, in their order; None for one that ``replies`` has answered, or will; or ``RESCHEDULED``.
        An exception fails what has not been answered of the batch; ``SystemExit`` ends the worker."""

    def finalize(self) -> None:  # noqa: B027 - most backends have nothing to do
        """The model is unloaded; nothing is called after it."""


def backend_class(name: str, model: str, backend_directory: str = "") -> type[Backend]:
    """Raises ``LoadError`` for a backend that does not exist; it lists those of ``backend_directory`` too."""
    module = BACKENDS.get(name)
    if module is None:
        there_are = sorted({*BACKENDS, *_python_based(backend_directory)})
        raise LoadError(
            f"unable to load model '{model}': there is no backend '{name}'; there are {', '.join(there_are)}"
        )
    found: type[Backend] = importlib.import_module(module).Backend
    return found


def _python_based(backend_directory: str) -> set[str]:
    return {file.parent.name for file in Path(backend_directory).glob("*/model.py")} if backend_directory else set()
