"""Between a worker and a requester, on their SEQPACKET connection."""

from conch.messages.base import Message, Parameter, Record
from conch.messages.tensors import Fault, Lease, TensorDescription


class Response(Record, frozen=True):
    """Worker to requester. Matched by ``(id, attempt)`` and nothing else.

    ``index`` counts the responses of a request from 0; ``final`` is set on the last. All ``outputs`` of a response lie
    in one block, which ``lease`` gives back (None when nothing is to be given back). ``inputs_held``: the model still
    reads the inputs, so they stay until ``Retired``.
    """

    id: int
    attempt: int
    index: int
    final: bool
    outputs: tuple[TensorDescription, ...] = ()
    lease: Lease | None = None
    error: Fault | None = None
    inputs_held: bool = False
    parameters: dict[str, Parameter] = {}


class Responses(Message, frozen=True):
    """All responses that a worker has for one requester at the moment, in order."""

    items: tuple[Response, ...]


class Link(Message, frozen=True):
    """First message on a worker's connection to a requester."""

    protocol: int
    worker: str


class SegmentAdded(Message, frozen=True):
    """The sender's segment, whose descriptor comes with this message as SCM_RIGHTS.

    ``lease_page``: it holds nothing but lease slots and the receiver may write to it; otherwise it is mapped read-only.
    ``client``: it is no segment of the sender's but the memory of a region that a client registered, ``nbytes`` from
    ``offset``; a worker may write to it, and the client may take it away at any moment. Always sent before the first
    reference to the segment on the same connection.
    """

    segment: int
    nbytes: int
    lease_page: bool = False
    client: bool = False
    offset: int = 0


class SegmentRetired(Message, frozen=True):
    """The sender will not refer to this segment again; the receiver unmaps it."""

    segment: int


class Window(Message, frozen=True):
    """Requester to worker: this many more responses of a decoupled request may be sent, because as many have been read
    by whoever asked. How many may be sent before the first ``Window`` is in ``conch.windows``."""

    id: int
    credit: int
