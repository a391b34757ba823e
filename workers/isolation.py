"""Makes room for a model's own modules: what its folder holds comes first, whatever it is called.

A model may have a ``shm.py`` or a package ``workers`` beside its ``model.py``. Once everything of ours is imported, our
modules leave their names and stay in ``sys.modules`` under a private one. So nothing of ours that runs in a worker may
import another module of ours later, inside a function.
"""

import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

OUR_PACKAGES = ("broker", "conch", "frontends", "shm", "workers")
_PRIVATE = "_conch_of_this_worker."


def step_aside() -> None:
    """Frees the names of our packages, and that of the main module, which is not the model's."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OUR_PACKAGES]:
        sys.modules[_PRIVATE + name] = sys.modules.pop(name)
    sys.modules[f"{_PRIVATE}__main__"] = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    importlib.invalidate_caches()


def import_model(file: Path, package: str, folders: list[str]) -> ModuleType:
    """Imports ``file`` as a module of the package ``package``, which is its folder, so that relative imports work.
    ``folders`` come first in ``sys.path``. Raises whatever the file raises."""
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    if package not in sys.modules:
        _import_package(package, file.parent)
    return _import(f"{package}.{file.stem}", file)


def _import_package(name: str, folder: Path) -> None:
    init = folder / "__init__.py"
    if init.is_file():
        _import(name, init, [str(folder)])
        return
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[name] = importlib.util.module_from_spec(spec)


def _import(name: str, file: Path, folders: list[str] | None = None) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    if spec is None or spec.loader is None:
        raise ImportError(f"Model name must end with '.py'. Model name is \"{file.name}\".")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
