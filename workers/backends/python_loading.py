"""The code of a model written in Python: its file, its class, and what is said when it fails."""

import json
import logging
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from conch.model_config import decode_config
from workers import isolation
from workers.backends.base import Instance, LoadError
from workers.python_utils import triton_python_backend_utils as pb_utils

logger = logging.getLogger("conch.workers.backends.python")

_CLASS = "TritonPythonModel"
_MODULE = "triton_python_backend_utils"
#: as in the text of an object that has no other
_ADDRESS = re.compile(r" at 0x[0-9a-f]+>")


class ModelCode:
    """What ``complete_config`` and ``initialized`` raise is a ``LoadError``; ``SystemExit`` passes, and ends the
    worker."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._module: Any = None
        #: the model itself has completed its configuration
        self.has_completed = False

    def complete_config(self) -> str:
        """The configuration's JSON with what ``auto_complete_config`` adds."""
        complete = getattr(self._import_class(), "auto_complete_config", None)
        if complete is None:
            return self._instance.config
        self.has_completed = True
        completed = self._run(complete, pb_utils.ModelConfig(self._instance.config))
        if not isinstance(completed, pb_utils.ModelConfig):
            raise LoadError(
                f"auto_complete_config function in model '{self._instance.model}' must return a valid pb.ModelConfig "
                "object."
            )
        return json.dumps(completed.as_dict(), separators=(",", ":"))

    def initialized(self, instance: Instance) -> Any:
        """The model's object; ``instance`` holds the completed configuration."""
        self._instance = instance
        model = self._run(self._import_class())
        initialize = getattr(model, "initialize", None)
        if initialize is not None:
            self._run(initialize, _arguments(instance))
        return model

    def _import_class(self) -> Any:
        """The model's class; its file is imported once."""
        instance = self._instance
        file = self._file()
        if self._module is None:
            if not file.is_file():
                raise LoadError(f"Python model file not found in '{self.shown(str(file))}'")
            sys.modules[_MODULE] = sys.modules["c_python_backend_utils"] = pb_utils
            pb_utils._set_model_dir(instance.version_dir)
            isolation.step_aside()
            if instance.backend_dir:
                self._module = self._run(isolation.import_model, file, "", [instance.backend_dir])
            else:
                folders = [instance.version_dir, instance.model_dir]
                self._module = self._run(isolation.import_model, file, str(instance.version), folders)
        if not hasattr(self._module, _CLASS):
            raise LoadError(
                f"unable to load model '{instance.model}': '{self.shown(str(file))}' has no class '{_CLASS}'"
            )
        return getattr(self._module, _CLASS)

    def _file(self) -> Path:
        if self._instance.backend_dir:
            return Path(self._instance.backend_dir, "model.py")
        name = decode_config(self._instance.config).default_model_filename or "model.py"
        return Path(self._instance.version_dir, name)

    def _run(self, function: Any, *arguments: Any) -> Any:
        """Calls the model's code. Raises ``LoadError`` with the exception's text and where it came from."""
        try:
            return function(*arguments)
        except LoadError:
            raise
        except Exception as error:
            logger.exception("cannot load '%s'", self._instance.name)
            raise LoadError(self.described(error)) from error

    # -------------------------------------------------------------------------------------------------- texts

    def described(self, error: BaseException) -> str:
        """Type, text, and where it was raised, innermost first, as Triton has it; no path above the model's folder."""
        if isinstance(error, SyntaxError):
            file = os.path.basename(error.filename or "")
            return f"{type(error).__name__}: {error.msg} ({file}, line {error.lineno})"
        text = f"{type(error).__name__}: {self._without_folders(str(error)) or '<EMPTY MESSAGE>'}"
        folders = tuple(os.path.join(folder, "") for folder in self._folders())
        frames = [
            f"  {self.shown(frame.filename)}({frame.lineno}): {frame.name}"
            for frame in reversed(traceback.extract_tb(error.__traceback__))
            if frame.filename.startswith(folders)
        ]
        return "\n".join([text, "", "At:", *frames, ""]) if frames else text

    def shown_file(self) -> str:
        """The model's file, as ``shown``."""
        return self.shown(str(self._file()))

    def shown(self, file: str) -> str:
        """A path as clients may see it: from the model's or its backend's folder on."""
        for folder, name in self._folders().items():
            inside = os.path.join(folder, "")
            if file.startswith(inside):
                return f"{name}/{file[len(inside) :]}"
        return os.path.basename(file)

    def _without_folders(self, text: str) -> str:
        """With paths, such as those in the text of an ``OSError``, as ``shown`` has them, and without the addresses of
        objects."""
        for folder, name in self._folders().items():
            text = text.replace(folder, name)
        return _ADDRESS.sub(">", text)

    def _folders(self) -> dict[str, str]:
        """Those that hold the model's code, inner ones first, and what they are called."""
        instance = self._instance
        folders = {
            instance.version_dir: f"{instance.model}/{instance.version}",
            instance.model_dir: instance.model,
        }
        if instance.backend_dir:
            folders[instance.backend_dir] = f"backends/{os.path.basename(instance.backend_dir)}"
        return folders


def _arguments(instance: Instance) -> dict[str, str]:
    """What ``initialize`` is given."""
    return {
        "model_config": instance.config,
        "model_instance_kind": instance.kind.removeprefix("KIND_"),
        "model_instance_name": instance.name,
        "model_instance_device_id": str(instance.device),
        "model_repository": instance.model_dir,
        "model_version": str(instance.version),
        "model_name": instance.model,
    }
