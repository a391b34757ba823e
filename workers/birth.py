"""How a new worker process, forked or started, tells the launcher that it lives."""

import contextlib
import logging
import os
import socket
from typing import NoReturn

import msgspec

from conch.messages import Fault, Spawn, Spawned, SpawnFailed
from conch.settings import Settings
from workers import worker

logger = logging.getLogger("conch.workers.birth")

_encode = msgspec.msgpack.Encoder().encode


def live(spawn: Spawn, settings: Settings, launcher: socket.socket, tells: int | None = None) -> NoReturn:
    """The worker's whole life. ``launcher`` is closed once it has been told: a worker that is not reported does not
    live. ``tells``: a pipe that gets a byte then, or when a failure was reported, and is closed as well."""
    try:
        worker.enter(spawn, settings)
        launcher.send(_encode(Spawned(spawn.worker, os.getpid())))
        launcher.close()
    except OSError as error:
        report_failure(launcher, spawn, error, tells)
        os._exit(1)
    _has_told(tells)
    worker.run_and_exit(spawn, settings)


def report_failure(launcher: socket.socket, spawn: Spawn, error: Exception, tells: int | None = None) -> None:
    logger.error("cannot start a process for %s: %s", spawn.instance_name, error)
    reason = error.strerror if isinstance(error, OSError) else error  # without a path: clients read it
    fault = Fault("Internal", f"cannot start a process for '{spawn.instance_name}': {reason}")
    launcher.send(_encode(SpawnFailed(spawn.worker, fault)))
    _has_told(tells)


def _has_told(tells: int | None) -> None:
    if tells is not None:
        with contextlib.suppress(BrokenPipeError):  # the template is dead
            os.write(tells, b".")
        os.close(tells)
