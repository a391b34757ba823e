"""The life of a worker process: broker, launcher and worker."""

from conch.messages.base import Message
from conch.messages.metrics import MetricFamily
from conch.messages.tensors import Fault


class Spawn(Message, frozen=True):
    """Broker to launcher: start a worker process for one model instance.

    ``config`` is the model configuration as JSON. ``complete``: report a completed configuration first and wait for
    ``Configured``. ``model_dir`` is the model's folder, ``version_dir`` the folder of the version. ``backend_config``
    holds the server's ``--backend-config`` settings that apply to this backend. ``backend_dir``: the folder of a
    Python-based backend, whose ``model.py`` runs instead of one of the model's own. ``memory_limit_nbytes``: private
    memory beyond which the launcher ends the worker; 0 for no limit.
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
    backend_dir: str = ""
    memory_limit_nbytes: int = 0


class Kill(Message, frozen=True):
    """Broker to launcher: end this worker with SIGKILL. Its death is reported as any other.

    ``reason``: what it did, as the end of "the worker of instance 'm_0' …". A worker that is killed for one is told to
    show first what it was doing: SIGABRT, and SIGKILL a moment later.
    """

    worker: str
    reason: str = ""


class Preparing(Message, frozen=True):
    """Launcher to broker: the model's own environment is being made or looked at, which may take long. ``Spawned`` or
    ``SpawnFailed`` follows."""

    worker: str


class Spawned(Message, frozen=True):
    worker: str
    pid: int


class Died(Message, frozen=True):
    """Launcher to broker: the process is gone, seen through its pidfd. Exactly one of ``exit_code`` and ``signal`` is
    set, or neither when the launcher had adopted the process and cannot know. ``output_tail`` is the end of what it
    printed. ``reason``: what it was killed for by the launcher, see ``Kill``; empty if it died in another way."""

    worker: str
    pid: int
    exit_code: int | None
    signal: int | None
    output_tail: str = ""
    reason: str = ""


class SpawnFailed(Message, frozen=True):
    """A fault that is not ``Internal`` is the model's: there is no environment for it."""

    worker: str
    fault: Fault


class Completed(Message, frozen=True):
    """Worker to broker (control): the configuration as the backend completed it, JSON. ``ends``: what the model did to
    complete it must not be seen by the model that serves, so the worker waits for ``Drain`` instead of ``Configured``,
    and another process follows once it has ended."""

    worker: str
    config: str
    ends: bool = False


class Configured(Message, frozen=True):
    """Broker to worker (control): load the model with this validated configuration."""

    config: str
    config_hash: str


class Ready(Message, frozen=True):
    """Worker to broker, on the data connection: the model is loaded and batches may come. ``checks``: the model itself
    is to be asked whether it is ready, with ``CheckReady``."""

    worker: str
    checks: bool = False


class CheckReady(Message, frozen=True):
    """Broker to worker (control): ask the model whether it is ready. ``Checked`` follows, unless the worker dies."""

    check: int


class Checked(Message, frozen=True):
    """Worker to broker (control): what the model answered to ``CheckReady``."""

    worker: str
    check: int
    ready: bool


class MetricsReport(Message, frozen=True):
    """Worker to broker (control): all metrics that its model has made, when some have changed, when it is asked with
    ``ReportMetrics``, and before it ends. It replaces the worker's former report."""

    worker: str
    families: tuple[MetricFamily, ...]


class LoadFailed(Message, frozen=True):
    """Worker to broker (control), before it exits: why the model could not be completed or loaded."""

    worker: str
    fault: Fault


class Drain(Message, frozen=True):
    """Broker to worker (control): finish what you hold, finalize the model, exit 0."""


class Forget(Message, frozen=True):
    """Broker to worker (control): this requester is dead. Drop its connection and reclaim what it had leased."""

    requester: str
