"""The broker's shell: one thread that moves messages between its sockets and the pure machines.

It sleeps until something comes: a message, a process's death, a signal, the result of file work, or the next timer.
"""

import logging
import select
import time
from pathlib import Path
from typing import Any

import msgspec
import zmq

from broker.exchange import Exchange
from broker.files import FileThread
from broker.lifecycle import DropFolder, FindNames, Lifecycle, Poll, PollAll, Remember, Watch, restore, save
from broker.links import DataLinks
from broker.outlet import Work
from broker.pidfds import Deaths
from broker.region_files import Regions
from broker.repository import BackendSettings, Found, Repository
from broker.repository.overrides import remove_folder, remove_other_folders
from broker.scheduling.dispatcher import Dispatcher
from broker.server_settings import Changed, SettingsKeeper, initial_trace
from conch.channels import BadMessage
from conch.channels.seqpacket import MessageTooLong
from conch.channels.zeromq import RouterChannel
from conch.messages import Batch, Died, Fault, LauncherHello, RequesterHello, ToBroker
from conch.process import StopSignals, keep_what_is_there, log_settings, set_logging
from conch.repeated import Repeated
from conch.run_dir import RunDir, new_peer_id
from conch.settings import Settings
from conch.unreadable import UNREADABLE
from shm.sweep import sweep

logger = logging.getLogger("conch.broker.server")

#: messages handled before batches are formed and other descriptors are looked at
_ROUND = 256
#: how long killed workers may take to be reported dead
_KILL_S = 2.0
#: how long the last messages may take to leave
_LINGER_MS = 500
_UNREADABLE = Fault("Internal", "internal error; the server's log has the details")


