"""The table of models that the broker pushes, and calls about models."""

from typing import Any, Literal

from conch.messages.base import Message, Record
from conch.messages.tensors import Fault

ModelState = Literal["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]


class ModelEntry(Record, frozen=True):
    """One version of a model as everybody else sees it. ``version`` 0 stands for a model that was never touched or of
    which no version could be determined. ``healthy``: at least one instance can take a batch now or soon (being
    restarted after a crash still counts; backed off does not). ``labels`` maps an output to its label lines.
    ``checks``: at least one instance is to be asked with ``AskReady`` whether it is ready."""

    name: str
    version: int
    state: ModelState
    reason: str
    healthy: bool
    config: str = ""
    labels: dict[str, tuple[str, ...]] = {}
    checks: bool = False


ServerState = Literal["starting", "ready", "exiting"]


class ModelTable(Message, frozen=True):
    """Broker to requesters and observers, whole, on every change. ``revision`` only grows within an epoch.
    ``starting`` ends when every model that is to be loaded at start is READY or has failed."""

    epoch: int
    revision: int
    server: ServerState
    models: tuple[ModelEntry, ...]


class LoadModel(Message, frozen=True):
    """Requester or observer to broker. ``config`` overrides config.pbtxt when not empty (JSON); ``files`` maps
    ``<version>/<file>`` to contents and needs ``config``."""

    call: int
    name: str
    config: str = ""
    files: dict[str, bytes] = {}


class UnloadModel(Message, frozen=True):
    call: int
    name: str
    unload_dependents: bool = False


class AskStatistics(Message, frozen=True):
    """``name`` empty: all models. ``version`` 0: all versions."""

    call: int
    name: str = ""
    version: int = 0


class AskStatus(Message, frozen=True):
    call: int


class AskReady(Message, frozen=True):
    """Requester to broker, about a READY version whose entry says ``checks``. The result is a bool: what its instances
    say of themselves."""

    call: int
    name: str
    version: int


class Answer(Message, frozen=True):
    """Broker's answer to a call. ``result`` is the plain data of the struct that the call documents (statistics:
    list of ``ModelStatistics``; status: ``ServerStatus``; load and unload: None)."""

    call: int
    fault: Fault | None = None
    result: Any = None
