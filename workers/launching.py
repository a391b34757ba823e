"""Starts worker processes for the broker, and sees them die.

One poll loop over the broker's socket, the warm template's socket, and one pidfd per worker: a worker's death is an
event of its pidfd and of nothing else. Workers are in sessions of their own and outlive this process; its successor
finds them by the files in ``RUN_DIR/workers``.

On SIGTERM it goes on until the broker is gone or no worker is left, and then ends what still runs. A second SIGTERM
shortens that.
"""

import contextlib
import ctypes
import logging
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Set
from pathlib import Path

import zmq

from conch import process
from conch.channels import BadMessage, ChannelClosed
from conch.channels.seqpacket import MessageTooLong, SeqpacketChannel
from conch.channels.zeromq import DealerChannel
from conch.messages import (
    PROTOCOL_VERSION,
    Died,
    Fault,
    Kill,
    LauncherHello,
    Preparing,
    ServerSettings,
    Spawn,
    Spawned,
    SpawnFailed,
    ToLauncher,
    Unwelcome,
    Welcome,
)
from conch.run_dir import RunDir, new_peer_id
from conch.settings import Settings, withhold_secrets
from shm.sweep import sweep
from workers import deaths, live, memory_limits
from workers.environments.starts import Starts
from workers.live import LiveProcess, Stillborn
from workers.log_bounds import LogBounds
from workers.memory_limits import MemoryLimits
from workers.template_process import TemplateProcess

logger = logging.getLogger("conch.workers.launcher")

_PR_SET_CHILD_SUBREAPER = 36
#: a fork takes milliseconds; a template that has not answered by then never will
SPAWN_TIMEOUT_S = 10.0
#: how long workers may take to finish when nobody is left who drains them
GRACE_S = 5.0
#: after a template that died young, so that a broken installation does not use up a core
TEMPLATE_BACKOFF_S = 1.0
#: how soon to look again at what has no event of its own
_RETRY_S = 0.005
_HANDOVER_ATTEMPTS = 200
_STOP_LOOK_S = 0.1

Report = Preparing | Spawned | SpawnFailed | Died


class Pending:
    """A worker that was asked for. ``sent``: to the present template."""

    def __init__(self, spawn: Spawn) -> None:
        self.spawn = spawn
        self.deadline = time.monotonic() + SPAWN_TIMEOUT_S
        self.sent = False
        self.killed = False


class Template:
    """A running template, and the channel to it."""

    def __init__(self, process: TemplateProcess) -> None:
        self.process = process
        self.channel: SeqpacketChannel[Spawn, Spawned | SpawnFailed] = SeqpacketChannel(
            process.connection, Spawned | SpawnFailed
        )


