"""What every process of a server does first: file modes, logging, signals, locks.

An entry file calls ``begin`` before it opens anything.
"""

import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from conch.messages import LogSettings
from conch.run_dir import RunDir
from conch.settings import Settings

_PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: a frontend is to stop without delay, as by SIGINT, of which an interpreter that is just starting makes a traceback
DRAIN_SIGNAL = signal.SIGUSR1
_MAX_LOCK_TEXT_NBYTES = 4096
#: characters of one event in a log: more than any traceback has, less than a client may send as a name
_MAX_MESSAGE = 65536
#: struct flock: type, whence, start, length, pid
_FLOCK = struct.Struct("@hhqqi0q")
#: Triton has three letters; its verbose lines carry the I too
_LETTERS = {logging.DEBUG: "I", logging.INFO: "I", logging.WARNING: "W", logging.ERROR: "E", logging.CRITICAL: "E"}


def begin(settings: Settings) -> None:
    """To be called first in every process: private files, as many descriptors as the system allows, logging to stderr,
    a stack trace when the interpreter crashes. Under supervisord stderr is the process's own log file, and
    supervisord's death is a SIGTERM: its successor could not know this process."""
    os.umask(0o077)
    if os.environ.pop("SUPERVISOR_ENABLED", ""):
        stop_with_parent()
        if lock_holder(RunDir(settings.run_dir).supervisor_lock) is None:
            sys.exit("supervisord is gone")  # it died before it could be asked to tell
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    faulthandler.enable()
    set_up_logging(settings)


def stop_with_parent() -> None:
    """The parent's death sends SIGTERM to this process, not to its children. Lasts until a fork, not until an exec."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


# ------------------------------------------------------------------------------------------------------------ logging


class TritonFormatter(logging.Formatter):
    """``I1121 08:29:12.123456 4711 server.py:97] "message"``. The message is a JSON string: a client's text or a
    traceback can never start a line of its own."""

    def __init__(self, iso8601: bool = False) -> None:
        super().__init__()
        self._iso8601 = iso8601

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        if record.stack_info:
            message += "\n" + self.formatStack(record.stack_info)
        microseconds = int(record.created % 1 * 1_000_000)
        moment = time.localtime(record.created)
        letter = _LETTERS.get(record.levelno, "I")
        if self._iso8601:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime(record.created)) + letter
        else:
            when = f"{letter}{time.strftime('%m%d %H:%M:%S', moment)}.{microseconds:06d}"
        return f"{when} {record.process} {record.filename}:{record.lineno}] {_quoted(message)}"


def _quoted(message: str) -> str:
    """As a JSON string that holds nothing a terminal or a reader of lines could take for more than a character."""
    if len(message) > _MAX_MESSAGE:
        message = f"{message[:_MAX_MESSAGE]}... ({len(message)} characters in all)"
    text = json.dumps(message, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
    return text


class _Handler(logging.StreamHandler):  # type: ignore[type-arg] # takes none in Python 3.10
    """The one handler of a process that ``begin`` set up."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._wanted: set[int] = set()
        self.addFilter(lambda record: record.levelno in self._wanted)

    def apply(self, log: LogSettings) -> None:
        wanted = set()
        if log.info:
            wanted |= {logging.DEBUG, logging.INFO}
        if log.warning:
            wanted.add(logging.WARNING)
        if log.error:
            wanted |= {logging.ERROR, logging.CRITICAL}
        self._wanted = wanted
        self.setFormatter(TritonFormatter(log.format == "ISO8601"))


def set_up_logging(settings: Settings) -> None:
    """Replaces whatever handlers there were."""
    logging.basicConfig(handlers=[_Handler()], level=logging.INFO, force=True)
    logging.captureWarnings(True)
    set_logging(log_settings(settings))


def log_line(record: logging.LogRecord) -> str:
    """As this process logs it, for a file that is not its own log."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            return handler.format(record)
    return TritonFormatter().format(record)


def log_settings(settings: Settings) -> LogSettings:
    """What the flags say about logs."""
    return LogSettings(
        settings.log_info, settings.log_warning, settings.log_error, max(settings.log_verbose, 0), settings.log_format
    )


def set_logging(log: LogSettings) -> None:
    """Changes what a process logs and how, from any thread. Nothing where ``set_up_logging`` was not called: the
    process is somebody else's. Only Conch's own loggers become verbose."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Handler):
            handler.apply(log)
            logging.getLogger("conch").setLevel(logging.DEBUG if log.verbose_level > 0 else logging.INFO)


