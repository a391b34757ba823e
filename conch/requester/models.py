"""A requester's view of the models: the broker's latest table, and lookups in it with Triton's words."""

import logging
from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import msgspec

from conch.datatypes import ITEM_SIZES
from conch.errors import InvalidArgument, NotFound, NotReady
from conch.messages import AskReady, ModelEntry, ModelTable, ServerState
from conch.model_config import ModelConfig, ModelInput, decode_config
from conch.readiness import lets_server_be_ready
from conch.refusals import keeps_crashing

if TYPE_CHECKING:
    from conch.requester.shares import Share

logger = logging.getLogger("conch.requester.models")

_MAX_VERSION_DIGITS = 18


class InputRule:
    """What a request's input must look like.

    ``dims`` are without the batch dimension, -1 is variable. ``fixed``: no -1 in them and elements of one size; then
    ``item_nbytes`` is the size of one batch item. ``element_nbytes`` is 0 for BYTES. ``bit`` is this input's in masks.
    ``in_shape_key``: requests with other values for the variable dims cannot share a batch.
    """

    __slots__ = (
        "bit",
        "datatype",
        "dims",
        "element_nbytes",
        "fixed",
        "in_shape_key",
        "item_nbytes",
        "name",
        "optional",
        "variable_axes",
    )

    def __init__(self, config: ModelInput, position: int) -> None:
        self.name = config.name
        self.datatype = config.datatype
        self.dims = tuple(config.dims)
        self.optional = config.optional
        self.bit = 1 << position
        self.element_nbytes = ITEM_SIZES.get(self.datatype, 0)
        self.variable_axes = tuple(axis for axis, dim in enumerate(self.dims) if dim < 0)
        self.fixed = not self.variable_axes and self.element_nbytes > 0
        self.item_nbytes = prod(self.dims) * self.element_nbytes if self.fixed else 0
        self.in_shape_key = bool(self.variable_axes) and not config.allow_ragged_batch


class ReadyModel:
    """One model version that can be asked now, with everything about it that a request needs worked out once.

    ``config_json`` is the configuration as the broker sent it. ``labels`` maps an output to its label lines.
    ``inputs`` and ``output_names`` are in the configuration's order.
    """

    __slots__ = (
        "config",
        "config_json",
        "decoupled",
        "idempotent",
        "inputs",
        "labels",
        "max_batch_size",
        "name",
        "output_names",
        "required_mask",
        "shape_key_rules",
        "share",
        "version",
    )

    def __init__(
        self, name: str, version: int, config: ModelConfig, config_json: str, labels: dict[str, tuple[str, ...]]
    ) -> None:
        self.name = name
        self.version = version
        #: set by the requester, at the first request
        self.share: Share | None = None
        self.config = config
        self.config_json = config_json
        self.labels = labels
        self.idempotent = config.idempotent
        self.decoupled = config.decoupled
        self.max_batch_size = config.max_batch_size
        self.inputs = {found.name: InputRule(found, i) for i, found in enumerate(config.input)}
        self.output_names = {found.name: found for found in config.output}
        self.required_mask = sum(rule.bit for rule in self.inputs.values() if not rule.optional)
        batches = config.max_batch_size > 1
        self.shape_key_rules = tuple(
            rule for rule in self.inputs.values() if batches and (rule.in_shape_key or rule.optional)
        )


