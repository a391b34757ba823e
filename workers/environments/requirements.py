"""An environment made from a list of packages, ``requirements.txt``: once for each list and interpreter."""

import hashlib
import os
import sys
import sysconfig
from pathlib import Path

from workers.environments import interpreters, stamps
from workers.environments.cache import Cache
from workers.environments.failures import EnvironmentFailed, telling

#: part of every key: raised when environments are made in another way
_RECIPE = "1"


def environment(file: Path, cache: Cache) -> Path:
    """The environment's folder. Raises ``EnvironmentFailed``, and ``OSError`` where the file cannot be read."""
    return cache.made(f"requirements-{_digest(file)}", lambda content: _make(content, file))


def _digest(file: Path) -> str:
    """Of everything that pip is told, and of the interpreter that it is for."""
    digest = hashlib.sha256()
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    for text in (_RECIPE, base, sys.version, sysconfig.get_platform()):
        digest.update(text.encode() + b"\0")
    for path in stamps.lists(file):
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _make(content: Path, file: Path) -> None:
    # without a pip of its own, which would take seconds, where the server has one
    by_the_server = interpreters.server_has_pip()
    command = [sys.executable, "-m", "venv", *(["--without-pip"] if by_the_server else []), str(content)]
    status, printed = interpreters.run(command, Path(sys.prefix), content)
    if status != 0:
        raise EnvironmentFailed(f"a virtual environment cannot be made:\n{telling(printed)}")
    python = content / "bin" / "python"
    install = [*interpreters.pip(python, not by_the_server), "install", "-r", str(file)]
    status, printed = interpreters.run(install, content, file.parent)
    if status != 0:
        raise EnvironmentFailed(f"pip cannot install what it lists:\n{telling(printed)}")
