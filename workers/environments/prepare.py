"""Prepares one environment and says so: ``python -m workers.environments.prepare PREPARATION``.

It is a process of its own because it may take minutes, and runs programs that are not ours. The answer, ``Prepared`` or
``Failed``, goes to descriptor 3; what it prints, and what pip prints, to the model's log.
"""

import hashlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from conch import process
from conch.settings import Settings
from workers.environments import archives, interpreters, overlay, requirements, stamps
from workers.environments.cache import Cache, UnsafeCache
from workers.environments.failures import EnvironmentFailed, telling, without_places
from workers.environments.messages import Failed, Preparation, Prepared

logger = logging.getLogger("conch.workers.environments")

ANSWER_DESCRIPTOR = 3
_RECIPE = "1"
_ATTEMPTS = 3


def prepare(preparation: Preparation) -> Prepared:
    """Begins again when what it is made from changes meanwhile. Raises ``EnvironmentFailed``, ``UnsafeCache`` and
    ``OSError``."""
    attempts_left = _ATTEMPTS
    while True:
        stamp = stamps.now(preparation.wanted)
        attempts_left -= 1
        try:
            return _prepare(preparation, stamp)
        except EnvironmentFailed:
            if not attempts_left or stamps.now(preparation.wanted) == stamp:
                raise
            logger.info("what the environment of '%s' is made from has changed", preparation.model)


def _prepare(preparation: Preparation, stamp: str) -> Prepared:
    wanted = preparation.wanted
    path = Path(wanted.path)
    cache = Cache(Path(preparation.cache_dir))

    def check() -> None:
        stamps.check(wanted, stamp)

    if wanted.kind == "requirements":
        folder = requirements.environment(path, cache, check)
    elif path.is_dir():
        folder = path
    elif path.is_file():
        folder = _unpacked(path, cache, check)
    else:
        raise EnvironmentFailed("there is no such file or folder on the server's machine")
    python = interpreters.interpreter_of(folder)
    if python is None:
        raise EnvironmentFailed(
            "there is no bin/python in it; it must be an environment packed by conda-pack, or the folder of a conda or "
            "virtual environment"
        )
    interpreter = interpreters.probe(python, folder, overlay.MODULES)
    behind = overlay.behind(python, folder, interpreter, cache)
    logger.info("the environment of '%s' runs %s", preparation.model, interpreter.name)
    return Prepared(str(folder), str(python), behind, stamp)


def _unpacked(archive: Path, cache: Cache, check: Callable[[], None]) -> Path:
    with archive.open("rb") as file:
        digest = hashlib.sha256(_RECIPE.encode())
        while block := file.read(1 << 20):
            digest.update(block)

    def make(content: Path) -> None:
        logger.info("Extracting Python execution env %s", archive)
        archives.unpack(archive, content)
        check()
        unpack_paths = content / "bin" / "conda-unpack"
        python = interpreters.interpreter_of(content)
        if python is not None and unpack_paths.exists():
            # the environment's paths are put right for where it lies now
            status, printed = interpreters.run([str(python), str(unpack_paths)], content, content)
            if status != 0:
                raise EnvironmentFailed(f"its conda-unpack fails:\n{telling(printed)}")

    return cache.made(f"archive-{digest.hexdigest()[:32]}", make)


def answer(preparation: Preparation) -> Prepared | Failed:
    """``prepare``, with every failure in words."""
    try:
        return prepare(preparation)
    except OSError as error:
        logger.exception("cannot prepare the environment of '%s'", preparation.model)
        reason = error.strerror or type(error).__name__
    except (EnvironmentFailed, UnsafeCache) as error:
        logger.error("cannot prepare the environment of '%s': %s", preparation.model, error)
        reason = str(error)
    except Exception as error:
        logger.exception("cannot prepare the environment of '%s'", preparation.model)
        reason = f"{type(error).__name__}: {without_places(str(error))}"
    return Failed(reason)


def _end_with_launcher(launcher: int) -> None:
    """Everything that was started for the environment ends with it as well."""

    def end(_number: int, _frame: object) -> None:
        os.killpg(0, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    process.stop_with_parent()
    if os.getppid() != launcher:
        os.killpg(0, signal.SIGKILL)


def main() -> None:
    os.set_inheritable(ANSWER_DESCRIPTOR, False)
    _end_with_launcher(int(sys.argv[1]))
    process.begin(Settings.from_environ())
    found = answer(msgspec.json.decode(sys.argv[2], type=Preparation))
    os.write(ANSWER_DESCRIPTOR, msgspec.json.encode(found))


if __name__ == "__main__":
    main()
