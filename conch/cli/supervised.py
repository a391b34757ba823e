"""What supervisord loads to serve Conch: ``supervisord.conf`` names ``make`` as the factory of an RPC interface.

Two parts. *Importing this module* prepares the run directory, because supervisord offers no other hook before it opens
the log files that lie in there. ``make`` then makes supervisord quick and lets ``conch status`` ask it about restarts.
"""

import atexit
import contextlib
import copy
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from supervisor import events
from supervisor.datatypes import RestartUnconditionally
from supervisor.medusa import asyncore_25 as asyncore
from supervisor.options import SignalReceiver
from supervisor.states import ProcessStates, SupervisorStates, getProcessStateDescription

from conch.cli.flags import environment, parse
from conch.cli.ports import CannotServe, probe_ports
from conch.cli.programs import process_count, process_names
from conch.cli.running import describe
from conch.errors import ConchError
from conch.exits import how_it_ended
from conch.process import DRAIN_SIGNAL, LockHeld, hold_lock, stop_with_parent
from conch.run_dir import RunDir
from conch.settings import Settings

#: a process that lived as long as this is started again at once, a shorter-lived one after a rest
_STABLE_SECONDS = 2.0
#: keeps a process that cannot start from using up a core; with the loop's own second at most 1.8 s
_REST_SECONDS = 0.8
#: added to the time in which every process stops by itself, before supervisord kills it
_STOP_MARGIN_SECONDS = 10
#: the programs that --drain-delay-secs is about
_FRONTENDS = "frontends"


def _prepare() -> Settings:
    os.umask(0o077)
    # the programs run with the interpreter that runs supervisord, whether or not its environment is activated
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", os.defpath)
    try:
        settings = _settings_for_programs()
        if not settings.model_repository:
            raise SystemExit("conch: CONCH_MODEL_REPOSITORY must name a folder of models")
        run_dir = RunDir(settings.run_dir)
        run_dir.create()
        _hold_lock(settings)
        run_dir.changed_settings.unlink(missing_ok=True)
        run_dir.clear_sockets(of_broker=False)
    except (ConchError, CannotServe) as error:
        raise SystemExit(f"conch: {error}") from error
    except LockHeld as error:
        raise SystemExit(f"conch: a server with this run directory is running already ({error.text})") from error
    return settings


def _settings_for_programs() -> Settings:
    """The environment means here what it means to ``conch serve``: old names count, and what has no effect is said.
    Programs read the settings themselves and nothing else, so they get those."""
    started_by_serve = _die_with_serve()
    parsed = parse((), os.environ)
    if not started_by_serve:  # which has said it
        for warning in parsed.warnings:
            print(f"conch: {warning}", file=sys.stderr)
        for path in parsed.settings.model_repository:
            if not os.path.isdir(path):
                print(f"conch: model repository '{path}' is no folder; waiting until it is one", file=sys.stderr)
        if max(parsed.settings.http_process_count, parsed.settings.grpc_process_count) > 1:
            probe_ports(parsed.settings)  # one process alone finds out by itself, several would share with anybody
    wanted = environment(parsed.settings, os.environ)
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)
    return parsed.settings


def _hold_lock(settings: Settings, again: bool = False) -> None:
    lock = hold_lock(RunDir(settings.run_dir).supervisor_lock, describe(settings), again)
    # the kernel lets go of it in any case; this leaves no text behind
    atexit.register(lock.release)


def _die_with_serve() -> bool:
    """If ``conch serve`` started us and is killed, stop everything in order. True if it did."""
    serve_pid = os.environ.pop("CONCH_SERVE_PID", "")
    if serve_pid:
        stop_with_parent()
        if str(os.getppid()) != serve_pid:
            raise SystemExit("conch: conch serve is gone")
    return bool(serve_pid)


class Waker:
    """Lets supervisord's loop see signals and deaths at once; by itself it looks up from ``poll`` once a second, and
    first of all before it starts anything.

    It is an entry of supervisord's socket map: a descriptor that becomes readable with every signal and every ``wake``.
    The loop asks ``readable`` on every turn, which is also the moment for ``on_turn``.
    """

    def __init__(self, on_turn: Callable[[], None]) -> None:
        self._on_turn = on_turn
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        asyncore.socket_map[self._reader.fileno()] = self

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"\0")

    def readable(self) -> bool:
        self._on_turn()
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(512):
                pass

    def handle_error(self) -> None:
        raise  # noqa: PLE0704  supervisord calls this inside its except clause

    def forget(self) -> None:
        """For one whose descriptors supervisord has closed; their numbers may belong to something else by now."""
        del asyncore.socket_map[self._reader.detach()]
        self._writer.detach()


class Signals(SignalReceiver):  # type: ignore[misc] # supervisor has no types
    """supervisord's own, and what they mean for frontends: by SIGINT, and by any stop signal while a stop is under way,
    they drain without delay. A program's signal is SIGTERM otherwise, whatever supervisord itself has got."""

    def __init__(self, supervisord: Any) -> None:
        super().__init__()
        self._supervisord = supervisord

    def receive(self, number: int, frame: object) -> None:
        stopping = self._supervisord.options.mood < SupervisorStates.RUNNING
        if number == signal.SIGINT or (stopping and number in (signal.SIGTERM, signal.SIGQUIT)):
            self._end_delay()
        super().receive(number, frame)

    def _end_delay(self) -> None:
        frontends = self._supervisord.process_groups.get(_FRONTENDS)  # an operator may have removed them
        for process in () if frontends is None else frontends.processes.values():
            process.config.stopsignal = DRAIN_SIGNAL
            if process.state == ProcessStates.STOPPING and process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, DRAIN_SIGNAL)


