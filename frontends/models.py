"""The frontends' view of the models: the broker's latest table, and lookups in it with Triton's words."""

from conch.messages import ModelEntry, ModelTable, ServerState
from conch.model_config import ModelConfig


class ReadyModel:
    """One model version that can be asked now, with everything about it that a request needs worked out once.

    ``name``, ``version``, ``config`` (typed), ``config_json`` (as the broker sent it), ``labels`` (output name -> lines),
    ``idempotent``, ``decoupled``, ``max_batch_size``.
    """

    name: str
    version: int
    config: ModelConfig
    config_json: str
    labels: dict[str, tuple[str, ...]]
    idempotent: bool
    decoupled: bool
    max_batch_size: int


class ModelTableView:
    """``update`` swaps the whole table; everything else reads the one it was last given."""

    def update(self, table: ModelTable) -> None: ...

    def lookup(self, name: str, version: str = "") -> ReadyModel:
        """The model to run; ``version`` as the client wrote it, "" for the highest that is ready.

        Raises ``NotFound``, ``NotReady`` and, for a version that is no number, ``InvalidArgument``.
        """
        raise NotImplementedError

    def ready_versions(self, name: str) -> tuple[int, ...]:
        """All READY versions of a model, ascending; empty for an unknown model."""
        raise NotImplementedError

    def model_ready(self, name: str, version: str = "") -> bool:
        """READY and healthy. Raises as ``lookup`` does."""
        raise NotImplementedError

    @property
    def server_state(self) -> ServerState:
        raise NotImplementedError

    def server_ready(self, strict: bool) -> bool:
        """Inventory 2.6: with ``strict`` every known version is READY and healthy, or was unloaded on purpose."""
        raise NotImplementedError

    def index(self, ready_only: bool = False) -> list[ModelEntry]:
        """What the repository index lists, in order. An entry with state UNKNOWN was never touched: only its name is
        shown."""
        raise NotImplementedError
