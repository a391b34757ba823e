"""The life cycle's view of a model: versions, the copy of each that serves, operations waiting for their turn."""

from collections import deque

from broker.lifecycle.instances import Instance
from broker.repository import config_file
from broker.repository.snapshot import Override, Snapshot
from conch.messages import Fault, ModelState
from conch.model_config import ModelConfig

#: fault kind -> how Triton begins a reason
_CODES = {
    "InvalidArgument": "Invalid argument",
    "TooLarge": "Invalid argument",
    "NotFound": "Not found",
    "AlreadyExists": "Already exists",
    "Unsupported": "Unsupported",
    "Unavailable": "Unavailable",
    "NotReady": "Unavailable",
    "Overloaded": "Unavailable",
    "QueueTimeout": "Unavailable",
}


def reason_of(fault: Fault) -> str:
    """A fault as the reason in the repository index: ``Invalid argument: …``."""
    return f"{_CODES.get(fault.kind, 'Internal')}: {fault.message}"


def is_wanted(state: ModelState, reason: str) -> bool:
    """Whether a version in this state is missed if it does not serve: it was to be loaded, and not unloaded since."""
    return state not in ("UNKNOWN", "UNLOADING") and reason != "unloaded"


class Copy:
    """One version of a model as one snapshot describes it, with the instances that run it.

    A reload makes a second copy beside the first. ``config_json`` is final once ``is_complete``. ``reused`` are
    instances of the copy that serves, which join this one when it takes over (a changed instance group).
    """

    __slots__ = (
        "name",
        "version",
        "snapshot",
        "hash",
        "config_json",
        "config",
        "is_complete",
        "instances",
        "reused",
        "state",
        "fault",
        "tries",
    )

    def __init__(self, snapshot: Snapshot, version: int) -> None:
        self.name = snapshot.name
        self.version = version
        self.snapshot = snapshot
        self.hash = snapshot.hashes[version]
        self.config_json = snapshot.config_json
        self.config: ModelConfig = snapshot.config
        self.is_complete = not snapshot.complete
        self.instances = [Instance(number, plan, self) for number, plan in enumerate(snapshot.instances)]
        self.reused: list[Instance] = []
        #: pending, loading, loaded (waits for the other versions), serving, gone
        self.state = "pending"
        self.fault: Fault | None = None
        self.tries = 0

    def configure(self, config_json: str) -> None:
        """The final configuration. Raises ``InvalidArgument`` if it is none."""
        self.config = config_file.decode(config_json)
        self.config_json = config_json
        self.is_complete = True

    def reuse(self, serving: "Copy") -> None:
        """Takes over, on paper, what the serving copy runs and this one needs as well: same kind, same device."""
        spare = list(serving.instances)
        for position, wanted in enumerate(self.instances):
            same = [
                each for each in spare if (each.plan.kind, each.plan.device) == (wanted.plan.kind, wanted.plan.device)
            ]
            if same:
                spare.remove(same[0])
                self.instances[position] = same[0]
                self.reused.append(same[0])

    @property
    def own(self) -> list[Instance]:
        """The instances that no other copy runs."""
        return [instance for instance in self.instances if instance not in self.reused]

    @property
    def checks(self) -> bool:
        return any(instance.checks for instance in self.instances)

    @property
    def healthy(self) -> bool:
        return any(not instance.backed_off for instance in self.instances)


class Slot:
    """One version of a model. ``leaving`` are workers that are not wanted any more and not dead yet."""

    __slots__ = ("version", "state", "reason", "serving", "leaving")

    def __init__(self, version: int) -> None:
        self.version = version
        self.state: ModelState = "UNKNOWN"
        self.reason = ""
        self.serving: Copy | None = None
        self.leaving: set[str] = set()


class Operation:
    """A load or an unload of one model. Operations on a model run one after the other, in the order of arrival.

    ``peer`` is empty when nobody waits. ``snapshot`` is given when the model was polled already. ``copies`` are the
    versions that are being loaded.
    """

    __slots__ = ("number", "name", "load", "peer", "call", "override", "snapshot", "copies")

    def __init__(
        self,
        number: int,
        name: str,
        load: bool,
        peer: str = "",
        call: int = 0,
        override: Override | None = None,
        snapshot: Snapshot | Fault | None = None,
    ) -> None:
        self.number = number
        self.name = name
        self.load = load
        self.peer = peer
        self.call = call
        self.override = override or Override()
        self.snapshot = snapshot
        self.copies: list[Copy] = []


class Model:
    """``poll_reason``: why the model could not even be read, when that is the last thing known about it.
    ``stale_folders``: of file overrides that only workers on their way out still use. ``digest`` and ``backend_dir``
    are those of the last snapshot. ``last_failure``: why the last load failed, if it did."""

    __slots__ = (
        "name",
        "slots",
        "operations",
        "poll_reason",
        "override",
        "stale_folders",
        "digest",
        "backend_dir",
        "last_failure",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.slots: dict[int, Slot] = {}
        self.operations: deque[Operation] = deque()
        self.poll_reason = ""
        self.override = Override()
        self.stale_folders: set[str] = set()
        self.digest = b""
        self.backend_dir = ""
        self.last_failure = ""

    def slot(self, version: int) -> Slot:
        found = self.slots.get(version)
        if found is None:
            found = self.slots[version] = Slot(version)
        return found

    @property
    def serving(self) -> list[Slot]:
        return [slot for slot in self.slots.values() if slot.serving is not None]

    @property
    def wanted(self) -> list[Slot]:
        """Versions that serve, or should."""
        return [slot for slot in self.slots.values() if is_wanted(slot.state, slot.reason)]

    @property
    def leaving(self) -> bool:
        return any(slot.leaving for slot in self.slots.values())

    def is_loading(self, version: int) -> bool:
        """Whether a load of this version is under way."""
        return any(
            copy.version == version and copy.state in ("pending", "loading", "loaded")
            for operation in self.operations
            for copy in operation.copies
        )


def has_changed(model: Model, snapshot: Snapshot | Fault) -> bool:
    """Whether what a poll found differs from what serves, or from why nothing does."""
    if isinstance(snapshot, Fault):
        return not model.serving and model.poll_reason != reason_of(snapshot)
    serving = {slot.version: slot.serving for slot in model.serving if slot.serving is not None}
    if {slot.version for slot in model.wanted} - set(snapshot.versions):
        return True
    for version in snapshot.versions:
        copy = serving.get(version)
        if copy is None:
            if snapshot.fault is None or model.slot(version).reason != reason_of(snapshot.fault):
                return True
        elif (copy.hash, copy.snapshot.config_json) != (snapshot.hashes[version], snapshot.config_json):
            return True
    return False
