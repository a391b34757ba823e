"""A worker process: runs one instance of one model.

The main thread, here, takes batches from the data connection, runs the model, and answers requesters directly; then it
tells the broker ``Done``. The control thread (``workers.control``) sleeps on a socket of its own meanwhile. The model's
threads may answer requests too (``workers.replies``): one lock guards what all of them send through.
"""

import atexit
import contextlib
import faulthandler
import logging
import os
import select
import sys
import threading
import time
import traceback
from collections import deque
from typing import NoReturn

import numpy as np
import zmq

from conch import process
from conch.errors import ConchError
from conch.heap import keep_freed_memory
from conch.messages import Batch, Completed, Fault, LoadFailed, Ready, Spawn
from conch.model_config import ModelConfig, decode_config
from conch.run_dir import RunDir
from conch.settings import Settings
from shm.arena import Arena
from shm.leases import LeasedArena
from workers import debugging, endings, output, worker_file
from workers.asking import Asker
from workers.backends.base import Backend, Instance, LoadError, backend_class
from workers.batch import BatchRunner
from workers.broker_link import BrokerLink, Reports
from workers.control import Control
from workers.python_utils.asking import set_asker
from workers.replies import Desk
from workers.responses import Connections
from workers.shared_state import SharedState

logger = logging.getLogger("conch.workers.worker")

_FLUSH_S = 3.0
#: how long a model's ``finalize`` may take, with what it has registered with ``atexit``
FINALIZE_S = 30.0
#: a connection can be reported before the socket takes messages for it
_RETRY_S = 0.002
#: between looks for memory that an idle worker can give back
_IDLE_LOOK_S = 5.0
#: of a process's name, the kernel keeps this many bytes
_COMM_NBYTES = 15


def enter(spawn: Spawn, settings: Settings) -> None:
    """First thing in the new process: a session of its own, output to the model's log, and a file that tells of it."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    endings.get_ready()
    keep_freed_memory()
    run_dir = RunDir(settings.run_dir)
    log_offset = output.redirect(run_dir.model_log(spawn.model))
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as comm:
        comm.write(spawn.instance_name.encode()[:_COMM_NBYTES])
    worker_file.write_own(spawn, log_offset, run_dir)
    if "numpy.random" in sys.modules:
        np.random.seed()  # or all workers would draw the template's numbers


def run_and_exit(spawn: Spawn, settings: Settings) -> NoReturn:
    """Never returns, whatever the model's threads do: they end with the process."""
    code = 1
    try:
        code = Worker(spawn, settings).run()
        atexit._run_exitfuncs()
    except SystemExit as error:
        logger.error("the model ends the process, from here:", exc_info=error)
        # by itself, because the reason that the broker gives quotes the last line
        logger.error("the model ended the process: exit(%s)%s", _shown_code(error.code), _place_of(error))
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _shown_code(code: object) -> str:
    return "" if code is None else repr(code)


def _place_of(error: SystemExit) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    places = [
        f" at {os.path.basename(each.filename)}:{each.lineno}"
        for each in frames
        if "_sitebuiltins" not in each.filename
    ]
    return places[-1] if places else ""


