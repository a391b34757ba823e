"""What the metadata endpoints answer, as plain data in Triton's key order (inventory H-04, H-05, H-06, H-11)."""

from typing import Any

from frontends.models import ModelTableView


def server_metadata(server_id: str) -> dict[str, Any]:
    """``{"name", "version", "extensions"}``."""
    raise NotImplementedError


def model_metadata(models: ModelTableView, name: str, version: str = "") -> dict[str, Any]:
    """``{"name", "versions", "platform", "inputs", "outputs"}``. Raises as ``ModelTableView.lookup``."""
    raise NotImplementedError


def model_config_json(models: ModelTableView, name: str, version: str = "") -> str:
    """The normalised configuration, compact JSON, ready to be sent. Raises as ``ModelTableView.lookup``."""
    raise NotImplementedError


def repository_index(models: ModelTableView, ready_only: bool = False) -> list[dict[str, str]]:
    """``[{"name"[, "version", "state", "reason"]}]``, all values strings."""
    raise NotImplementedError