class Interface:
    """The RPC namespace ``conch`` on supervisord's socket, and the pace of restarts: at once for a process that had run
    for a while, after a rest for one that had just started, for ever."""

    def __init__(self, supervisord: Any) -> None:
        self._supervisord = supervisord
        self._log = supervisord.options.logger
        # supervisord tells of a process that was killed, but not by which signal
        self._waitpid = supervisord.options.waitpid
        self._wait_status = 0
        supervisord.options.waitpid = self._wait
        self._waker = Waker(self._end_rests)
        self._starts: dict[str, int] = {}
        self._last_exit: dict[str, tuple[str, float]] = {}
        self._resting: list[tuple[float, Any]] = []
        events.subscribe(events.ProcessStateStartingEvent, self._on_starting)
        events.subscribe(events.ProcessStateExitedEvent, self._on_exited)
        self._waker.wake()

    def forget(self) -> None:
        """Makes room for the next one, after supervisord has closed every descriptor."""
        self._waker.forget()

    def _on_starting(self, event: Any) -> None:
        name = event.process.config.name
        self._starts[name] = self._starts.get(name, 0) + 1

    def _wait(self) -> tuple[int | None, int | None]:
        """An event about the process that it returns follows before the next call."""
        pid, status = self._waitpid()
        if pid:
            self._wait_status = status
        return pid, status

    def _on_exited(self, event: Any) -> None:
        process = event.process
        ended = how_it_ended(os.waitstatus_to_exitcode(self._wait_status))
        self._last_exit[process.config.name] = (ended, time.monotonic())
        if time.time() - process.laststart >= _STABLE_SECONDS:
            self._waker.wake()
        elif process.config.autorestart is RestartUnconditionally:
            name, path = process.config.name, process.config.stdout_logfile
            self._log.warn(f"{name} ended just after its start; the reason is in {path}")
            process.config.autorestart = False
            self._resting.append((time.monotonic() + _REST_SECONDS, process))

    def _end_rests(self) -> None:
        now = time.monotonic()
        for due, process in self._resting:
            if now >= due:
                process.config.autorestart = RestartUnconditionally
        self._resting = [(due, process) for due, process in self._resting if now < due]

    def getReport(self) -> dict[str, Any]:
        """For ``conch status``. supervisord's own calls are refused while it stops, when a look is worth most.

        ``stopping``; ``pid`` of supervisord; ``programs``: each one's ``name``, ``pid``, ``state``, how often it was
        started again (``restarts``), how it ended last (``last_exit``, "") and how long ago (``since_exit_s``).
        """
        now = time.monotonic()
        programs = []
        for _, group in sorted(self._supervisord.process_groups.items()):
            for name, process in sorted(group.processes.items()):
                last_exit, exited = self._last_exit.get(name, ("", now))
                programs.append(
                    {
                        "name": name,
                        "pid": process.pid,
                        "state": getProcessStateDescription(process.get_state()).lower(),
                        "restarts": max(0, self._starts.get(name, 0) - 1),
                        "last_exit": last_exit,
                        "since_exit_s": now - exited,
                    }
                )
        stopping = self._supervisord.options.mood < SupervisorStates.RUNNING
        return {"pid": os.getpid(), "stopping": stopping, "programs": programs}


def make(supervisord: Any, **_options: str) -> Interface:
    """Called by supervisord when it has its programs and its control socket, before it starts the first program; and
    once more for each SIGHUP, after which it has closed every descriptor of this process."""
    global _interface
    if _interface is not None:
        _interface.forget()
        _hold_lock(_settings, again=True)
    # supervisord deletes what these name, when it ends or is told to; its configuration, which is read before the run
    # directory exists, names others
    run_dir = RunDir(_settings.run_dir)
    supervisord.options.pidfile = str(run_dir.path / "supervisord.pid")
    supervisord.options.logfile = str(run_dir.logs / "supervisord.log")
    supervisord.options.signal_receiver = Signals(supervisord)
    for name, group in supervisord.process_groups.items():
        seconds = _settings.exit_timeout_secs + _STOP_MARGIN_SECONDS
        if name == _FRONTENDS:
            seconds += _settings.drain_delay_secs
        for process in list(group.processes.values()):
            process.config.stopwaitsecs = max(process.config.stopwaitsecs, seconds)
            _multiply(process.config, group)
    _interface = Interface(supervisord)
    return _interface


def _multiply(config: Any, group: Any) -> None:
    """As many processes of a program as the settings say, or none. ``numprocs`` in the configuration cannot do that: it
    is read before a setting that is not in the environment has its default."""
    names = process_names(config.name, process_count(config.name, _settings))
    if not names:
        del group.processes[config.name]
    folder = os.path.dirname(config.stdout_logfile)
    for name in names[1:]:
        another = copy.copy(config)
        another.name = name
        another.stdout_logfile = os.path.join(folder, f"{name}.log")
        group.processes[name] = another.make_process(group)


_interface: Interface | None = None
_settings = _prepare()
