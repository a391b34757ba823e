"""Makes room for a model's own modules: what its folder holds comes first, whatever it is called.

A model may have a ``shm.py`` or a package ``workers`` beside its ``model.py``. Once everything of ours is imported, our
modules leave their names and stay in ``sys.modules`` under a private one. So nothing of ours that runs in a worker may
import another module of ours later, inside a function.
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

OUR_PACKAGES = ("broker", "conch", "frontends", "shm", "workers")
_PRIVATE = "_conch_of_this_worker."
#: the times of files and of bytecode have whole seconds
_SETTLED_S = 2.0


def step_aside() -> None:
    """Frees the names of our packages, and that of the main module, which is not the model's."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OUR_PACKAGES]:
        sys.modules[_PRIVATE + name] = sys.modules.pop(name)
    sys.modules[f"{_PRIVATE}__main__"] = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    sys.argv = [""]  # as under Triton; a model that looks for options would find ours
    importlib.invalidate_caches()


def import_model(file: Path, package: str, folders: list[str]) -> ModuleType:
    """Imports ``file`` as a module of the package ``package``, which is its folder, so that relative imports work; or
    without a package. ``folders`` come first in ``sys.path``. Raises whatever the file raises."""
    sys.path_hooks.insert(0, _finders_in(folders))
    for folder in folders:
        sys.path_importer_cache.pop(folder, None)
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    if not package:
        return _import(file.stem, file)
    if package not in sys.modules:
        _import_package(package, file.parent)
    return _import(f"{package}.{file.stem}", file)


class _Source(importlib.machinery.SourceFileLoader):
    """Keeps no bytecode of a file that was changed just now: Python would take it for that of the next version, if that
    is as long and saved within the same second."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        try:
            settled = time.time() - os.stat(self.path).st_mtime > _SETTLED_S
        except OSError:
            return
        if settled:
            super().set_data(path, data, _mode=_mode)


def _finders_in(folders: list[str]) -> Callable[[str], Any]:
    """A hook for ``sys.path_hooks`` that loads what lies in ``folders`` with ``_Source``."""
    finder = importlib.machinery.FileFinder.path_hook(
        (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES),
        (_Source, importlib.machinery.SOURCE_SUFFIXES),
        (importlib.machinery.SourcelessFileLoader, importlib.machinery.BYTECODE_SUFFIXES),
    )
    inside = tuple(f"{folder}/" for folder in folders)

    def hook(path: str) -> Any:
        if not f"{path}/".startswith(inside):
            raise ImportError("not one of the model's folders")
        return finder(path)

    return hook


def _import_package(name: str, folder: Path) -> None:
    init = folder / "__init__.py"
    if init.is_file():
        _import(name, init, [str(folder)])
        return
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = importlib.util.module_from_spec(spec)


def _import(name: str, file: Path, folders: list[str] | None = None) -> ModuleType:
    if file.suffix != ".py":
        raise ImportError(f"Model name must end with '.py'. Model name is \"{file.name}\".")
    loader = _Source(name, str(file))
    spec = importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=folders)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
