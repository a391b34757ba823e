"""How a new worker process, forked or started, tells the launcher that it lives."""

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


def live(spawn: Spawn, settings: Settings, launcher: socket.socket) -> NoReturn:
    """The worker's whole life. ``launcher`` is closed once it has been told: a worker that is not reported does not
    live."""
    try:
        worker.enter(spawn, settings)
        launcher.send(_encode(Spawned(spawn.worker, os.getpid())))
        launcher.close()
    except OSError as error:
        report_failure(launcher, spawn, error)
        os._exit(1)
    worker.run_and_exit(spawn, settings)


def report_failure(launcher: socket.socket, spawn: Spawn, error: Exception) -> None:
    logger.error("cannot start a process for %s: %s", spawn.instance_name, error)
    reason = error.strerror if isinstance(error, OSError) else error  # without a path: clients read it
    fault = Fault("Internal", f"cannot start a process for '{spawn.instance_name}': {reason}")
    launcher.send(_encode(SpawnFailed(spawn.worker, fault)))
