"""The variables of a program that runs in an environment."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def activated(environ: Mapping[str, str], folder: Path, foreign: Sequence[str] = ()) -> dict[str, str]:
    """The variables as a shell has them once the environment in ``folder`` is activated, less what would bring in
    another interpreter's modules: ``foreign`` folders are taken out of ``PYTHONPATH``."""
    variables = dict(environ)
    for name in ("PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"):
        variables.pop(name, None)
    variables["VIRTUAL_ENV" if (folder / "pyvenv.cfg").exists() else "CONDA_PREFIX"] = str(folder)
    variables["PATH"] = os.pathsep.join([str(folder / "bin"), environ.get("PATH", os.defpath)])
    entries = [entry for entry in variables.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    kept = [entry for entry in entries if os.path.realpath(entry) not in foreign]
    if kept:
        variables["PYTHONPATH"] = os.pathsep.join(kept)
    return variables


def own_folders() -> tuple[str, ...]:
    """Where this process's modules come from: no place for an environment's interpreter to look."""
    modules = [sys.modules[name] for name in ("conch", "msgspec", "zmq") if name in sys.modules]
    folders = {os.path.realpath(Path(module.__file__).parents[1]) for module in modules if module.__file__}
    return tuple(sorted(folders))