# ------------------------------------------------------------------------------------------------------------ signals


class SignalLoop(Protocol):
    """The part of ``asyncio.AbstractEventLoop`` that is needed here."""

    def add_signal_handler(self, number: int, callback: Callable[[], object]) -> object: ...


def on_stop_signals(loop: SignalLoop, callback: Callable[[], object]) -> None:
    """For processes with an asyncio loop: ``callback`` runs in the loop for every SIGTERM and SIGINT."""
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, callback)


class StopSignals:
    """For processes with a poll loop: SIGTERM and SIGINT become a readable descriptor.

    ``take`` empties it and returns how many stop signals there have been in all, so that a second one can shorten the
    first one's work; ``first`` is its number, or 0. ``extra`` signals wake the poll without being counted. ``hangup``:
    SIGHUP is a stop signal too, unless it is ignored (``nohup``); it may come twice when a terminal is closed, so it
    counts as a first one only. Main thread only.
    """

    def __init__(self, extra: tuple[signal.Signals, ...] = (), hangup: bool = False) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.received = 0
        self.first = 0
        self._hangup = hangup and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        self._handled = (*STOP_SIGNALS, *extra, *([signal.SIGHUP] if self._hangup else []))
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._handle) for number in self._handled}
        _handling.add(self)

    def _handle(self, number: int, _frame: object) -> None:
        if number in STOP_SIGNALS or (self._hangup and number == signal.SIGHUP and not self.received):
            self.first = self.first or number
            self.received += 1

    def fileno(self) -> int:
        return self._reader.fileno()

    def take(self) -> int:
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(512):
                pass
        return self.received

    def close(self) -> None:
        """Puts back what was there before."""
        _handling.discard(self)
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._reader.close()
        self._writer.close()


_handling: set[StopSignals] = set()


def _stop_handling() -> None:
    """In a forked child, which could not be terminated otherwise: only its parent's poll loop looks for signals."""
    for signals in list(_handling):
        signals.close()


os.register_at_fork(after_in_child=_stop_handling)


# -------------------------------------------------------------------------------------------------------------- locks


class LockHeld(Exception):
    """Another process holds the lock. ``text`` is what it wrote there: its pid and what it serves."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(f"{path.name} is held by {text or 'a process that is just starting'}")
        self.text = text


class Lock:
    """A held lock file. The kernel lets go of it when the process ends, however it ends; the file stays."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.text = ""
        self._path = path
        self._descriptor = descriptor
        _held[path] = self

    def write(self, text: str) -> None:
        """Replaces what the next process to ask is told: nothing, if the disk is full. The lock counts all the same."""
        self.text = text
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode()[:_MAX_LOCK_TEXT_NBYTES], 0)

    def release(self) -> None:
        """Nothing if the lock has been taken again since."""
        if _held.get(self._path) is self:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            del _held[self._path]


#: record locks do not conflict within one process, and closing any descriptor of the file drops them
_held: dict[Path, Lock] = {}


def hold_lock(path: Path, text: str, again: bool = False) -> Lock:
    """Takes the lock file ``path`` and writes ``text`` into it, e.g. ``pid 4711, HTTP port 8000``.

    It is a record lock: unlike ``flock`` it is not inherited by forked children, which would keep it when the process
    dies. Raises ``LockHeld`` with the holder's text if somebody has it. ``again``: something else in this process
    closed the descriptor of a lock that was held.
    """
    path = path.absolute()
    if path in _held and not again:
        raise LockHeld(path, _held[path].text)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held_by = os.pread(descriptor, _MAX_LOCK_TEXT_NBYTES, 0).decode(errors="replace")
        os.close(descriptor)
        raise LockHeld(path, held_by) from None
    lock = Lock(path, descriptor)
    lock.write(text)
    return lock


def lock_holder(path: Path) -> str | None:
    """What the holder of the lock wrote, or None if nobody holds it. Takes nothing, so it disturbs nobody."""
    path = path.absolute()
    if path in _held:
        return _held[path].text
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = fcntl.fcntl(descriptor, fcntl.F_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        if _FLOCK.unpack(found)[0] == fcntl.F_UNLCK:
            return None
        return os.pread(descriptor, _MAX_LOCK_TEXT_NBYTES, 0).decode(errors="replace")
    finally:
        os.close(descriptor)


def keep_what_is_there() -> None:
    """To be called once a process has started: what exists by now lives as long as the process, so the garbage
    collector need not look at it again, and looks more seldom at the rest. Its pauses show in the tail of small
    requests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
