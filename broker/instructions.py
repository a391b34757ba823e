"""What the broker's pure machines (``Lifecycle``, ``Dispatcher``) ask for: the shell carries it out, in order.

The first group leaves the process. The second goes from the life cycle of models to the dispatcher of requests; the
shell passes it on at once, so that both machines agree after every event.
"""

import msgspec

from conch.messages import (
    Answer,
    Batch,
    Cancel,
    CheckReady,
    Configured,
    Drain,
    Fault,
    Forget,
    Kill,
    Lost,
    ModelTable,
    Rejected,
    Retired,
    Spawn,
)
from conch.model_config import ModelConfig


class _Instruction(msgspec.Struct, frozen=True, gc=False):
    pass


class ToPeer(_Instruction, frozen=True):
    """To a requester or an observer, by its id."""

    peer: str
    message: Retired | Lost | Rejected | ModelTable | Answer


class ToData(_Instruction, frozen=True):
    """To a worker's data connection. If the worker cannot be reached, the shell tells ``Dispatcher.unreachable``."""

    worker: str
    message: Batch


class ToControl(_Instruction, frozen=True):
    """To a worker's control socket. ``Drain`` for a worker that was ready comes from the dispatcher only (see
    ``WorkerDraining``), because a batch on the data connection may still be on its way."""

    worker: str
    message: Configured | Cancel | CheckReady | Drain | Forget


class ToLauncher(_Instruction, frozen=True):
    message: Spawn | Kill


class TableChanged(_Instruction, frozen=True):
    """The table of models or the server's state is not what it was: push it to everybody."""


class CallFinished(_Instruction, frozen=True):
    """Answer call ``call`` of ``peer`` (LoadModel, UnloadModel); ``fault`` None is success."""

    peer: str
    call: int
    fault: Fault | None


class ModelReady(_Instruction, frozen=True):
    """Accept requests for this version and schedule them by ``config``. For a version that is known already (reload):
    the queue stays, the configuration is replaced, the statistics start from zero if ``fresh_statistics``."""

    name: str
    version: int
    config: ModelConfig
    fresh_statistics: bool = True


class ModelDraining(_Instruction, frozen=True):
    """Unload: new requests are rejected with ``fault``, what is queued still runs. Each worker gets its ``Drain`` once
    nothing is queued and it holds nothing; the deaths that follow come from the launcher."""

    name: str
    version: int
    fault: Fault


class ModelGone(_Instruction, frozen=True):
    """No worker of this version will come: what is queued is rejected with ``fault``, as is everything after."""

    name: str
    version: int
    fault: Fault


class WorkerReady(_Instruction, frozen=True):
    """This worker takes batches from now on."""

    worker: str
    model: str
    version: int


class WorkerDraining(_Instruction, frozen=True):
    """No more batches for this worker. It gets ``Drain`` as soon as it holds nothing (reload, fewer instances)."""

    worker: str


Instruction = (
    ToPeer
    | ToData
    | ToControl
    | ToLauncher
    | TableChanged
    | CallFinished
    | ModelReady
    | ModelDraining
    | ModelGone
    | WorkerReady
    | WorkerDraining
)
