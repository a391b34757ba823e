"""The worker's second thread: it sleeps on the control socket while the main thread runs the model.

It says HELLO on every connection to a broker, takes orders (``Configured``, ``Cancel``, ``Drain``, ``Forget``), sends
what the main thread posts once a broker has welcomed the worker, and ends the process when nobody is left to use it.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

import zmq

from conch import process
from conch.channels import BadMessage
from conch.channels.zeromq import DealerChannel
from conch.messages import (
    PROTOCOL_VERSION,
    Checked,
    CheckReady,
    Completed,
    LoadFailed,
    MetricsReport,
    ReportMetrics,
    ServerSettings,
    Spawn,
    ToWorkerControl,
    Unwelcome,
    Welcome,
    WorkerHello,
)
from conch.run_dir import RunDir
from workers.metrics_reports import MetricsReports
from workers.readiness import ReadinessChecks
from workers.shared_state import SharedState

logger = logging.getLogger("conch.workers.control")

#: a worker with neither broker nor launcher ends after this
ABANDONED_S = 10.0
#: how long an abandoned worker's model may take to finish what it runs
FINISH_S = 5.0
_LOOK_S = 1.0
#: a connection can be reported before the socket takes messages for it
_RETRY_S = 0.002
#: how long the last message may take to leave the process
_LINGER_MS = 2000

Posted = Completed | LoadFailed | Checked | MetricsReport


class Control(threading.Thread):
    """``post`` is for any thread, ``answer_checks`` and ``close`` for the main thread."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], spawn: Spawn, run_dir: RunDir, shared: SharedState
    ) -> None:
        super().__init__(name="control", daemon=True)
        self._spawn = spawn
        self._run_dir = run_dir
        self._shared = shared
        self._channel: DealerChannel[WorkerHello | Posted, ToWorkerControl] = DealerChannel(
            context, run_dir.broker_socket, b"C" + spawn.worker.encode(), ToWorkerControl
        )
        self._posted: deque[Posted] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._close_by: float | None = None
        self._connected = False
        self._hello_due = False
        self._welcomed = False
        self._abandoned_since: float | None = None
        self._checks: ReadinessChecks | None = None
        self._metrics = MetricsReports(spawn, self._wake_up)

    def answer_checks(self, ask: Callable[[], bool]) -> None:
        """From now on the broker is told what ``ask`` says, which is called on a thread of its own."""
        self._checks = ReadinessChecks(self._spawn.worker, ask, self.post)

    def post(self, message: Posted) -> None:
        """Sends it as soon as a broker has welcomed this worker."""
        self._posted.append(message)
        self._wake_up()

    def _wake_up(self) -> None:
        os.eventfd_write(self._wake, 1)

    def close(self, timeout_s: float) -> None:
        """Waits until everything posted is sent, at most ``timeout_s``, and ends the thread. The socket lingers until
        the context's end."""
        now = time.monotonic()
        report = self._metrics.last(now)
        if report is not None and self._welcomed:
            self._posted.append(report)
        self._close_by = now + timeout_s
        self._wake_up()
        self.join()

    def run(self) -> None:
        poll = select.poll()
        for descriptor in (self._channel.fileno(), self._channel.monitor_fileno(), self._wake):
            poll.register(descriptor, select.POLLIN)
        while not self._finished():
            if not self._work():
                poll.poll(self._timeout_s() * 1000)
            try:
                os.eventfd_read(self._wake)
            except BlockingIOError:
                pass
        self._channel.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._channel.close()  # but not what wakes this thread: others may still post, until the process ends

    def _finished(self) -> bool:
        return self._close_by is not None and (not self._posted or time.monotonic() >= self._close_by)

    def _timeout_s(self) -> float:
        if self._close_by is not None:
            return _RETRY_S
        if self._connected and (self._hello_due or (self._welcomed and self._posted)):
            return _RETRY_S
        if not self._welcomed:
            return _LOOK_S
        report_in_s = self._metrics.wait_s(time.monotonic())
        return 3600.0 if report_in_s is None else report_in_s

    def _work(self) -> bool:
        """False when there is nothing to do without waiting. Drains the edge-triggered socket after every send."""
        worked = False
        for connected in self._channel.connection_changes():
            worked = True
            self._connected = self._hello_due = connected
            self._welcomed = False
            if not connected:
                self._shared.disconnected()
        worked |= self._receive()  # all of it: what a former broker had said counts as heard before the HELLO
        if self._hello_due:
            worked |= self._say_hello()
        if self._welcomed and (report := self._metrics.due(time.monotonic())) is not None:
            self._posted.append(report)
        while self._welcomed and self._posted and self._channel.send_nowait(self._posted[0]):
            self._posted.popleft()
            worked = True
        worked |= self._receive()
        self._look_for_life()
        return worked

    def _receive(self) -> bool:
        received = False
        while True:
            try:
                message = self._channel.receive_nowait()
            except BadMessage as error:
                logger.error("dropped a message from the broker: %s", error)
                continue
            if message is None:
                return received
            received = True
            self._take(message)

    def _say_hello(self) -> bool:
        spawn = self._spawn
        state, config_hash, running = self._shared.hello()
        hello = WorkerHello(
            PROTOCOL_VERSION,
            spawn.worker,
            os.getpid(),
            spawn.model,
            spawn.version,
            spawn.instance,
            config_hash,
            state,
            running,
        )
        sent = self._channel.send_nowait(hello)
        self._hello_due = not sent
        return sent

    def _take(self, message: ToWorkerControl) -> None:
        match message:
            case Welcome(_, epoch):
                if not self._hello_due:  # or it is a former broker's
                    self._welcomed = True
                    self._shared.welcomed(epoch)
                    self._metrics.repeat()
            case Unwelcome(_, None):
                # in answer to a HELLO that crossed it there is a Welcome on its way
                self._hello_due = self._hello_due or self._welcomed
                self._welcomed = False
            case Unwelcome(_, fault):
                logger.error("the broker refuses this worker: %s", fault and fault.message)
                self._shared.drain()
            case CheckReady(number):
                if self._checks is not None:
                    self._checks.check(number)
            case ReportMetrics():
                self._posted.append(self._metrics.take(time.monotonic()))
            case ServerSettings():
                process.set_logging(message.log)
            case _:
                self._shared.take_order(message)

    def _look_for_life(self) -> None:
        """A worker that nobody can reach any more would keep its memory, and its GPU, for ever."""
        now = time.monotonic()
        run_dir = self._run_dir
        locks = (run_dir.broker_lock, run_dir.launcher_lock)
        if self._connected or any(process.lock_holder(lock) is not None for lock in locks):
            self._abandoned_since = None
        elif self._abandoned_since is None:
            self._abandoned_since = now
        elif now - self._abandoned_since >= ABANDONED_S + FINISH_S:
            logger.error("neither broker nor launcher, and the model does not finish: ending")
            os._exit(1)
        elif now - self._abandoned_since >= ABANDONED_S and not self._shared.draining:
            logger.error("neither broker nor launcher for %.0f s: ending", ABANDONED_S)
            self._shared.drain()
