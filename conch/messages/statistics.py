"""Results of the calls that ask for statistics and status."""

from conch.messages.base import Record
from conch.messages.models import ServerState


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
    """One model instance. ``state`` is starting, loading, ready, busy, draining, dead or backed-off. ``busy_s``: how
    long it has run its present batch. ``retry_in_s``: in how long a backed-off one is started again.
    ``since_death_s``: how long ago a worker of it died last, of ``last_error``; None if none has."""

    model: str
    version: int
    instance: str
    worker: str
    pid: int
    state: str
    restarts: int
    executions: int
    last_error: str = ""
    busy_s: float = 0.0
    retry_in_s: float = 0.0
    since_death_s: float | None = None


class PeerStatus(Record, frozen=True):
    """A process that said HELLO: a frontend, the launcher, the broker itself."""

    role: str
    pid: int
    inflight: int = 0


class QueueStatus(Record, frozen=True):
    """One model version. ``ready``: it lets the server be ready, see ``conch.readiness``, and has not said of itself
    that it is not ready. ``in_state_s``: for how long it has been in its ``state``, as far as this broker knows."""

    model: str
    version: int
    state: str
    reason: str
    queued: int
    running: int
    ready: bool = True
    in_state_s: float = 0.0


class ServerStatus(Record, frozen=True):
    epoch: int
    server: ServerState
    started_ms: int
    processes: tuple[PeerStatus, ...]
    models: tuple[QueueStatus, ...]
    instances: tuple[InstanceStatus, ...]
