"""What the metadata endpoints answer, as plain data in Triton's key order (inventory H-04, H-05, H-06, H-11)."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conch.errors import InvalidArgument
from conch.model_config import ModelInput, ModelOutput
from conch.requester.models import ModelTableView, parse_version
from conch.settings import Settings

#: the Triton release whose behaviour Conch follows. Clients compare it; Conch's own version is in ``conch --version``.
TRITON_VERSION = "2.73.0"
#: in Triton's order; what is not there or switched off is not listed
_EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)


def server_metadata(settings: Settings) -> dict[str, Any]:
    """``{"name", "version", "extensions"}``."""
    missing = set()
    if not settings.client_shm_allowed:
        missing = {"system_shared_memory", "cuda_shared_memory"}
    elif not cuda_is_here():
        missing = {"cuda_shared_memory"}
    extensions = [extension for extension in _EXTENSIONS if extension not in missing]
    return {"name": settings.server_id, "version": TRITON_VERSION, "extensions": extensions}


def cuda_is_here(devices: Path = Path("/dev")) -> bool:
    """Whether there are a GPU and what it takes to use it, without opening it: that would cost this process hundreds of
    megabytes."""
    try:
        bindings = importlib.util.find_spec("cuda.bindings")
    except ImportError:
        return False
    return bindings is not None and any(devices.glob("nvidia[0-9]*"))


def model_metadata(models: ModelTableView, name: str, version: str = "") -> dict[str, Any]:
    """``{"name", "versions", "platform", "inputs", "outputs"}``. Raises as ``ModelTableView.lookup``."""
    model = models.lookup(name, version)
    config = model.config
    versions = (model.version,) if version else models.ready_versions(name)
    batching = config.max_batch_size > 0
    return {
        "name": model.name,
        "versions": [str(number) for number in versions],
        "platform": config.platform or config.backend,
        "inputs": _tensors(config.input, batching),
        "outputs": _tensors(config.output, batching),
    }


def _tensors(tensors: Iterable[ModelInput | ModelOutput], batching: bool) -> list[dict[str, Any]]:
    return [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": [-1, *tensor.dims] if batching else list(tensor.dims),
        }
        for tensor in tensors
    ]


def model_config_json(models: ModelTableView, name: str, version: str = "") -> str:
    """The normalised configuration, compact JSON, ready to be sent. Raises as ``ModelTableView.lookup``."""
    return models.lookup(name, version).config_json


def repository_index(models: ModelTableView, ready_only: bool = False) -> list[dict[str, str]]:
    """``[{"name"[, "version", "state", "reason"]}]``, all values strings."""
    rows = []
    for entry in models.index(ready_only):
        row = {"name": entry.name}
        if entry.state != "UNKNOWN":
            if entry.version > 0:
                row["version"] = str(entry.version)
            row["state"] = entry.state
            if entry.reason:
                row["reason"] = entry.reason
        rows.append(row)
    return rows


def statistics_version(models: ModelTableView, name: str, version: str) -> int:
    """``version`` for ``AskStatistics``, 0 for all of them. Raises ``InvalidArgument`` for what is not ready."""
    number = parse_version(version) if version else 0
    if name:
        ready = models.ready_versions(name)
        if not ready:
            raise InvalidArgument(f"requested model '{name}' is not available")
        if number and number not in ready:
            raise InvalidArgument(f"requested model version is not available for model '{name}'")
    return number
