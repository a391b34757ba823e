"""Every message that crosses a process boundary, as tagged, frozen, array-like MessagePack structs.

There is one union per direction and one typed decoder per union; an unknown kind or a wrong type is refused by the
decoder. Tensors never travel inside a message: a message holds references to shared memory.

Evolution rule: append a field last and give it a default; never reorder, rename a tag or change a type. A change that
an older peer would misread raises ``PROTOCOL_VERSION``, which every HELLO carries and the broker compares.

``docs/design.md`` shows the order in which these messages flow.
"""

from typing import Any, Literal

import msgspec

PROTOCOL_VERSION = 1


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of everything with a tag: the tag is the class name."""


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of what travels inside a message and needs no tag."""


Parameter = bool | int | float | str


# ---------------------------------------------------------------------------------------------- tensor references


class Block(Message, frozen=True, tag="B"):
    """``nbytes`` bytes at ``offset`` of an arena segment.

    ``segment`` is the owner's random 63-bit number of that segment, unique among all processes, so that a reference
    can be passed on. The receiver checks offset and nbytes against the segment's real size before it looks.
    """

    segment: int
    offset: int
    nbytes: int


class ClientRegion(Message, frozen=True, tag="R"):
    """A window of a system shared-memory region that a client registered under ``name``."""

    name: str
    offset: int
    nbytes: int


class CudaBlock(Message, frozen=True, tag="C"):
    """Like ``Block``, in the memory of GPU ``device``; ``handle`` is the 64-byte CUDA IPC handle."""

    handle: bytes
    device: int
    offset: int
    nbytes: int


class CudaRegion(Message, frozen=True, tag="D"):
    """A window of a CUDA region that a client registered under ``name``."""

    name: str
    device: int
    offset: int
    nbytes: int


TensorReference = Block | ClientRegion | CudaBlock | CudaRegion


class TensorDescription(Record, frozen=True):
    """One tensor: protocol ``datatype`` name (``"INT32"``, ``"BYTES"`` …), full ``shape`` including any batch
    dimension, and where its bytes are (BYTES in the length-prefixed wire form)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    reference: TensorReference


class Lease(Record, frozen=True):
    """How the reader of an output block gives it back: store ``number`` into 8-byte ``slot`` of the worker's lease
    page (segment ``page``)."""

    page: int
    slot: int
    number: int


class Fault(Record, frozen=True):
    """An error as data. ``kind`` is the name of a class in ``conch.errors``."""

    kind: str
    message: str


# ------------------------------------------------------------------------------------------------------ requests


class Sequence(Record, frozen=True):
    """``id`` 0 or ``""`` never occurs here: a request outside a sequence has no ``Sequence``."""

    id: int | str
    start: bool
    end: bool


class Parent(Record, frozen=True):
    """The request whose execution sent this one."""

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
    requester could not be reached, which the broker treats as lost.
    """

    epoch: int
    batch: int
    started_ns: int
    infer_start_ns: int
    infer_end_ns: int
    ended_ns: int
    failed: tuple[int, ...] = ()
    undelivered: tuple[int, ...] = ()


class Retired(Message, frozen=True):
    """Broker to requester: no worker reads the inputs of these requests any more, and no answer will come. Sent for
    cancelled requests once their batch is done or when they never ran."""

    ids: tuple[int, ...]


class Lost(Message, frozen=True):
    """Broker to requester: ``worker`` died while it held these requests. The requester first reads what the worker had
    already sent; whatever then has no answer is submitted again with a raised attempt, or answered with ``cause``.

    ``alone``: the request was the only one that the worker held. ``worker`` is empty when a broker's restart lost them
    before any worker had them; such a request is submitted again under the same attempt.
    """

    worker: str
    ids: tuple[int, ...]
    alone: bool
    cause: Fault


class Rejected(Message, frozen=True):
    """Broker to requester: this request will not run. Its inputs are retired."""

    id: int
    attempt: int
    fault: Fault


# ----------------------------------------------------------------------------------------------------- responses


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
    Always sent before the first reference to the segment on the same connection.
    """

    segment: int
    nbytes: int
    lease_page: bool = False


class SegmentRetired(Message, frozen=True):
    """The sender will not refer to this segment again; the receiver unmaps it."""

    segment: int


class Window(Message, frozen=True):
    """Requester to worker: this many more responses of a decoupled request may be sent. Nothing uses it yet."""

    id: int
    credit: int


WorkerToRequester = Link | Responses | SegmentAdded | SegmentRetired
RequesterToWorker = SegmentAdded | SegmentRetired | Window


# -------------------------------------------------------------------------------------------------------- hellos


class Awaited(Record, frozen=True):
    """A request that its requester has submitted and has no final answer for."""

    id: int
    attempt: int
    model: str
    version: int


class RequesterHello(Message, frozen=True):
    """Sent on every (re)connection to a broker, before anything else. ``role`` is shown by ``conch status``."""

    protocol: int
    requester: str
    role: str
    pid: int
    awaited: tuple[Awaited, ...] = ()


class ObserverHello(Message, frozen=True):
    """From ``conch serve`` and ``conch status``: wants the table of models, sends no requests."""

    protocol: int
    pid: int


class Running(Record, frozen=True):
    """A request that a worker holds."""

    requester: str
    id: int
    attempt: int


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


class Welcome(Message, frozen=True):
    """Broker's answer to every HELLO. ``epoch`` is new for each broker process."""

    protocol: int
    epoch: int


