"""Small model configurations and requests that the frontends' tests share."""

import json
from typing import Any

from conch.messages import ModelEntry, ModelTable
from conch.requester.inference import InferenceCall, TensorInput
from conch.requester.models import ModelTableView, ReadyModel

INT32_16 = {"data_type": "TYPE_INT32", "dims": [16]}


def config(name: str = "simple", **fields: Any) -> dict[str, Any]:
    """Two INT32[16] inputs and outputs, batches up to 8, unless ``fields`` say otherwise."""
    return {
        "name": name,
        "platform": "",
        "backend": "python",
        "max_batch_size": 8,
        "input": [{"name": "INPUT0", **INT32_16}, {"name": "INPUT1", **INT32_16}],
        "output": [{"name": "OUTPUT0", **INT32_16}, {"name": "OUTPUT1", **INT32_16}],
        **fields,
    }


def entry(name: str = "simple", version: int = 1, state: Any = "READY", reason: str = "", **fields: Any) -> ModelEntry:
    healthy = fields.pop("healthy", state == "READY")
    is_loaded = state != "UNAVAILABLE"  # unless it keeps crashing, which is a case of its own
    text = json.dumps(config(name, **fields), separators=(",", ":")) if is_loaded else ""
    return ModelEntry(name, version, state, reason, healthy, text)


def table(*entries: ModelEntry, server: Any = "ready", revision: int = 1) -> ModelTable:
    return ModelTable(1, revision, server, entries)


def view(*entries: ModelEntry, server: Any = "ready") -> ModelTableView:
    models = ModelTableView()
    models.update(table(*entries, server=server))
    return models


def model(**fields: Any) -> ReadyModel:
    return view(entry(**fields)).lookup("simple")


def int32(name: str, *shape: int, nbytes: int | None = None) -> TensorInput:
    if nbytes is None:
        nbytes = 4
        for dim in shape:
            nbytes *= dim
    return TensorInput(name, "INT32", shape, bytes(nbytes))


def simple_call(**fields: Any) -> InferenceCall:
    return InferenceCall([int32("INPUT0", 1, 16), int32("INPUT1", 1, 16)], **fields)
