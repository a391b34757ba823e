"""From a requester to the broker, and on to a worker as a batch."""

from conch.messages.base import Message, Parameter, Record
from conch.messages.tensors import Fault, TensorDescription, TensorReference


class Sequence(Record, frozen=True):
    """``id`` 0 or ``""`` never occurs here: a request outside a sequence has no ``Sequence``."""

    id: int | str
    start: bool
    end: bool


class Parent(Record, frozen=True):
    """The request whose execution sent this one, where that is known: the first of the batch that was running."""

    requester: str
    id: int


class OutputTarget(Record, frozen=True):
    """Where a requested output is to be written instead of the worker's arena."""

    name: str
    reference: TensorReference


class Request(Message, frozen=True):
    """Requester to broker, and inside a ``Batch`` broker to worker.

    ``id`` is unique within its requester; ``attempt`` starts at 1 and is raised only by the requester. ``version`` is
    the resolved model version. ``batch_size`` is at least 1. ``shape_key`` is equal for requests that may share a batch
    as far as shapes and optional inputs go. ``deadline`` is on the system-wide monotonic clock in seconds.
    ``timeout_us`` is the client's queue time-out. ``outputs`` empty means all.
    """

    id: int
    attempt: int
    model: str
    version: int
    batch_size: int
    shape_key: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[str, ...] = ()
    client_id: str = ""
    parameters: dict[str, Parameter] = {}
    priority: int = 0
    timeout_us: int = 0
    deadline: float | None = None
    sequence: Sequence | None = None
    parent: Parent | None = None
    depth: int = 0
    trace: str = ""
    targets: tuple[OutputTarget, ...] = ()


class Cancel(Message, frozen=True):
    """Requester to broker, broker to worker: nobody waits for the answer any more. Frees nothing: the inputs stay
    until the final response or ``Retired``, one of which always follows."""

    requester: str
    id: int


class Dispatch(Record, frozen=True):
    """One request of a batch and the requester that the response goes to."""

    requester: str
    request: Request


class Batch(Message, frozen=True):
    """Broker to worker: run these together. A worker drops a batch of another broker's ``epoch``."""

    epoch: int
    id: int
    items: tuple[Dispatch, ...]


class Done(Message, frozen=True):
    """Worker to broker, once per batch: credit and statistics. It never proves delivery.

    Times are on the monotonic clock in ns: batch taken up, inputs ready, model returned, outputs written.
    ``failed`` holds positions in ``Batch.items`` that were answered with an error; ``undelivered`` those whose
    requester could not be reached, which the broker treats as lost; ``open`` those that the model goes on answering
    after its batch, so that the worker holds them until ``Closed``; ``again`` those that the model wants to be given
    once more (rescheduled).
    """

    epoch: int
    batch: int
    started_ns: int
    infer_start_ns: int
    infer_end_ns: int
    ended_ns: int
    failed: tuple[int, ...] = ()
    undelivered: tuple[int, ...] = ()
    open: tuple[int, ...] = ()
    again: tuple[int, ...] = ()


class Closed(Message, frozen=True):
    """Worker to broker, on the data connection, once for each request that ``Done`` listed as open: the worker holds it
    no more, and nobody there reads its inputs. ``failed`` and ``undelivered`` as in ``Done``."""

    requester: str
    id: int
    attempt: int
    failed: bool = False
    undelivered: bool = False


class Retired(Message, frozen=True):
    """Broker to requester: no worker reads the inputs of these requests any more, and no answer will come. Sent for
    cancelled requests once their batch is done or when they never ran."""

    ids: tuple[int, ...]


class Lost(Message, frozen=True):
    """Broker to requester: ``worker`` died while it held these requests. The requester first reads what the worker had
    already sent; whatever then has no answer is submitted again with a raised attempt, or answered with ``cause``.

    ``alone``: the request was the only one that the worker held. ``worker`` is empty when a broker's restart lost them
    before any worker had them: the requester first reads every worker's connection, and such a request is submitted
    again under the same attempt. ``attempts`` belong to ``ids``; an id whose attempt is not the current one is ignored.
    ``number`` only grows within a broker's epoch, see ``RequesterHello``.
    """

    worker: str
    ids: tuple[int, ...]
    alone: bool
    cause: Fault
    attempts: tuple[int, ...] = ()
    number: int = 0


class Rejected(Message, frozen=True):
    """Broker to requester: this request will not run. Its inputs are retired."""

    id: int
    attempt: int
    fault: Fault
