"""``load_model``, ``unload_model`` and ``is_model_ready``: what operators do over HTTP, done by a model."""

from typing import Any

from conch.errors import ConchError, NotFound, NotReady
from conch.messages import LoadModel, UnloadModel
from conch.requester.models import parse_version
from workers.python_utils import asking
from workers.python_utils.failures import TritonModelException
from workers.python_utils.texts import text

_FILE = "file:"


def load_model(model_name: str, config: str = "", files: dict[str, bytes] | None = None) -> None:
    """Waits until the model is ready. Only where models are loaded on demand (``--model-control-mode=explicit``).

    ``config`` (JSON) is used instead of the model's file. ``files`` maps ``file:<version>/<name>`` to contents, which
    make up the whole model; it needs ``config``. A model must not load itself. Raises ``TritonModelException``.
    """
    model_name = text(model_name, "model_name of load_model")
    config = text(config, "config of load_model")
    _call("load model", LoadModel(0, model_name, config, _contents(model_name, files)))


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Returns when no request reaches the model any more. Raises ``TritonModelException``."""
    model_name = text(model_name, "model_name of unload_model")
    _call("unload model", UnloadModel(0, model_name, bool(unload_dependents)))


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """False for an unknown model too. Without a version: any. Raises ``TritonModelException`` for a version that is no
    number."""
    model_name = text(model_name, "model_name of is_model_ready")
    model_version = text(model_version, "model_version of is_model_ready")
    try:
        version = parse_version(model_version) if model_version else -1
        asking.asker().model(model_name, version)
    except (NotFound, NotReady):
        return False
    except ConchError as error:
        raise TritonModelException(f"Failed to check model readiness: {error.message}") from error
    return True


def _call(what: str, message: LoadModel | UnloadModel) -> None:
    try:
        asking.asker().call(message)
    except ConchError as error:
        raise TritonModelException(f"Failed to {what}: {error.message}") from error


def _contents(model_name: str, files: Any) -> dict[str, bytes]:
    if files is None:
        return {}
    if not isinstance(files, dict):
        raise TritonModelException(
            f"failed to load model '{model_name}', files should be a dictionary of file paths and file contents"
        )
    contents = {}
    for path, content in files.items():
        if not isinstance(path, str) or not path.startswith(_FILE):
            raise TritonModelException(
                f"failed to load model '{model_name}': the keys of files begin with '{_FILE}', found {path!r}"
            )
        if not isinstance(content, (bytes, bytearray)):
            raise TypeError(f"load_model expects the contents of files as bytes, got {type(content)} for '{path}'")
        contents[path.removeprefix(_FILE)] = bytes(content)
    return contents