class Server:
    """One broker process. ``run`` returns its exit status."""

    def __init__(self, settings: Settings, stop: StopSignals) -> None:
        self._run_dir = run_dir = RunDir(settings.run_dir)
        self._settings = settings
        self._stop = stop
        self._loaded_file = run_dir.loaded
        self._overrides = run_dir.path / "overrides"
        self._repository = Repository(
            settings.model_repository,
            self._overrides,
            auto_complete=not settings.disable_auto_complete_config,
            config_name=settings.model_config_name,
            backend_settings=BackendSettings(settings.backend_config),
            backend_directory=settings.backend_directory,
        )
        self._repository.check()
        memory = restore(run_dir.loaded)
        lifecycle = Lifecycle(
            new_id=new_peer_id,
            control_mode=settings.model_control_mode,
            load_at_start=settings.load_model,
            poll_interval_s=settings.repository_poll_secs,
            parallel_loads=settings.model_load_thread_count,
            load_retries=settings.model_load_retry_count,
            memory=memory,
            watch=settings.watch,
            debugged=settings.debug_targets,
            unload_timeout_s=settings.exit_timeout_secs,
        )
        # greater than that of any broker that ran here before
        epoch = time.monotonic_ns()
        dispatcher = Dispatcher(epoch, time.time_ns() - epoch, settings.debug_targets)
        self._regions = Regions()
        keeper = SettingsKeeper(
            log_settings(settings), initial_trace(settings.trace_config), _read_changed(run_dir.changed_settings)
        )
        set_logging(keeper.log)
        self._exchange = Exchange(
            epoch, dispatcher, lifecycle, self._regions, keeper, self, time.time_ns() // 1_000_000
        )
        self._files = FileThread()
        folders = {load.folder for load in (memory.loads or {}).values()}
        self._files.submit(lambda: remove_other_folders(self._overrides, folders), lambda _: None)
        self._files.submit(sweep, lambda _: None)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._channel: RouterChannel[Any, ToBroker] = RouterChannel(self._context, run_dir.broker_socket, ToBroker)
        self._unreadable = Repeated()
        self._unhandled = Repeated()
        self._exit_by: float | None = None
        self._killed = False
        self._signals = 0
        self._poll = select.epoll()
        self._deaths = Deaths(self._poll)
        self._links = DataLinks(run_dir, self._poll)
        self._links.on_broken = lambda name: self._exchange.data_broken(name, time.monotonic())
        self._router = self._channel.fileno()
        #: the ROUTER may have something: its descriptor said so, or a send may have swallowed that
        self._router_due = True
        for descriptor in (self._router, self._files.fileno(), stop.fileno()):
            self._poll.register(descriptor, select.EPOLLIN)

    def run(self) -> int:
        """Until a stop signal and the end of every worker: 0, or 1 if that took too long."""
        keep_what_is_there()
        self._exchange.start(time.monotonic())
        while True:
            self._round()
            if self._finished():
                break
            self._wait(may_sleep=not self._router_due)
        if self._killed:
            logger.error("Exit timeout expired. Exiting immediately.")
        return 1 if self._killed else 0

    def close(self) -> None:
        self._files.close(timeout_s=1.0)
        self._links.close()
        self._channel.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._channel.close()
        self._context.term()
        self._poll.close()
        self._regions.close()
        self._deaths.close()

    # -------------------------------------------------------------------------------------------------------- the loop

    def _round(self) -> None:
        """Handles what the ROUTER has, up to a bound, and sends what follows from everything that has come."""
        now = time.monotonic()
        if self._router_due:
            self._receive(now)
        self._exchange.flush(now)

    def _receive(self, now: float) -> None:
        receive = self._channel.receive_nowait
        self._router_due = False
        for number in range(_ROUND):
            # after a lone message, the usual case when there is little to do, this is the cheaper question
            if number == 1 and not self._channel.is_readable():
                return
            try:
                received = receive()
                if received is None:
                    return
                peer, message = received
                self._handle(peer, message, now)
            except BadMessage as error:
                if self._unreadable.is_told():
                    logger.error("dropped an unreadable message, the %s. so far: %s", self._unreadable.count, error)
        self._router_due = True

    def _handle(self, peer: bytes, message: ToBroker, now: float) -> None:
        try:
            if isinstance(message, (RequesterHello, Died, LauncherHello)):
                self._hear_all()
            self._exchange.receive(peer, message, now)
        except Exception:  # one peer's message must not end the broker
            self._tell_of_unhandled()
            self._exchange.failed(peer, message)

    def _wait(self, may_sleep: bool) -> None:
        now = time.monotonic()
        wakeup = self._exchange.next_wakeup(now)
        for other in (self._exit_by, self._links.resume_at, self._deaths.retry_at):
            if other is not None and (wakeup is None or other < wakeup):
                wakeup = other
        timeout_s = 0.0 if not may_sleep else None if wakeup is None else max(0.0, wakeup - now)
        for descriptor, _ in self._poll.poll(timeout_s):
            if descriptor == self._router:
                self._router_due = True
                continue
            if (peer := self._deaths.peer(descriptor)) is not None:
                self._died(peer)
            elif descriptor == self._files.fileno():
                self._files.deliver()
            elif descriptor == self._stop.fileno():
                self._look_at_signals(time.monotonic())
            else:
                self._hear(descriptor)
        if wakeup is not None:
            now = time.monotonic()
            if wakeup <= now:
                self._exchange.tick(now)
                if self._links.resume_at is not None and self._links.resume_at <= now:
                    self._links.resume()
                if self._deaths.retry_at is not None and self._deaths.retry_at <= now:
                    for dead in self._deaths.retry(now):
                        self._died(dead)

    def _hear_all(self) -> None:
        """What a peer, or whoever died, had sent on its data connection comes before its HELLO, or its death."""
        for descriptor in self._links.descriptors():
            self._hear(descriptor)

    def _hear(self, descriptor: int) -> None:
        """Takes everything that has come on a data connection."""
        now = time.monotonic()
        for name, message in self._links.receive(descriptor):
            try:
                self._exchange.receive_data(name, message, now)
            except Exception:  # one peer's message must not end the broker
                self._tell_of_unhandled()

    def _tell_of_unhandled(self) -> None:
        if self._unhandled.is_told():
            logger.exception("a message could not be handled, the %s. so far", self._unhandled.count)

    def _look_at_signals(self, now: float) -> None:
        signals = self._stop.take()
        if signals == self._signals:
            return
        self._signals = signals
        if self._exit_by is None:
            logger.info("stopping; up to %s s for requests to finish", self._settings.exit_timeout_secs)
            self._exit_by = now + self._settings.exit_timeout_secs
            self._exchange.exit(now)
        elif not self._killed:
            self._kill(now)

    def _finished(self) -> bool:
        if self._exit_by is None:
            return False
        if self._exchange.drained:
            return True
        now = time.monotonic()
        if now < self._exit_by:
            return False
        if self._killed:
            return True
        self._kill(now)
        return False

    def _kill(self, now: float) -> None:
        self._killed = True
        self._exit_by = now + _KILL_S
        self._exchange.kill_all(now)

    def _died(self, peer: bytes) -> None:
        self._hear_all()
        self._exchange.gone(peer, time.monotonic())
        if peer.isalnum():
            socket = self._run_dir.requester_socket(peer.decode())
            self._files.submit(lambda: _clear_after(socket), lambda _: None)

    # ----------------------------------------------------------------------------------------------- for the exchange

    def send(self, peer: bytes, message: Any) -> bool:
        self._router_due = True
        return self._channel.send_nowait(peer, message)

    def send_batch(self, worker: str, batch: Batch) -> bool:
        try:
            return self._links.send(worker, batch)
        except MessageTooLong:
            return self.send(b"C" + worker.encode(), batch)

    def watch(self, peer: bytes, pid: int) -> None:
        self._deaths.watch(peer, pid, time.monotonic())

    def settings_changed(self, changed: Changed) -> None:
        set_logging(changed.log)
        data = msgspec.json.encode(changed)
        self._files.submit(lambda: _save(self._run_dir.changed_settings, data), lambda _: None)

    def work(self, effect: Work) -> None:
        exchange, repository, submit = self._exchange, self._repository, self._files.submit
        match effect:
            case Poll(operation, name, override):
                submit(
                    lambda: repository.poll(name, override),
                    lambda result: exchange.polled(operation, result, time.monotonic()),
                    _UNREADABLE,
                )
            case PollAll():
                submit(
                    repository.poll_all,
                    lambda result: exchange.polled_all(result[0], result[1], time.monotonic()),
                    (Found((), frozenset()), {}),
                )
            case FindNames():
                submit(
                    repository.find,
                    lambda found: exchange.names_found(found, time.monotonic()),
                    Found((), frozenset(), complete=False),
                )
            case Watch(models):
                submit(
                    lambda: repository.digests(models),
                    lambda digests: exchange.watched(digests, time.monotonic()),
                    {},
                )
            case Remember(data):
                submit(lambda: _save(self._loaded_file, data), lambda _: None)
            case DropFolder(folder):
                submit(lambda: remove_folder(folder), lambda _: None)


def _read_changed(path: Path) -> Changed | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Changed)
    except FileNotFoundError:
        return None
    except (OSError, *UNREADABLE) as error:
        logger.warning("the settings that clients changed cannot be read, those of the flags count: %s", error)
        return None


def _clear_after(socket: Path) -> None:
    """Removes what a requester that was killed could not remove: its socket and its segments."""
    socket.unlink(missing_ok=True)
    sweep()


def _save(path: Path, data: bytes) -> None:
    try:
        save(path, data)
    except OSError as error:
        logger.error("%s could not be written for the next broker: %s", path.name, error)