class Unwelcome(Message, frozen=True):
    """Broker's answer to a HELLO of another protocol version, or to any message of a peer that has said no HELLO in
    this epoch (``fault`` is None then: say HELLO)."""

    epoch: int
    fault: Fault | None = None


# ------------------------------------------------------------------------------------------------ worker life cycle


class Spawn(Message, frozen=True):
    """Broker to launcher: start a worker process for one model instance.

    ``config`` is the model configuration as JSON. ``complete``: report a completed configuration first and wait for
    ``Configured``. ``model_dir`` is the model's folder, ``version_dir`` the folder of the version. ``backend_config``
    holds the server's ``--backend-config`` settings that apply to this backend.
    """

    worker: str
    model: str
    version: int
    instance: int
    instance_name: str
    kind: str
    device: int
    config: str
    config_hash: str
    complete: bool
    model_dir: str
    version_dir: str
    backend_config: dict[str, str] = {}


class Kill(Message, frozen=True):
    """Broker to launcher: end this worker with SIGKILL. Its death is reported as any other."""

    worker: str


class Spawned(Message, frozen=True):
    worker: str
    pid: int


class Died(Message, frozen=True):
    """Launcher to broker: the process is gone, seen through its pidfd. Exactly one of ``exit_code`` and ``signal`` is
    set, or neither when the launcher had adopted the process and cannot know. ``output_tail`` is the end of what it
    printed."""

    worker: str
    pid: int
    exit_code: int | None
    signal: int | None
    output_tail: str = ""


class SpawnFailed(Message, frozen=True):
    worker: str
    fault: Fault


class Completed(Message, frozen=True):
    """Worker to broker (control): the configuration as the backend completed it, JSON."""

    worker: str
    config: str


class Configured(Message, frozen=True):
    """Broker to worker (control): load the model with this validated configuration."""

    config: str
    config_hash: str


class Ready(Message, frozen=True):
    """Worker to broker, on the data socket: the model is loaded and batches may come."""

    worker: str


class LoadFailed(Message, frozen=True):
    """Worker to broker (control), before it exits: why the model could not be completed or loaded."""

    worker: str
    fault: Fault


class Drain(Message, frozen=True):
    """Broker to worker (control): finish what you hold, finalize the model, exit 0."""


class Forget(Message, frozen=True):
    """Broker to worker (control): this requester is dead. Drop its connection and reclaim what it had leased."""

    requester: str


# --------------------------------------------------------------------------------------------------- models, calls


ModelState = Literal["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]


class ModelEntry(Record, frozen=True):
    """One version of a model as everybody else sees it. ``version`` 0 stands for a model that was never touched or of
    which no version could be determined. ``healthy``: at least one instance can take a batch now or soon (being
    restarted after a crash still counts; backed off does not). ``labels`` maps an output to its label lines."""

    name: str
    version: int
    state: ModelState
    reason: str
    healthy: bool
    config: str = ""
    labels: dict[str, tuple[str, ...]] = {}


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


class Answer(Message, frozen=True):
    """Broker's answer to a call. ``result`` is the plain data of the struct that the call documents (statistics:
    list of ``ModelStatistics``; status: ``ServerStatus``; load and unload: None)."""

    call: int
    fault: Fault | None = None
    result: Any = None


class Duration(Record, frozen=True):
    count: int = 0
    ns: int = 0


class BatchStatistics(Record, frozen=True):
    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class ModelStatistics(Record, frozen=True):
    """Triton's statistics of one model version (inventory 1.12)."""

    name: str
    version: int
    last_inference_ms: int
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration
    cache_miss: Duration
    batches: tuple[BatchStatistics, ...]
    pending_count: int
    failures: dict[str, int] = {}


class InstanceStatus(Record, frozen=True):
    """One model instance. ``state`` is starting, loading, ready, busy, draining, dead or backed-off."""

    model: str
    version: int
    instance: str
    worker: str
    pid: int
    state: str
    restarts: int
    executions: int
    last_error: str = ""


class PeerStatus(Record, frozen=True):
    """A process that said HELLO: a frontend, the launcher, the broker itself."""

    role: str
    pid: int
    inflight: int = 0


class QueueStatus(Record, frozen=True):
    model: str
    version: int
    state: str
    reason: str
    queued: int
    running: int


class ServerStatus(Record, frozen=True):
    epoch: int
    server: ServerState
    started_ms: int
    processes: tuple[PeerStatus, ...]
    models: tuple[QueueStatus, ...]
    instances: tuple[InstanceStatus, ...]


# ------------------------------------------------------------------------------------------------ unions per direction

ToBroker = (
    Request
    | Done
    | Cancel
    | RequesterHello
    | ObserverHello
    | WorkerHello
    | LauncherHello
    | Spawned
    | SpawnFailed
    | Died
    | Completed
    | Ready
    | LoadFailed
    | LoadModel
    | UnloadModel
    | AskStatistics
    | AskStatus
)
ToRequester = Retired | Lost | Rejected | ModelTable | Answer | Welcome | Unwelcome
ToObserver = ModelTable | Answer | Welcome | Unwelcome
ToWorkerData = Batch
ToWorkerControl = Configured | Cancel | Drain | Forget | Welcome | Unwelcome
ToLauncher = Spawn | Kill | Welcome | Unwelcome
