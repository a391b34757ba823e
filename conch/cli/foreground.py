"""The running ``conch serve``: waits for the models, says what happened, and stops the server when asked."""

import contextlib
import json
import logging
import math
import os
import select
import signal
import sys
import time
from typing import Any

import zmq

from conch.channels import BadMessage
from conch.channels.zeromq import DealerChannel
from conch.cli.family import Family
from conch.cli.logs import ProcessLogs
from conch.cli.ports import answers
from conch.cli.programs import all_process_names
from conch.cli.tables import model_table
from conch.messages import PROTOCOL_VERSION, ModelTable, ObserverHello, ToObserver
from conch.process import StopSignals, lock_holder
from conch.run_dir import RunDir, new_peer_id
from conch.settings import Settings

logger = logging.getLogger("conch.cli.serve")

#: as Triton calls them, in its order
_SERVICES = {"grpc": "GRPCInferenceService", "http": "HTTPService", "metrics": "Metrics Service"}
#: how often the log files are looked at, and while starting, the ports
_LOOK_SECONDS = 0.25
_STARTING_LOOK_SECONDS = 0.02
#: a program that ends this often before the server is up will not come up
_MAX_EXITS_AT_START = 3
#: for whatever supervisord left behind
_LEFTOVER_GRACE_SECONDS = 3.0
#: after the time to stop is over: enough to remove sockets and segments, not to finish anything
_LAST_WORDS_SECONDS = 1.0
#: what a second signal leaves of the time to stop
_HURRY_SECONDS = 2.0
#: of the models that keep the server from stopping
_MOST_NAMED = 10


class Observer:
    """Listens to the broker until every model is loaded or has failed."""

    def __init__(self, run_dir: RunDir) -> None:
        self._context = zmq.Context()
        self._channel: DealerChannel[Any, Any] = DealerChannel(
            self._context, run_dir.broker_socket, new_peer_id().encode(), ToObserver
        )
        self.table: ModelTable | None = None

    def filenos(self) -> tuple[int, int]:
        return self._channel.fileno(), self._channel.monitor_fileno()

    def look(self) -> bool:
        """Takes what has come; True once the server has ended its start."""
        if True in self._channel.connection_changes():
            self._channel.send_nowait(ObserverHello(PROTOCOL_VERSION, os.getpid()))
        while True:
            try:
                message = self._channel.receive_nowait()
            except BadMessage as error:
                logger.warning("ignored a message of the broker: %s", error)
                continue
            if message is None:
                break
            if isinstance(message, ModelTable):
                self.table = message
        return self.table is not None and self.table.server != "starting"

    def close(self) -> None:
        self._channel.close()
        self._context.term()