class Worker:
    def __init__(self, spawn: Spawn, settings: Settings) -> None:
        run_dir = RunDir(settings.run_dir)
        self._spawn = spawn
        self._settings = settings
        self._shared = SharedState(spawn.config_hash, "completing" if spawn.complete else "loading")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._control = Control(self._context, spawn, run_dir, self._shared)
        self._poll = select.epoll()  # because other threads than the one that waits add to it
        # a descriptor, because a handler alone would not interrupt a poll that is just about to begin
        self._stop = process.StopSignals()
        for descriptor in (self._shared.wake_main, self._stop.fileno()):
            self._poll.register(descriptor, select.EPOLLIN)
        self._data = BrokerLink(spawn.worker, run_dir, self._poll)
        self._arena = LeasedArena(Arena(settings.worker_arena_nbytes, "output"))
        self._connections = Connections(spawn.worker, run_dir, self._arena, self._poll)
        self._reports = Reports(self._data, self._shared)
        self._lock = threading.RLock()
        self._desk = Desk(self._lock, self._connections, self._arena, self._reports, self._shared)
        self._asker = Asker(run_dir, spawn.worker, settings.worker_arena_nbytes)
        set_asker(self._asker)
        self._in_doubt: deque[Batch] = deque()
        self._ready_due = False
        self._checks = False
        self._welcomes = 0
        self._next_look = 0.0

    def run(self) -> int:
        """The process's exit status."""
        self._control.start()
        try:
            try:
                loaded = self._load()
            except Exception as error:  # whatever a framework raises: it is the reason that the broker waits for
                fault = self._load_fault(error)
                text = fault.message.encode(errors="backslashreplace").decode()  # or it could not be sent
                self._control.post(LoadFailed(self._spawn.worker, Fault(fault.kind, text)))
                return 1
            if loaded is not None:
                backend, config = loaded
                self._serve(backend, config)
                self._shared.become("draining")
                self._finalize(backend)
            return 0
        finally:
            self._close()

    def _finalize(self, backend: Backend) -> None:
        """A model that hangs in there, or later, must not keep its memory for ever, nor the model from being
        unloaded."""
        if backend.stops is None:
            timer = threading.Timer(FINALIZE_S, _abandon, [self._spawn.instance_name])
            timer.daemon = True
            timer.start()
        backend.finalize()

    def _load_fault(self, error: Exception) -> Fault:
        if isinstance(error, ConchError):
            logger.error("%s", error.message)
            return Fault("InvalidArgument" if isinstance(error, LoadError) else type(error).__name__, error.message)
        logger.exception("unable to load '%s'", self._spawn.instance_name)
        text = f"unable to load model '{self._spawn.model}': {type(error).__name__}: {error}"
        return Fault("ModelError", text)

    def _close(self) -> None:
        self._asker.close()
        self._desk.close()
        self._control.close(_FLUSH_S)
        with self._lock:
            self._connections.close()
            self._arena.close()
            self._data.close()
        self._poll.close()
        self._context.term()

    # ----------------------------------------------------------------------------------------------- loading

    def _load(self) -> tuple[Backend, ModelConfig] | None:
        """None if the worker is to end before the model is loaded."""
        spawn = self._spawn
        config = decode_config(spawn.config)
        name = "python" if spawn.backend_dir else config.backend
        backend = backend_class(name, spawn.model, self._settings.backend_directory)(_instance(spawn))
        backend.stops = debugging.prepare(spawn, self._settings)
        if spawn.complete:
            config_json = backend.complete_config()
            configured = self._configured(Completed(spawn.worker, config_json, backend.completes_apart))
            if configured is None:
                return None
            backend.instance = _instance(spawn, configured)
            config = decode_config(configured)
        backend.load()
        self._checks = backend.checks_readiness
        if self._checks:
            self._control.answer_checks(backend.is_ready)
        self._shared.become("ready")
        self._ready_due = self._shared.attention = True
        return backend, config

    def _configured(self, completed: Completed) -> str | None:
        """Waits for the broker's answer; a new broker is told again. None: this process is to end."""
        shared = self._shared
        told = -1
        while shared.configured is None:
            if shared.draining:
                return None
            if shared.epoch is not None and shared.welcomes != told:
                told = shared.welcomes
                self._control.post(completed)
            self._wait(None)
        shared.become("loading", shared.configured.config_hash)
        return shared.configured.config

    # ----------------------------------------------------------------------------------------------- serving

    def _serve(self, backend: Backend, config: ModelConfig) -> None:
        runner = BatchRunner(backend, config, self._desk)
        while (batch := self._next_batch()) is not None:
            runner.run(batch)

    def _next_batch(self) -> Batch | None:
        """Waits for a batch that is to be run; None when the worker is to end."""
        while True:
            if self._shared.attention:
                self._shared.attention = False
                self._attend()
            if self._stop.received:
                self._look_at_signals()
            draining = self._shared.draining  # first: what was sent before ``Drain`` is there by now
            batch = self._data.receive_nowait() or self._decided()
            if batch is not None:
                taken = self._shared.take_up(batch)
                if taken:
                    return batch
                if taken is None:
                    self._in_doubt.append(batch)
            elif draining and not self._shared.attention and self._is_finished():
                return None
            else:
                self._wait(self._idle_s())

    def _is_finished(self) -> bool:
        self._desk.let_go()
        return not self._shared.has_open

    def _decided(self) -> Batch | None:
        """The next batch of those in doubt, if the doubt is over."""
        return self._in_doubt.popleft() if self._in_doubt and self._shared.epoch is not None else None

    def _look_at_signals(self) -> None:
        """Asked to end by whoever started us, because there is no broker that would."""
        if self._stop.take():
            self._shared.draining = True

    def _attend(self) -> None:
        """What there is to do beside batches, when somebody has asked for attention."""
        shared = self._shared
        self._desk.attend()
        while shared.handed_over:
            self._in_doubt.append(shared.handed_over.popleft())
        with self._lock:
            while shared.forgotten:
                self._connections.forget(shared.forgotten.popleft())
            if shared.epoch is None:
                return
            data = self._data
            if shared.welcomes != self._welcomes or not data.connected:
                self._welcomes = shared.welcomes
                self._ready_due = True
            if (
                self._ready_due
                and (data.connected or data.reconnect())
                and data.send_nowait(Ready(self._spawn.worker, self._checks))
            ):
                self._ready_due = False
            self._reports.send_kept()

    def _idle_s(self) -> float | None:
        settled = self._data.connected and not self._ready_due and not self._shared.has_unreported
        if self._shared.epoch is not None and not settled:
            self._shared.attention = True
            return _RETRY_S
        if not self._arena.arena.reserved_nbytes:
            return None
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _IDLE_LOOK_S
            with self._lock:
                self._arena.retire_idle(now)
        return self._next_look - now

    def _wait(self, timeout_s: float | None) -> None:
        """For a batch, a requester's message, or the control thread."""
        for descriptor, _ in self._poll.poll(None if timeout_s is None else max(0.001, timeout_s)):
            if descriptor == self._shared.wake_main:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(descriptor)
            elif descriptor == self._stop.fileno():
                self._look_at_signals()
            else:
                with self._lock:
                    self._connections.read_ready(descriptor)


def _abandon(instance_name: str) -> None:
    logger.error(
        "finalize of '%s' has not come to an end in %.0f s, its process is ended. It was here:",
        instance_name,
        FINALIZE_S,
    )
    faulthandler.dump_traceback()
    os._exit(1)


def _instance(spawn: Spawn, config: str | None = None) -> Instance:
    return Instance(
        model=spawn.model,
        version=spawn.version,
        name=spawn.instance_name,
        kind=spawn.kind,
        device=spawn.device,
        config=spawn.config if config is None else config,
        model_dir=spawn.model_dir,
        version_dir=spawn.version_dir,
        backend_config=spawn.backend_config,
        backend_dir=spawn.backend_dir,
    )
