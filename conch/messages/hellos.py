"""What a process says first on every (re)connection to the broker, and the answer."""

from typing import Literal

from conch.messages.base import Message, Record
from conch.messages.regions import Region
from conch.messages.requests import Parent, Sequence
from conch.messages.tensors import Fault


class Awaited(Record, frozen=True):
    """A request that its requester has submitted and has no final answer for. ``parent`` as in ``Request``."""

    id: int
    attempt: int
    model: str
    version: int
    parent: Parent | None = None


class RequesterHello(Message, frozen=True):
    """Sent on every (re)connection to a broker, before anything else. ``role`` is shown by ``conch status``.

    ``last_loss``: the number of the last ``Lost`` that it has read from the broker of ``epoch``. That broker tells from
    it whether something awaited was submitted again, and lost again, or whether the ``Lost`` is still on its way.

    ``regions``: the clients' regions that it has open (``holder_pid`` is its own), from which a new broker restores its
    registry.

    ``worker``: the worker in which the requester lives, whose model asks other models. Such a requester is told every
    table of models at once, as an observer is, and none of regions.
    """

    protocol: int
    requester: str
    role: str
    pid: int
    awaited: tuple[Awaited, ...] = ()
    epoch: int = 0
    last_loss: int = 0
    regions: tuple[Region, ...] = ()
    worker: str = ""


class ObserverHello(Message, frozen=True):
    """From ``conch serve`` and ``conch status``: wants the table of models, sends no requests."""

    protocol: int
    pid: int


class Running(Record, frozen=True):
    """A request that a worker holds, and the batch it came in: all requests of a batch are listed, in its order.
    ``batch`` 0: it is open, see ``Closed``; its batch is over."""

    requester: str
    id: int
    attempt: int
    epoch: int = 0
    batch: int = 0


WorkerState = Literal["completing", "loading", "ready", "draining"]


class WorkerHello(Message, frozen=True):
    """On the worker's control socket, on every (re)connection. ``running`` is what it has taken up and not reported
    done; batches of an earlier epoch that it has not taken up are dropped, so they are not listed."""

    protocol: int
    worker: str
    pid: int
    model: str
    version: int
    instance: int
    config_hash: str
    state: WorkerState
    running: tuple[Running, ...] = ()
    sequences: tuple[Sequence, ...] = ()


class LiveWorker(Record, frozen=True):
    worker: str
    pid: int
    model: str
    version: int
    instance: int
    config_hash: str


class LauncherHello(Message, frozen=True):
    """Lists every worker process that is alive; what a broker expects and this does not list is dead."""

    protocol: int
    pid: int
    workers: tuple[LiveWorker, ...] = ()


class DataLink(Message, frozen=True):
    """First message on a data connection, which a worker or a requester makes after its ``Welcome``. ``name`` is its
    id."""

    protocol: int
    name: str


class Welcome(Message, frozen=True):
    """Broker's answer to every HELLO. ``epoch`` is new for each broker process."""

    protocol: int
    epoch: int


class Unwelcome(Message, frozen=True):
    """Broker's answer to a HELLO of another protocol version, or to any message of a peer that has said no HELLO in
    this epoch (``fault`` is None then: say HELLO)."""

    epoch: int
    fault: Fault | None = None