class Foreground:
    """One life of a server. ``run`` returns the exit status and leaves no process behind."""

    def __init__(self, settings: Settings, run_dir: RunDir, family: Family, signals: StopSignals) -> None:
        self._settings = settings
        self._run_dir = run_dir
        self._family = family
        self._signals = signals
        self._logs = ProcessLogs(
            run_dir.logs, all_process_names(settings), settings.log_verbose > 0, talkative=settings.watch
        )
        self._observer: Observer | None = Observer(run_dir)
        #: clients may have been told that the server is ready
        self._up = False
        self._stderr = select.poll()
        self._stderr.register(2, select.POLLOUT)
        self._poll = select.poll()
        self._pidfd = os.pidfd_open(family.supervisord)
        for descriptor in (self._signals.fileno(), self._pidfd, *self._observer.filenos()):
            self._poll.register(descriptor, select.POLLIN)

    def run(self) -> int:
        try:
            started = self._start()
            if started and not self._signals.take():
                while self._turn(_LOOK_SECONDS) and not self._signals.take():
                    pass
            return self._stop(0 if started else 1)
        finally:
            self._forget_broker()
            self._family.end(0)
            self._run_dir.clear_sockets(of_broker=True)
            os.close(self._pidfd)

    def _turn(self, seconds: float) -> bool:
        """Waits for something to happen; False when supervisord is dead."""
        self._poll.poll(seconds * 1000)
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in self._stderr.poll(0)):
            self._show_nothing()
        for line in self._logs.take():
            self._show(line.encode() + b"\n")
        return self._family.reap()

    def _show(self, text: bytes) -> None:
        """Writes to stderr, but never waits for whoever reads it: a person who stopped the terminal, or a program that
        does not read, must not keep the server from being stopped. What is not shown is in the log files."""
        for start in range(0, len(text), select.PIPE_BUF):
            if not self._stderr.poll(0):
                return
            try:
                os.write(2, text[start : start + select.PIPE_BUF])
            except OSError:
                self._show_nothing()
                return

    @staticmethod
    def _show_nothing() -> None:
        """The terminal, or the program that was reading, is gone; the server goes on."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)

    # ------------------------------------------------------------------------------------------------------ starting

    def _start(self) -> bool:
        """True once models are loaded and the ports answer, or when a signal came first; False: stop with status 1."""
        assert self._observer is not None
        while not self._observer.look():
            if not self._still_starting():
                return self._signals.received > 0
        table = self._observer.table
        assert table is not None
        self._forget_broker()
        failed = [entry for entry in table.models if entry.state == "UNAVAILABLE" and entry.reason != "unloaded"]
        if self._settings.log_info or failed:
            touched = [entry for entry in table.models if entry.state != "UNKNOWN"]
            try:
                print("\n" + model_table(touched), file=sys.stderr)
            except OSError:
                self._show_nothing()
        if failed and self._settings.exit_on_error and not self._settings.watch:  # they may be mended yet
            logger.error("creating server: Internal - failed to load all models")
            if len(failed) < len(table.models):
                logger.error("--exit-on-error=false would serve the models that have loaded")
            return False
        if not table.models and self._settings.model_control_mode == "none":
            repositories = ", ".join(self._settings.model_repository)
            logger.warning("there is no model in %s; a model is a folder in there, see README.md", repositories)
        endpoints = {endpoint: (address, port) for endpoint, address, port in self._settings.endpoints()}
        for endpoint, title in _SERVICES.items():
            if endpoint not in endpoints:
                continue
            while not answers(*endpoints[endpoint]):
                if not self._still_starting():
                    return self._signals.received > 0
            logger.info("Started %s at %s:%d", title, *endpoints[endpoint])
        self._up = True
        return True

    def _still_starting(self) -> bool:
        alive = self._turn(_STARTING_LOOK_SECONDS)
        for name, exits in self._logs.exits.items():
            if exits >= _MAX_EXITS_AT_START:
                logger.error("%s does not start; its log is in %s", name, self._settings.run_dir + "/logs")
                return False
        return alive and not self._signals.take()

    def _forget_broker(self) -> None:
        if self._observer is not None:
            for descriptor in self._observer.filenos():
                self._poll.unregister(descriptor)
            self._observer.close()
            self._observer = None

    # ------------------------------------------------------------------------------------------------------ stopping

    def _is_led(self) -> bool:
        """Whether there is somebody who ends workers once requests have been answered."""
        return any(lock_holder(lock) is not None for lock in (self._run_dir.broker_lock, self._run_dir.launcher_lock))

    def _stop(self, status: int) -> int:
        if not self._family.reap():
            logger.error("supervisord ended by itself (%s); stopping", self._family.exit_code)
            # its death has told every program to stop; to be told twice would hurry them
            most_s = self._settings.drain_delay_secs + self._settings.exit_timeout_secs
            self._family.wait(most_s, lambda: self._signals.take() or not self._is_led())
            self._family.end(_LEFTOVER_GRACE_SECONDS)
            return 1
        # the signal that led here; any other is one to hurry
        signals_seen = min(1, self._signals.received)
        timeout_s = self._settings.exit_timeout_secs
        delay_s = self._delay_s()
        if delay_s:
            logger.info("Signal received. Not ready any more; serving for %d s, or until a second signal", delay_s)
        elif signals_seen:
            logger.info("Signal received. Waiting up to %d s for requests to finish", timeout_s)
        self._family.stop(signal.SIGTERM if delay_s else signal.SIGINT)
        now = time.monotonic()
        drains_at = now + delay_s
        deadline = drains_at + timeout_s
        next_report = drains_at + 1
        hurried = False
        while self._turn(min(_LOOK_SECONDS, max(0.0, deadline - now))):
            now = time.monotonic()
            if self._signals.take() > signals_seen:
                signals_seen = self._signals.received
                if now < drains_at:
                    logger.info("Waiting up to %d s for requests to finish", timeout_s)
                    self._family.stop(signal.SIGINT)
                    drains_at, deadline, next_report = now, now + timeout_s, now + 1
                else:
                    deadline = min(deadline, now + _HURRY_SECONDS)
                    hurried = True
            if now >= deadline:
                logger.error("Exit timeout expired. Exiting immediately.")
                self._family.end(_LAST_WORDS_SECONDS)
                return 1
            if now >= next_report:
                next_report += 1
                logger.info(
                    "Timeout %d: waiting for requests and models to finish%s",
                    math.ceil(deadline - now),
                    self._who_is_left(signals_seen, hurried),
                )
        if self._family.end(_LEFTOVER_GRACE_SECONDS):
            logger.warning("some processes had to be ended after supervisord")
        return status

    def _delay_s(self) -> int:
        """For how long the server is to go on while it says that it is not ready: nobody waits for that after Ctrl-C,
        and nobody has to be told when it has not started."""
        settings = self._settings
        told = self._up and self._signals.first == signal.SIGTERM and (settings.allow_http or settings.allow_grpc)
        return settings.drain_delay_secs if told else 0

    def _who_is_left(self, signals_seen: int, hurried: bool) -> str:
        """The models that still have processes, for a person who waits, and what would hurry them."""
        models = set()
        for path in self._run_dir.workers.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                models.add(json.loads(path.read_bytes())["model"])
        named = ", ".join(sorted(models)[:_MOST_NAMED]) + (", …" if len(models) > _MOST_NAMED else "")
        which = "a second" if signals_seen == 1 else "another"
        hurry = f"; {which} Ctrl-C leaves them {_HURRY_SECONDS:.0f} s" if signals_seen and not hurried else ""
        return f" ({named}{hurry})" if models else ""
