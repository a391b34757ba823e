"""Other interpreters: what one is, what is installed for it, and running it as its environment wants to be run."""

import importlib.metadata
import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from conch.unreadable import UNREADABLE
from workers.environments.activation import activated, own_folders
from workers.environments.failures import EnvironmentFailed, without_places

logger = logging.getLogger("conch.workers.environments")

OLDEST = (3, 10)
_PROBE_TIMEOUT_S = 60.0
#: of what a program prints, for the reason of its failure
_KEPT_LINES = 200
#: nobody is there to be asked; and what only fits other uses of pip is switched off
_PIP_VARIABLES = {
    "PIP_NO_INPUT": "1",
    "PIP_NO_COLOR": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_REQUIRE_VIRTUALENV": "0",
    "PIP_USER": "0",
}
#: the first pip with ``--python``
_PIP_FOR_OTHERS = (22, 3)

#: runs in any Python 3
_PROBE = """
import importlib.util, json, sys, sysconfig
def version(package):
    try:
        from importlib.metadata import version
        return version(package)
    except Exception:
        return ""
found = {}
for module, package in json.loads(sys.argv[1]).items():
    if importlib.util.find_spec(module) is not None:
        found[package] = version(package)
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "abi": sysconfig.get_config_var("SOABI") or sys.implementation.cache_tag,
    "platform": sysconfig.get_platform(),
    "found": found,
    "pip": importlib.util.find_spec("pip") is not None,
}))
"""


class Interpreter(msgspec.Struct, frozen=True):
    """``abi`` tells builds apart whose compiled modules do not fit each other. ``found``: the version, or "" where it
    is unknown, of each package asked for that is installed."""

    version: tuple[int, int, int]
    abi: str
    platform: str
    found: dict[str, str]
    pip: bool

    @property
    def name(self) -> str:
        return f"Python {self.version[0]}.{self.version[1]}"


def interpreter_of(folder: Path) -> Path | None:
    for name in ("python", "python3"):
        python = folder / "bin" / name
        if python.exists():
            return python
    return None


def probe(python: Path, folder: Path, modules: Mapping[str, str]) -> Interpreter:
    """``modules``: module -> package, of what is to be looked for. Raises ``EnvironmentFailed``."""
    command = [str(python), "-c", _PROBE, msgspec.json.encode(modules).decode()]
    try:
        done = subprocess.run(
            command,
            env=activated(os.environ, folder, own_folders()),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_TIMEOUT_S,
        )
        if done.returncode == 0:
            return msgspec.json.decode(done.stdout.splitlines()[-1], type=Interpreter)
        reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer in {_PROBE_TIMEOUT_S:.0f} s"
    except (OSError, IndexError, *UNREADABLE) as error:
        reason = error.strerror or "" if isinstance(error, OSError) else str(error)
    raise EnvironmentFailed(f"its interpreter does not run: {without_places(reason)}")


def server_has_pip() -> bool:
    """Whether the server's pip can install for other interpreters."""
    try:
        numbers = importlib.metadata.version("pip").split(".")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(int(number) for number in numbers[:2]) >= _PIP_FOR_OTHERS


def pip(python: Path, has_pip: bool) -> list[str]:
    """The command of a pip that installs for ``python``: its own, or else the server's."""
    if has_pip:
        return [str(python), "-m", "pip"]
    return [sys.executable, "-m", "pip", "--python", str(python)]


def run(command: Sequence[str], folder: Path, cwd: Path) -> tuple[int, list[str]]:
    """Runs a program with the environment in ``folder`` activated. What it prints goes to this process's output too.
    Returns its status and the last lines."""
    kept: deque[str] = deque(maxlen=_KEPT_LINES)
    with subprocess.Popen(
        command,
        env={**activated(os.environ, folder, own_folders()), **_PIP_VARIABLES},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.append(line)
    return process.returncode, list(kept)