class ModelTableView:
    """``update`` swaps the whole table; everything else reads the one it was last given. ``lookup`` is for any thread.

    ``inside``: for a requester that lives in a worker. Its model may finish what it runs while the server exits, so it
    finds others until the end.

    ``broker_absent`` is set by the requester while there has been no broker for longer than a restart takes: the table
    is old then, and the server is not ready. ``known`` is False until the first table has come.
    """

    def __init__(self, inside: bool = False) -> None:
        self._inside = inside
        self.broker_absent = False
        self.known = False
        #: how many tables there have been: whoever keeps what it made of one can see that it is old
        self.updates = 0
        self._epoch = 0
        #: what was READY before the broker was restarted, until the new one has looked at every model
        self._former: dict[tuple[str, int], ModelEntry] = {}
        self._server: ServerState = "starting"
        self._entries: tuple[ModelEntry, ...] = ()
        self._by_name: dict[str, dict[int, ModelEntry]] = {}
        self._ready: dict[tuple[str, int], ReadyModel] = {}
        self._latest: dict[str, ReadyModel] = {}

    def update(self, table: ModelTable) -> None:
        closed = table.server == "exiting" and not self._inside
        by_name: dict[str, dict[int, ModelEntry]] = {}
        ready: dict[tuple[str, int], ReadyModel] = {}
        latest: dict[str, ReadyModel] = {}
        entries = sorted(self._not_forgotten(table), key=lambda entry: (entry.name, entry.version))
        for entry in entries:
            versions = by_name.setdefault(entry.name, {})
            if entry.version > 0:
                versions[entry.version] = entry
            if entry.state != "READY" or closed:
                continue
            model = self._model(entry)
            if model is not None:
                ready[entry.name, entry.version] = model
                latest[entry.name] = model  # versions ascend
        self.updates += 1
        self._server = table.server
        self._entries = tuple(entries)
        self._by_name = by_name
        self._ready = ready
        self._latest = latest
        self.known = True  # last: other threads look things up as soon as it is set

    def _not_forgotten(self, table: ModelTable) -> Sequence[ModelEntry]:
        """The table's entries. Models that a new broker has not come to yet are as they were before: their workers are
        there, and the broker keeps requests for them."""
        if table.epoch != self._epoch:
            self._epoch = table.epoch
            self._former = {(entry.name, entry.version): entry for entry in self._entries if entry.state == "READY"}
        if table.server != "starting":
            self._former = {}
        former = self._former
        if not former:
            return table.models
        names = {name for name, _ in former}
        decided = {
            (entry.name, entry.version): entry
            for entry in table.models
            if entry.state not in ("UNKNOWN", "LOADING")
            or ((entry.name, entry.version) not in former and not (entry.version == 0 and entry.name in names))
        }
        return list((former | decided).values())

    def _model(self, entry: ModelEntry) -> ReadyModel | None:
        known = self._ready.get((entry.name, entry.version))
        if known is not None and known.config_json == entry.config and known.labels == entry.labels:
            return known
        try:
            config = decode_config(entry.config)
        except msgspec.DecodeError as error:
            logger.error("the configuration of '%s' version %s is not usable: %s", entry.name, entry.version, error)
            return None
        return ReadyModel(entry.name, entry.version, config, entry.config, entry.labels)

    def lookup(self, name: str, version: str = "") -> ReadyModel:
        """The model to run; ``version`` as the client wrote it, "" for the highest that is ready.

        Raises ``NotFound``, ``NotReady`` and, for a version that is no number, ``InvalidArgument``.
        """
        if not version:
            model = self._latest.get(name)
            if model is not None:
                return model
        else:
            number = parse_version(version)
            model = self._ready.get((name, number))
            if model is not None:
                return model
        raise self._absent(name, version)

    def _absent(self, name: str, version: str) -> NotFound | NotReady:
        if self._server == "exiting" and not self._inside:
            return NotReady("Server exiting")
        if not self.known:
            return NotReady("the server is starting")
        versions = self._by_name.get(name)
        if self._server == "starting" and not self._inside and not any(map(_has_failed, (versions or {}).values())):
            # clients are there already, so the broker has been restarted: what they ask for may be loaded soon
            return NotReady(f"the server is starting, and has not come to model '{name}' yet; try again")
        if not versions:
            # in the repository but never loaded is unknown too, as in Triton
            return NotFound(f"Request for unknown model: '{name}' is not found")
        crashing = [number for number, entry in versions.items() if _is_backed_off(entry)]
        if not version:
            if crashing:
                return NotReady(keeps_crashing(name, max(crashing)))
            return NotFound(f"Request for unknown model: '{name}' has no available versions")
        number = parse_version(version)
        if number in crashing:
            return NotReady(keeps_crashing(name, number))
        if number in versions:
            return NotReady(f"Request for unknown model: '{name}' version {number} is not at ready state")
        return NotFound(f"Request for unknown model: '{name}' version {number} is not found")

    def ready_versions(self, name: str) -> tuple[int, ...]:
        """All READY versions of a model, ascending; empty for an unknown model."""
        return tuple(version for version in self._by_name.get(name, ()) if (name, version) in self._ready)

    def model_ready(self, name: str, version: str = "") -> bool:
        """READY and healthy. Raises as ``lookup`` does."""
        model = self.lookup(name, version)
        return not self.broker_absent and self._by_name[name][model.version].healthy

    def checks(self, name: str, version: str = "") -> Sequence[AskReady]:
        """What a model that ``model_ready`` is to be asked besides; nothing for most. Raises as ``lookup`` does."""
        model = self.lookup(name, version)
        return [AskReady(0, name, model.version)] if self._by_name[name][model.version].checks else ()

    def server_checks(self, strict: bool) -> Sequence[AskReady]:
        """Likewise for a server that is ready."""
        checked = (entry for entry in self._entries if entry.checks and entry.state == "READY")
        return [AskReady(0, entry.name, entry.version) for entry in checked] if strict else ()

    @property
    def server_state(self) -> ServerState:
        return self._server

    def server_ready(self, strict: bool) -> bool:
        """Inventory 2.6: with ``strict`` every known version is READY and healthy, or was unloaded on purpose."""
        if self._server != "ready" or self.broker_absent:
            return False
        return not strict or all(map(lets_server_be_ready, self._entries))

    def index(self, ready_only: bool = False) -> list[ModelEntry]:
        """What the repository index lists, by name and version. An entry with state UNKNOWN was never touched: only its
        name is shown."""
        return [entry for entry in self._entries if not ready_only or entry.state == "READY"]


def _is_backed_off(entry: ModelEntry) -> bool:
    """Loaded, but its workers die too often: it is started again after a pause."""
    return entry.state == "UNAVAILABLE" and bool(entry.config)


def _has_failed(entry: ModelEntry) -> bool:
    return entry.state == "UNAVAILABLE"


def parse_version(text: str) -> int:
    """Raises ``InvalidArgument`` for what is not a string of decimal digits."""
    if text.isascii() and text.isdigit() and len(text) <= _MAX_VERSION_DIGITS:
        return int(text)
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and digits is not text and len(digits) <= _MAX_VERSION_DIGITS:
        raise InvalidArgument(f"invalid model version specified '{text}' , version should be an integral value > 0")
    raise InvalidArgument(
        f"failed to get model version from specified version string '{text}' (details: stol), version should be an "
        "integral value > 0"
    )
