"""``breakpoint()`` in models, and a debugger for the models that ``conch serve --debug`` names.

Their first instances listen on a Unix socket in the run directory, where ``conch debug`` attaches a terminal to
pdb; or, given a port, debugpy does, for editors. A model stops at its ``breakpoint()`` and waits there for somebody
to attach; while somebody is attached it also stops at each ``execute``. Everywhere else ``breakpoint()`` says that
nobody can attach, and goes on.
"""

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from conch.messages import Spawn
from conch.run_dir import RunDir
from conch.settings import Settings
from workers.backends.base import LoadError

logger = logging.getLogger("conch.workers.debugging")


def place_of(frame: FrameType) -> str:
    """``model.py:12``"""
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def prepare(spawn: Spawn, settings: Settings) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]] | None:
    """Decides what ``breakpoint()`` does in this process. Returns what the model's ``execute`` is to be wrapped with,
    if anything. Raises ``LoadError`` where the debugger that was asked for is not installed."""
    model = spawn.model
    port = settings.debug_targets.get(model)
    if port is None or spawn.instance != 0:
        if "PYTHONBREAKPOINT" not in os.environ:
            sys.breakpointhook = _nobody_attaches(model, set())
        return None
    if port:
        _listen_with_debugpy(model, port)
        return None
    from workers.pdb_server import PdbServer  # pdb takes a while to import, and few need it

    server = PdbServer(RunDir(settings.run_dir).debug_socket(model), model)
    sys.breakpointhook = server.stop
    return lambda execute: functools.partial(server.run, execute)


def _nobody_attaches(model: str, told: set[str]) -> Callable[..., None]:
    def hook(*_: Any, **__: Any) -> None:
        place = place_of(sys._getframe(1))
        if place not in told:
            told.add(place)
            logger.warning(
                "breakpoint() at %s does nothing: start the server with --debug=%s, then run 'conch debug %s'",
                place,
                model,
                model,
            )

    return hook


def _listen_with_debugpy(model: str, port: int) -> None:
    try:
        debugpy: Any = importlib.import_module("debugpy")
    except ImportError as error:
        raise LoadError(
            f"unable to load model '{model}': --debug with a port needs debugpy in the model's environment; "
            "install it, or leave the port out and use 'conch debug'"
        ) from error
    try:
        debugpy.listen(("127.0.0.1", port), in_process_debug_adapter=True)
    except (OSError, RuntimeError) as error:
        # after a reload: the process that is replaced goes on until this one is ready
        logger.error("debugpy cannot listen on port %s, this process of '%s' has no debugger: %s", port, model, error)
        sys.breakpointhook = _nobody_attaches(model, set())
        return
    logger.info("debugpy listens on 127.0.0.1:%s for '%s'", port, model)

    def hook(*_: Any, **__: Any) -> None:
        if not debugpy.is_client_connected():
            logger.warning("breakpoint() at %s: debugpy waits on port %s", place_of(sys._getframe(1)), port)
            debugpy.wait_for_client()
        debugpy.breakpoint()

    sys.breakpointhook = hook
