"""``conch serve``: a whole server in the foreground, with ``tritonserver``'s flags, output and exit codes.

Exit codes: 0 after a graceful stop; 1 for wrong flags, a repository or port that cannot be used, a server that runs
already, a model that fails to load (with ``--exit-on-error``), a stop that ran out of time, a supervisord that died.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import get_args

from conch.cli.family import Family
from conch.cli.flags import HelpWanted, environment, help_text, parse
from conch.cli.ports import CannotServe, probe_ports
from conch.cli.running import describe, server_in
from conch.errors import ConchError, InvalidArgument
from conch.process import Lock, LockHeld, StopSignals, begin, hold_lock
from conch.run_dir import RunDir
from conch.settings import Protocol, Settings

logger = logging.getLogger("conch.cli.serve")


def serve(arguments: Sequence[str]) -> int:
    """Runs until stopped; returns the exit status."""
    _open_standard_files()
    try:
        parsed = parse(arguments, os.environ)
    except HelpWanted:
        print(help_text(), end="")
        return 0
    except InvalidArgument as error:
        print(f"conch serve: {error}", file=sys.stderr)
        return 1
    settings = parsed.settings
    begin(settings)
    for warning in parsed.warnings:
        logger.warning("%s", warning)
    try:
        check_installation()
        check_repositories(settings)
        check_certificates(settings)
        warn_of_models_as_repositories(settings)
        warn_of_a_missing_backend_directory(settings)
        warn_of_a_debugged_model(settings)
        run_dir = RunDir(settings.run_dir)
        run_dir.create()
        lock = _take(run_dir, settings)
        probe_ports(settings)
    except (CannotServe, ConchError, OSError) as error:
        logger.error("%s", error)
        return 1
    signals = StopSignals(hangup=True)
    try:
        # supervisord starts while the rest of this process is still being imported
        family = Family(environment(settings, os.environ), run_dir.logs / "supervisord.log")
        from conch.cli.foreground import Foreground

        return Foreground(settings, run_dir, family, signals).run()
    finally:
        signals.close()
        lock.release()


def _open_standard_files() -> None:
    """Somebody may have closed them: what is opened later must not get their numbers, and with them our output."""
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(opened)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)


def check_installation() -> None:
    """Raises ``CannotServe`` if Conch was found only because ``python -m conch`` was called in a checkout: the other
    processes do not look there."""
    if sys.flags.safe_path or PathFinder.find_spec("conch", sys.path[1:]) is not None:
        return
    others = [finder for finder in sys.meta_path if finder is not PathFinder]  # editable installs have one
    if all(finder.find_spec("conch", None) is None for finder in others):
        checkout = Path(__file__).parents[2]
        raise CannotServe(f"Conch is not installed; do so first: {sys.executable} -m pip install -e {checkout}")


def check_repositories(settings: Settings) -> None:
    """Raises ``CannotServe`` if there is none, or one that is not a readable folder."""
    if not settings.model_repository:
        raise CannotServe("--model-repository must be specified: a folder that holds a folder per model")
    for path in settings.model_repository:
        if not os.path.isdir(path):
            raise CannotServe(
                f"model repository '{path}' {'is no folder' if os.path.exists(path) else 'does not exist'}"
            )
        if not os.access(path, os.R_OK | os.X_OK):
            raise CannotServe(f"model repository '{path}' cannot be read")


def check_certificates(settings: Settings) -> None:
    """Raises ``InvalidArgument`` for files that the frontends could not use either."""
    if settings.http_use_ssl or settings.http_use_ssl_mutual or settings.grpc_use_ssl or settings.grpc_use_ssl_mutual:
        from conch.tls import server_context  # takes a while to import, and few need it

        for protocol in get_args(Protocol):
            if getattr(settings, f"allow_{protocol}"):
                server_context(settings, protocol)


def warn_of_models_as_repositories(settings: Settings) -> None:
    """A slip that would only show as a model named ``1`` that cannot be read."""
    for path in settings.model_repository:
        if os.path.isfile(os.path.join(path, "config.pbtxt")):
            parent = os.path.dirname(os.path.abspath(path))
            logger.warning("'%s' looks like a model; the repository would be the folder around it, '%s'", path, parent)


def warn_of_a_missing_backend_directory(settings: Settings) -> None:
    """No more than that: a command line of Triton's may name the folder of its own backends."""
    if settings.backend_directory and not os.path.isdir(settings.backend_directory):
        logger.warning("there is no folder '%s' with backends (--backend-directory)", settings.backend_directory)


def warn_of_a_debugged_model(settings: Settings) -> None:
    """It may have come in a variable that somebody has forgotten."""
    for model, port in settings.debug_targets.items():
        if port:
            logger.warning("--debug: every user of this machine can run code in '%s' through port %d", model, port)
        else:
            logger.warning("--debug: requests to '%s' wait while it is stopped in the debugger", model)


def _take(run_dir: RunDir, settings: Settings) -> Lock:
    holder = server_in(settings.run_dir)
    try:
        lock = hold_lock(run_dir.serve_lock, describe(settings))
    except LockHeld as error:
        holder = error.text or "a process that is just starting"
    if holder is not None:
        raise CannotServe(
            f"a server runs already in {run_dir.path} ({holder}); stop it, or choose another --http-port and --run-dir"
        )
    return lock
