"""What a model's requests to other models need of the worker: who sends them, and for which request."""

import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from conch.messages import Parent, Request
from conch.requester.inference import InferenceCall, Outcome
from conch.requester.models import ReadyModel
from workers.backends.base import Item
from workers.python_utils.failures import TritonModelException


class Handle(Protocol):
    """A request that is on its way."""

    def cancel(self) -> None:
        """From any thread. Nothing is delivered any more."""
        ...


class Asker(Protocol):
    """Sends a model's requests, from any thread (``workers.asking``)."""

    def ask(
        self,
        model_name: str,
        version: int,
        call: InferenceCall,
        parent: Parent | None,
        on_response: Callable[[Outcome | None, bool], None],
    ) -> Handle:
        """``version`` -1 is the latest. Every error is a final response."""
        ...

    def call(self, message: Any) -> Any:
        """Asks the broker, and waits. Raises ``ConchError``."""
        ...

    def model(self, name: str, version: int) -> ReadyModel:
        """Waits until it is known which models there are. Raises ``NotFound`` and ``NotReady``."""
        ...


class _State:
    asker: Asker | None = None
    #: of the process whose thread carries the asker's requests, 0 without one
    pid: int = 0
    serving: bool = False


_state = _State()
#: per thread and per asyncio task: a task has that of whoever started it, a new thread has none
_running: ContextVar[tuple[str, Request] | None] = ContextVar("running", default=None)


def set_asker(asker: Asker | None) -> None:
    _state.asker = asker
    _state.pid = os.getpid()


def set_serving(serving: bool) -> None:
    """True from the end of ``initialize`` to the beginning of ``finalize``: only then may a model ask others."""
    _state.serving = serving


def set_running(item: Item) -> None:
    """``item`` is the first of the batch that is executed from here on, on this thread or in this task."""
    _running.set((item.requester, item.request))


def set_parent(call: InferenceCall) -> None:
    """``call`` is sent for the request that is executed here, if there is one."""
    running = _running.get()
    if running is not None:
        requester, request = running
        call.parent = Parent(requester, request.id)
        call.depth = request.depth + 1


def asker_for_inference() -> Asker:
    """Raises ``TritonModelException`` where a model may not ask others."""
    if not _state.serving:
        raise TritonModelException("BLS is only supported during the 'execute' function.")
    return asker()


def asker() -> Asker:
    """Raises ``TritonModelException``."""
    if _state.asker is None:
        raise TritonModelException("this process cannot reach other models: only a running server's workers can")
    check_process()
    return _state.asker


def check_process() -> None:
    """Raises ``TritonModelException`` in a process that the model has forked: what it has of the server's memory and
    connections is its parent's."""
    if is_forked():
        raise TritonModelException(
            "a process that a model has forked cannot reach other models or clients: let the model's own process ask "
            "and answer, with threads if several are to do so at once"
        )


def is_forked() -> bool:
    return _state.pid not in (0, os.getpid())
