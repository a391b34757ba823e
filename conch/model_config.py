"""The part of Triton's ModelConfig that Conch acts on, as typed, frozen structs.

The canonical form of a configuration is its normalised JSON (inventory 2.13): the broker makes it from config.pbtxt,
every other process gets the JSON and decodes from it what it needs. Fields not listed here stay in the JSON and reach
the model.
"""

import re
from math import inf

import msgspec

from conch.datatypes import from_config_type
from conch.errors import InvalidArgument

_DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_WHOLE = re.compile(r"[0-9]{1,9}")
#: large models take minutes, but nothing may take forever
_LOAD_TIMEOUT_S = 300.0


class _Part(msgspec.Struct, frozen=True, gc=False):
    pass


class Reshape(_Part, frozen=True):
    shape: tuple[int, ...] = ()


class ModelInput(_Part, frozen=True):
    """``dims`` exclude the batch dimension when ``max_batch_size`` > 0; -1 is variable."""

    name: str
    data_type: str
    dims: tuple[int, ...] = ()
    reshape: Reshape | None = None
    optional: bool = False
    allow_ragged_batch: bool = False

    @property
    def datatype(self) -> str:
        """Protocol name, ``"FP32"``."""
        return from_config_type(self.data_type)


class ModelOutput(_Part, frozen=True):
    name: str
    data_type: str
    dims: tuple[int, ...] = ()
    reshape: Reshape | None = None
    label_filename: str = ""

    @property
    def datatype(self) -> str:
        """Protocol name, ``"FP32"``."""
        return from_config_type(self.data_type)


class QueuePolicy(_Part, frozen=True):
    timeout_action: str = "REJECT"
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


class DynamicBatching(_Part, frozen=True):
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy | None = None
    priority_queue_policy: dict[str, QueuePolicy] = {}


class InstanceGroup(_Part, frozen=True):
    name: str = ""
    kind: str = "KIND_AUTO"
    count: int = 1
    gpus: tuple[int, ...] = ()


class TransactionPolicy(_Part, frozen=True):
    decoupled: bool = False


class StringParameter(_Part, frozen=True):
    string_value: str = ""


class ModelConfig(_Part, frozen=True):
    name: str
    backend: str = ""
    platform: str = ""
    max_batch_size: int = 0
    input: tuple[ModelInput, ...] = ()
    output: tuple[ModelOutput, ...] = ()
    instance_group: tuple[InstanceGroup, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    default_model_filename: str = ""
    model_transaction_policy: TransactionPolicy | None = None
    parameters: dict[str, StringParameter] = {}

    def parameter(self, key: str, default: str = "") -> str:
        """The string value of ``parameters[key]``."""
        found = self.parameters.get(key)
        return found.string_value if found is not None else default

    @property
    def decoupled(self) -> bool:
        return self.model_transaction_policy is not None and self.model_transaction_policy.decoupled

    @property
    def idempotent(self) -> bool:
        """Whether a request that was running when its worker died may be run again. True unless the model's parameter
        ``IDEMPOTENT`` is ``false``. Raises ``InvalidArgument`` for anything else, as the next ones do."""
        text = self.parameter("IDEMPOTENT", "true").strip().lower()
        if text not in ("true", "false"):
            raise InvalidArgument(f"parameter IDEMPOTENT must be true or false, not '{text}'")
        return text == "true"

    @property
    def execution_timeout_s(self) -> float:
        """Parameter ``EXECUTION_TIMEOUT_S``: how long the worker may take for one batch; ``inf`` without it."""
        return self._seconds("EXECUTION_TIMEOUT_S", inf)

    @property
    def load_timeout_s(self) -> float:
        """Parameter ``LOAD_TIMEOUT_S``: from a worker's start until it has to have loaded the model."""
        return self._seconds("LOAD_TIMEOUT_S", _LOAD_TIMEOUT_S)

    @property
    def memory_limit_nbytes(self) -> int:
        """Parameter ``MEMORY_LIMIT_MIB``: how much private memory a worker of the model may have; 0 without it."""
        text = self.parameter("MEMORY_LIMIT_MIB").strip()
        if not text:
            return 0
        if not _WHOLE.fullmatch(text) or not int(text):
            raise InvalidArgument(f"parameter MEMORY_LIMIT_MIB must be a whole number of MiB, not '{text}'")
        return int(text) << 20

    def _seconds(self, key: str, default: float) -> float:
        text = self.parameter(key).strip()
        if not text:
            return default
        if not _DECIMAL.fullmatch(text) or not float(text):
            raise InvalidArgument(f"parameter {key} must be seconds, more than 0, not '{text}'")
        return float(text)


def decode_config(config_json: str) -> ModelConfig:
    """Typed view of a normalised configuration; raises ``msgspec.ValidationError`` if it is none."""
    return msgspec.json.decode(config_json, type=ModelConfig)
