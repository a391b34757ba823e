"""What a worker needs beside the model's own packages: taken from the environment, or laid behind it.

One folder for each interpreter ABI, made once; NumPy, which most environments have, lies apart. They come last in
``sys.path``, so that whatever the environment has itself is what the model and the worker both use.
"""

import hashlib
import re
import shlex
from pathlib import Path
from typing import Final

from workers.environments import interpreters
from workers.environments.cache import Cache
from workers.environments.failures import EnvironmentFailed, telling
from workers.environments.interpreters import OLDEST, Interpreter

#: module -> package, and the oldest version that works
MODULES: Final = {"zmq": "pyzmq", "msgspec": "msgspec", "posix_ipc": "posix_ipc", "numpy": "numpy"}
OLDEST_VERSIONS: Final = {"pyzmq": (24, 0), "msgspec": (0, 18), "posix_ipc": (1, 0), "numpy": (1, 22)}
_FOLDERS: Final = (("pyzmq", "msgspec", "posix_ipc"), ("numpy",))


def requirement(package: str) -> str:
    """As pip is told."""
    return f"{package}>={'.'.join(str(number) for number in OLDEST_VERSIONS[package])}"


def check(interpreter: Interpreter) -> tuple[str, ...]:
    """The packages that are missing. Raises ``EnvironmentFailed`` where Python or a package is too old: nothing that
    comes behind the environment could help."""
    if interpreter.version[:2] < OLDEST:
        raise EnvironmentFailed(
            f"it is for {interpreter.name}, and workers need Python {OLDEST[0]}.{OLDEST[1]} or newer; "
            "make the environment with a newer one"
        )
    for package, version in interpreter.found.items():
        oldest = OLDEST_VERSIONS[package]
        if version and _numbers(version) < oldest:
            raise EnvironmentFailed(
                f"its {package} {version} is too old for workers; change that to {requirement(package)}, or remove it "
                "where the model does not need it"
            )
    return tuple(package for package in OLDEST_VERSIONS if package not in interpreter.found)


def behind(python: Path, folder: Path, interpreter: Interpreter, cache: Cache) -> tuple[str, ...]:
    """The folders that are to come last in ``sys.path`` of the environment in ``folder``; none where nothing is
    missing. Raises ``EnvironmentFailed``."""
    missing = check(interpreter)
    needed = [packages for packages in _FOLDERS if not set(missing).isdisjoint(packages)]
    found = []
    for packages in needed:
        requirements = [requirement(package) for package in packages]

        def make(content: Path, requirements: list[str] = requirements) -> None:
            command = [*interpreters.pip(python, interpreter.pip), "install", "--target", str(content), *requirements]
            status, printed = interpreters.run(command, folder, content)
            if status != 0:
                wanted = shlex.join(requirement(package) for package in missing)
                raise EnvironmentFailed(
                    f"it lacks {', '.join(missing)}, which workers need, and pip cannot get them for "
                    f"{interpreter.name}:\n{telling(printed)}\n"
                    f"install them into the environment: pip install {wanted}"
                )

        digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:16]
        key = re.sub(r"[^\w.-]", "_", f"overlay-{interpreter.abi}-{interpreter.platform}-{digest}")
        found.append(str(cache.made(key, make)))
    return tuple(found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