class Launcher:
    """Takes over ``template``."""

    def __init__(self, settings: Settings, stop: process.StopSignals, template: TemplateProcess) -> None:
        self._settings = settings
        self._stop = stop
        self._poll = select.poll()
        self._run_dir = RunDir(settings.run_dir)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._broker: DealerChannel[LauncherHello | Report, ToLauncher] = DealerChannel(
            self._context, self._run_dir.broker_socket, new_peer_id().encode(), ToLauncher
        )
        self._connected = False
        self._welcomed = False
        self._hello_due = False
        self._reports: deque[Report] = deque()
        self._pending: dict[str, Pending] = {}
        self._live: dict[int, LiveProcess] = {}  # by pidfd
        self._handover_attempts: dict[int, int] = {}  # by pidfd
        self._dead: dict[str, LiveProcess] = {}  # by worker: those whose death is not reported yet
        self._template: Template | None = None
        self._use(template)
        self._template_due = 0.0
        self._template_failure = ""
        self._memory_limits = MemoryLimits()
        self._log_bounds = LogBounds()
        self._environments = Starts(self._poll, self._run_dir, Path(settings.environment_cache))
        self._stop_deadline: float | None = None
        self._terminated = False
        self._again = False
        for descriptor in (self._broker.fileno(), self._broker.monitor_fileno(), stop.fileno()):
            self._poll.register(descriptor, select.POLLIN)
        for worker in live.adopt(self._run_dir):
            logger.info("took over worker %s of '%s', pid %s", worker.file.worker, worker.file.model, worker.file.pid)
            self._watch(worker)

    def run(self) -> None:
        while not self._finished():
            ready = dict(self._poll.poll(self._timeout_s() * 1000))
            self._again = False
            self._stop.take()
            self._receive()
            template = self._template
            if template is not None and template.channel.fileno() in ready and not self._read_template(template):
                self._template_died(template)
            for descriptor in [*self._handover_attempts, *(ready.keys() & self._live.keys())]:
                if descriptor in self._live:
                    self._bury(descriptor)
            self._look_after_environments(ready.keys())
            self._look_at_time()
            self._talk()

    def close(self) -> None:
        for worker in self._live.values():
            os.close(worker.descriptor)
        if self._template is not None:
            self._template.process.close()
        self._environments.stop()
        self._log_bounds.close()
        self._broker.close()
        self._context.term()

    # ------------------------------------------------------------------------------------------------- the broker

    def _receive(self) -> None:
        """Drains the edge-triggered socket whatever is in the messages. Sets ``_again`` if there was anything."""
        for connected in self._broker.connection_changes():
            self._connected = self._hello_due = connected
            self._welcomed = False
            self._again = True
        while True:
            try:
                message = self._broker.receive_nowait()
            except BadMessage as error:
                logger.error("dropped a message from the broker: %s", error)
                continue
            if message is None:
                return
            self._again = True
            match message:
                case Spawn():
                    if not self._environments.takes(message):
                        self._pending[message.worker] = Pending(message)
                case Kill():
                    self._kill(message)
                case Welcome():
                    self._welcomed = not self._hello_due  # or it is a former broker's
                case ServerSettings():
                    process.set_logging(message.log)
                case Unwelcome(fault=None):
                    # in answer to a HELLO that crossed it there is a Welcome on its way
                    self._hello_due = self._hello_due or self._welcomed
                    self._welcomed = False
                case Unwelcome():
                    logger.error("the broker refuses this launcher: %s", message.fault and message.fault.message)

    def _talk(self) -> None:
        """Says HELLO when that is due, and what there is to report once a broker has welcomed us."""
        if self._hello_due:
            # a dead worker whose death has not been reported counts as alive: the report follows, and says how it died
            unreported = [report for report in self._reports if isinstance(report, Died)]
            workers = [worker.file.live_worker for worker in self._live.values()]
            workers += [self._dead[report.worker].file.live_worker for report in unreported]
            if not self._broker.send_nowait(LauncherHello(PROTOCOL_VERSION, os.getpid(), tuple(workers))):
                return
            self._hello_due = False
            self._environments.forget()
        while self._welcomed and self._reports and self._broker.send_nowait(self._reports[0]):
            report = self._reports.popleft()
            if isinstance(report, Died):
                del self._dead[report.worker]
        self._receive()  # a send may have swallowed the descriptor's edge

    def _kill(self, message: Kill) -> None:
        if message.worker in self._pending:
            self._pending[message.worker].killed = True
        self._environments.kill(message.worker)
        for worker in self._live.values():
            if worker.file.worker == message.worker:
                if message.reason:
                    worker.abort(message.reason, time.monotonic())
                else:
                    worker.kill()

    # ----------------------------------------------------------------------------------------------- the template

    def _use(self, process: TemplateProcess) -> None:
        self._template = template = Template(process)
        self._template_failure = ""
        self._poll.register(template.channel.fileno(), select.POLLIN)
        for pending in self._pending.values():
            pending.sent = False

    def _read_template(self, template: Template) -> bool:
        """False once the template is dead and everything that it and its children had sent has been read: no worker
        that it has forked goes unseen, and is started a second time by its successor."""
        while True:
            try:
                received = template.channel.receive_nowait()
            except ChannelClosed:
                return False
            except BadMessage as error:
                logger.error("dropped a message from the template: %s", error)
                continue
            if received is None:
                return True
            message, _ = received
            pending = self._pending.pop(message.worker, None)
            if isinstance(message, SpawnFailed):
                if pending is not None:
                    self._reports.append(message)
            else:
                self._born(message, pending)

    def _look_after_environments(self, ready: Set[int]) -> None:
        for worker in self._environments.advance(ready):
            self._born(worker.message, Pending(worker.spawn))
        self._reports += self._environments.take_reports()

    def _born(self, message: Spawned, pending: Pending | None) -> None:
        try:
            worker = live.born(message.worker, message.pid, self._run_dir)
        except Stillborn as failure:
            logger.error("worker %s, pid %s, cannot be looked after: %s", message.worker, message.pid, failure)
            if pending is not None:
                self._reports.append(_spawn_failed(pending.spawn, str(failure)))
            return
        self._watch(worker)
        if pending is None:  # after its time-out
            logger.error("nobody waits for worker %s any more, pid %s", message.worker, message.pid)
        else:
            logger.info("started worker %s for '%s', pid %s", message.worker, pending.spawn.instance_name, message.pid)
            self._reports.append(message)
        if pending is None or pending.killed:
            worker.kill()

    def _template_died(self, template: Template) -> None:
        self._poll.unregister(template.channel.fileno())
        template.process.close()
        self._template = None
        young = time.monotonic() - template.process.started < TEMPLATE_BACKOFF_S
        self._template_due = time.monotonic() + (TEMPLATE_BACKOFF_S if young else 0.0)
        logger.error("the template ended with status %s; starting another", template.process.popen.returncode)

    def _start_template(self, now: float) -> None:
        try:
            self._use(TemplateProcess())
        except OSError as error:
            self._template_failure = f": {error.strerror}"
            self._template_due = now + TEMPLATE_BACKOFF_S
            logger.error("cannot start the template, which is tried again: %s", error)

    def _send_spawns(self) -> None:
        template = self._template
        if template is None:
            return
        for pending in list(self._pending.values()):
            if pending.sent:
                continue
            try:
                if not template.channel.send_nowait(pending.spawn):
                    return  # its buffer is full: it answers soon, and that wakes us
                pending.sent = True
            except ChannelClosed:
                return
            except MessageTooLong as error:
                self._give_up(pending, f"its configuration is too long: {error}")

    def _give_up(self, pending: Pending, reason: str) -> None:
        del self._pending[pending.spawn.worker]
        self._reports.append(_spawn_failed(pending.spawn, reason))

    # ------------------------------------------------------------------------------------------- life and death

    def _watch(self, worker: LiveProcess) -> None:
        self._live[worker.descriptor] = worker
        self._memory_limits.watch(worker, time.monotonic())
        self._poll.register(worker.descriptor, select.POLLIN)

    def _bury(self, descriptor: int) -> None:
        worker = self._live[descriptor]
        siblings = [each for each in self._live.values() if each.file.model == worker.file.model and each is not worker]
        died = worker.bury(alone=not siblings)
        if died is None:
            attempts = self._handover_attempts[descriptor] = self._handover_attempts.get(descriptor, 0) + 1
            worker.adopted = attempts >= _HANDOVER_ATTEMPTS
            return
        self._poll.unregister(descriptor)
        self._handover_attempts.pop(descriptor, None)
        del self._live[descriptor]
        self._memory_limits.forget(worker)
        deaths.tell(worker.file, died, self._run_dir)
        for sibling in siblings:
            sibling.is_alone()
        self._dead[died.worker] = worker
        self._reports.append(died)
        if died.exit_code != 0:
            with contextlib.suppress(OSError):  # the next one finds it
                sweep()

    def _reap_orphans(self) -> None:
        """Children that workers left behind come to this process as the subreaper; nobody else takes their status."""
        ours = {worker.file.pid for worker in self._live.values()}
        if self._template is not None:
            ours.add(self._template.process.popen.pid)
        ours |= self._environments.pids
        while not self._pending:  # a pending worker could be among them
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid in ours:
                return
            os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)

    # ----------------------------------------------------------------------------------------------------- time

    def _timeout_s(self) -> float:
        now = time.monotonic()
        waits = [60.0]
        if self._again:
            return 0.0
        if self._handover_attempts or (self._connected and (self._hello_due or (self._welcomed and self._reports))):
            waits.append(_RETRY_S)
        if self._template is None:
            waits.append(self._template_due - now)
        waits += [pending.deadline - now for pending in self._pending.values()]
        deadline = self._environments.next_deadline
        if deadline is not None:
            waits.append(deadline - now)
        waits.append(self._memory_limits.next_look - now)
        if self._live:
            waits.append(self._log_bounds.next_look - now)
            waits.append(min(worker.next_signal for worker in self._live.values()) - now)
        if self._stop.received:
            waits.append(_STOP_LOOK_S)
        return max(0.0, min(waits))

    def _look_at_time(self) -> None:
        now = time.monotonic()
        for pending in [pending for pending in self._pending.values() if pending.deadline < now]:
            if pending.sent and self._template is not None:
                self._template.process.abandon()  # the others go to its successor
            self._give_up(pending, f"no answer in {SPAWN_TIMEOUT_S:.0f} s{self._template_failure}")
        if self._template is None and self._template_due <= now:
            self._start_template(now)
        self._send_spawns()
        self._reap_orphans()
        self._look_at_workers(now)

    def _look_at_workers(self, now: float) -> None:
        for worker in self._live.values():
            worker.send_signals(now)
        for worker, memory in self._memory_limits.look(now):
            memory_limits.tell(worker, memory)
            # at once and without a look at its stacks: every millisecond costs memory that others need
            worker.kill(memory_limits.reason(memory, worker.file.memory_limit_nbytes))
        if self._live and self._log_bounds.next_look <= now:
            self._log_bounds.look({self._run_dir.model_log(worker.file.model) for worker in self._live.values()}, now)

    def _finished(self) -> bool:
        """After a stop signal: whether nothing is left to do. Ends the workers when nobody else will."""
        if not self._stop.received:
            return False
        self._environments.stop()
        if not self._live and not self._pending:
            return True
        now = time.monotonic()
        if self._stop_deadline is None:
            self._stop_deadline = now + self._settings.exit_timeout_secs + GRACE_S
        if self._stop.received > 1:
            self._stop_deadline = now
        if not self._terminated and process.lock_holder(self._run_dir.broker_lock) is None:
            # nobody drains them: each finishes what it holds
            self._terminated = True
            self._stop_deadline = min(self._stop_deadline, now + GRACE_S)
            for worker in self._live.values():
                worker.terminate()
        if now >= self._stop_deadline:
            for worker in self._live.values():
                if not worker.killed:
                    logger.error("killed worker %s of '%s'", worker.file.worker, worker.file.model)
                    worker.kill()
        return False


def _spawn_failed(spawn: Spawn, reason: str) -> SpawnFailed:
    return SpawnFailed(spawn.worker, Fault("Internal", f"cannot start a process for '{spawn.instance_name}': {reason}"))


def become_subreaper() -> None:
    """Orphaned descendants become this process's children. Raises ``OSError``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def run(template: TemplateProcess) -> None:
    """The whole life of the launcher. Exits with a message if there is one already."""
    settings = Settings.from_environ()
    withhold_secrets()
    process.begin(settings)
    stop = process.StopSignals(extra=(signal.SIGCHLD,))
    run_dir = RunDir(settings.run_dir)
    run_dir.create()
    try:
        lock = process.hold_lock(run_dir.launcher_lock, f"pid {os.getpid()}")
    except process.LockHeld as held:
        template.close()
        sys.exit(f"another launcher runs here: {held}")
    become_subreaper()
    launcher = Launcher(settings, stop, template)
    try:
        launcher.run()
    finally:
        launcher.close()
        lock.release()
