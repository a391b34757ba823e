"""The warm process that workers are forked from: everything is imported, nothing is open.

A fork copies one thread. Were there others, the worker could inherit their locks in a locked state, so the template has
no ZeroMQ context, no CUDA and no onnxruntime, and looks before each fork that it has one thread.

It talks to the launcher over the socket pair whose descriptor is its argument: ``Spawn`` comes in, ``Spawned`` (sent
by the new worker itself, so that a worker which is not reported does not live) or ``SpawnFailed`` goes out. It forks
twice: the process in between ends at once, which makes the worker a child of the launcher, the nearest subreaper.

``python -m workers.template FD``
"""

import gc
import importlib
import os
import signal
import socket
import sys
from typing import Any

import msgspec

from conch import process
from conch.channels.seqpacket import MAX_MESSAGE_NBYTES
from conch.messages import Spawn
from conch.settings import Settings, withhold_secrets
from workers import birth
from workers.backends.base import backend_class

#: how long without a request before more is imported
_IDLE_S = 0.5
_COMMON_MODULES = ("numpy.random", "asyncio")

_decode = msgspec.msgpack.Decoder(Spawn).decode


def main() -> None:
    settings = Settings.from_environ()
    withhold_secrets()
    process.begin(settings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides when this process ends
    launcher = socket.socket(fileno=int(sys.argv[1]))
    launcher.set_inheritable(False)
    backend_class("python", "")  # the one that most models have
    # BLAS libraries start threads when they are loaded and end them before a fork; they come back when they are needed
    _fork_and_wait(os._exit, 0)
    gc.collect()
    gc.freeze()  # a collection in a worker would otherwise write to, and so copy, every inherited page
    launcher.settimeout(_IDLE_S)
    while True:
        try:
            frame = launcher.recv(MAX_MESSAGE_NBYTES)
        except TimeoutError:
            _warm_up_further()
            launcher.settimeout(None)
            continue
        if not frame:
            return
        spawn = _decode(frame)
        try:
            _assert_single_threaded()
            _make_worker(spawn, settings, launcher)
        except (OSError, RuntimeError) as error:
            birth.report_failure(launcher, spawn, error)


def _warm_up_further() -> None:
    """While there is nothing to do: what models import most, and what would only delay the first workers."""
    for name in _COMMON_MODULES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _fork_and_wait(function: Any, *arguments: Any) -> None:
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        finally:
            os._exit(1)
    os.waitpid(child, 0)


def _assert_single_threaded() -> None:
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"the template has {threads} threads")


def _make_worker(spawn: Spawn, settings: Settings, launcher: socket.socket) -> None:
    """Returns when it has told the launcher that it lives, or why not. Raises ``RuntimeError`` if it has died
    before."""
    told, tells = os.pipe()
    with open(told, "rb") as pipe:
        try:
            _fork_and_wait(_fork_worker, spawn, settings, launcher, told, tells)
        finally:
            os.close(tells)
        if not pipe.read():
            raise RuntimeError("it ended at once")


def _fork_worker(spawn: Spawn, settings: Settings, launcher: socket.socket, told: int, tells: int) -> None:
    """Runs in the process in between, and then in the worker; neither returns from here."""
    os.close(told)
    try:
        child = os.fork()
    except OSError as error:
        birth.report_failure(launcher, spawn, error, tells)
        os._exit(1)
    if child:
        os._exit(0)
    birth.live(spawn, settings, launcher, tells)


if __name__ == "__main__":
    main()
