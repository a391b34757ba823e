"""An environment made from a list of packages, ``requirements.txt``: once for each list and interpreter."""

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from workers.environments import interpreters, stamps
from workers.environments.cache import Cache
from workers.environments.failures import EnvironmentFailed, telling

#: part of every key: raised when environments are made in another way
_RECIPE = "1"
_NO_PLACE = re.compile(r"#.*|\S+://\S+")
_PLACE = re.compile(r"/|^\s*(?:\.|-e|-f|--editable|--find-links)|\.(?:whl|zip|gz)\b", re.MULTILINE)


def environment(file: Path, cache: Cache, check: Callable[[], None]) -> Path:
    """The environment's folder. ``check`` raises ``EnvironmentFailed`` once the file is another one than at the
    beginning. Raises that, and ``OSError`` where the file cannot be read."""

    def make(content: Path) -> None:
        _make(content, file)
        check()

    return cache.made(f"requirements-{_digest(file)}", make)


def _digest(file: Path) -> str:
    """Of everything that pip is told, and of the interpreter that it is for."""
    digest = hashlib.sha256()
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    for text in (_RECIPE, base, sys.version, sysconfig.get_platform()):
        digest.update(text.encode() + b"\0")
    for path in stamps.lists(file):
        content = path.read_bytes()
        digest.update(content + b"\0")
        if _names_a_place(content.decode(errors="replace")):
            digest.update(os.fsencode(file.parent) + b"\0")
    return digest.hexdigest()[:32]


def _names_a_place(text: str) -> bool:
    """Whether packages may lie in the model's folder: the same list in another folder may mean others."""
    return bool(_PLACE.search(_NO_PLACE.sub("", text)))


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
