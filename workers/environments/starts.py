"""The launcher's part for workers that run in an environment of their own: it is prepared, then a worker is started.

Both are children of the launcher, with a descriptor each in the launcher's poll: a preparation's answer, and the
connection on which a new worker says ``Spawned``. Workers that want the same environment share its preparation.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import msgspec

from conch.channels import BadMessage, ChannelClosed
from conch.channels.seqpacket import MessageTooLong, SeqpacketChannel
from conch.messages import Fault, Preparing, Spawn, Spawned, SpawnFailed
from conch.run_dir import RunDir
from conch.unreadable import UNREADABLE
from workers.deaths import without_deaths
from workers.environments import activation, stamps
from workers.environments.choice import PARAMETER, Wanted, choose
from workers.environments.failures import telling, without_places
from workers.environments.messages import Failed, Preparation, Prepared
from workers.template_process import module_command

logger = logging.getLogger("conch.workers.environments")

#: large packages over a slow line take long; what takes longer hangs
PREPARE_TIMEOUT_S = 3600.0
#: an interpreter's first start from a cold or distant disk
START_TIMEOUT_S = 60.0
_DESCRIPTOR = 3
_OUR_PACKAGES = ("conch", "shm", "workers")
_LOG_TAIL_NBYTES = 4096
_OPEN_LOG = os.O_WRONLY | os.O_CREAT | os.O_APPEND

Answer = Prepared | Failed
Report = Preparing | SpawnFailed


class Born(msgspec.Struct, frozen=True):
    """A worker that says that it lives."""

    spawn: Spawn
    message: Spawned


@dataclass
class _Preparing:
    """``answer``: the descriptor that the answer comes from. ``waiting``: who wants the environment."""

    wanted: Wanted
    pid: int
    answer: int
    deadline: float
    waiting: list[Spawn]
    received: bytes = b""


@dataclass
class _Starting:
    """``log_offset``: where its output starts in its model's log."""

    spawn: Spawn
    pid: int
    channel: SeqpacketChannel[Spawn, Spawned | SpawnFailed]
    deadline: float
    log_offset: int


class Starts:
    """``poll`` is the launcher's."""

    def __init__(self, poll: select.poll, run_dir: RunDir, cache_dir: Path) -> None:
        self._poll = poll
        self._run_dir = run_dir
        self._cache_dir = cache_dir
        self._preparing: dict[int, _Preparing] = {}  # by descriptor
        self._starting: dict[int, _Starting] = {}  # by descriptor
        self._prepared: dict[Wanted, Prepared] = {}
        self._reports: list[Report] = []
        self._stopped = False

    @property
    def busy(self) -> bool:
        return bool(self._preparing or self._starting)

    @property
    def pids(self) -> set[int]:
        """Of children that somebody still waits for."""
        preparing = {preparing.pid for preparing in self._preparing.values()}
        return preparing | {starting.pid for starting in self._starting.values()}

    @property
    def next_deadline(self) -> float | None:
        deadlines = [preparing.deadline for preparing in self._preparing.values()]
        deadlines += [starting.deadline for starting in self._starting.values()]
        return min(deadlines, default=None)

    # --------------------------------------------------------------------------------------------------- what to do

    def takes(self, spawn: Spawn) -> bool:
        """Whether this worker runs in an environment of its own, and is started from here."""
        wanted = choose(spawn, os.path.exists)
        if wanted is None:
            return False
        try:
            self._take(spawn, wanted)
        except OSError as error:
            self._fail(spawn, error.strerror)
        return True

    def _take(self, spawn: Spawn, wanted: Wanted) -> None:
        if self._stopped:
            self._fail(spawn, "the server stops")
            return
        prepared = self._prepared.get(wanted)
        if prepared is not None and _is_still_there(prepared, wanted):
            self._start(spawn, prepared)
            return
        self._reports.append(Preparing(spawn.worker))
        for preparing in self._preparing.values():
            if preparing.wanted == wanted:
                preparing.waiting.append(spawn)
                return
        self._prepare(spawn, wanted)

    def kill(self, worker: str) -> None:
        """A worker that is not born yet never will be. Preparing an environment that nobody wants any more ends."""
        for preparing in list(self._preparing.values()):
            for spawn in preparing.waiting:
                if spawn.worker == worker:
                    preparing.waiting.remove(spawn)
                    self._fail(spawn, "it was killed")
                    if not preparing.waiting:
                        self._end(preparing)
                    break
        for starting in list(self._starting.values()):
            if starting.spawn.worker == worker:
                self._fail(starting.spawn, "it was killed")
                self._end(starting)

    def forget(self) -> None:
        """Another broker will ask again for what it wants; preparations go on meanwhile."""
        for preparing in self._preparing.values():
            preparing.waiting.clear()
        for starting in list(self._starting.values()):
            self._end(starting)
        self._reports.clear()

    def stop(self) -> None:
        """The server stops: nothing is prepared or started any more."""
        self._stopped = True
        for preparing in list(self._preparing.values()):
            for spawn in preparing.waiting:
                self._fail(spawn, "the server stops")
            self._end(preparing)
        for starting in list(self._starting.values()):
            self._fail(starting.spawn, "the server stops")
            self._end(starting)

    def advance(self, ready: Set[int]) -> list[Born]:
        """What has come on the descriptors that are ``ready``, and what has not come in time."""
        born = []
        for descriptor in ready & self._preparing.keys():
            self._read_answer(self._preparing[descriptor])
        for descriptor in ready & self._starting.keys():
            found = self._read_worker(self._starting[descriptor])
            if found is not None:
                born.append(found)
        now = time.monotonic()
        for preparing in [preparing for preparing in self._preparing.values() if preparing.deadline < now]:
            self._answered(preparing, Failed(f"it was not ready in {PREPARE_TIMEOUT_S:.0f} s"))
        for starting in [starting for starting in self._starting.values() if starting.deadline < now]:
            self._fail(starting.spawn, f"no answer in {START_TIMEOUT_S:.0f} s")
            self._end(starting)
        return born

    def take_reports(self) -> list[Report]:
        reports, self._reports = self._reports, []
        return reports

    # -------------------------------------------------------------------------------------------------- preparation

    def _prepare(self, spawn: Spawn, wanted: Wanted) -> None:
        preparation = Preparation(spawn.model, wanted, str(self._cache_dir))
        text = msgspec.json.encode(preparation).decode()
        command = module_command("workers.environments.prepare", str(os.getpid()), text)
        answer, theirs = os.pipe()
        try:
            pid = _run(command, dict(os.environ), theirs, self._run_dir.model_log(spawn.model))
        except OSError as error:
            os.close(answer)
            self._fail(spawn, error.strerror)
            return
        finally:
            os.close(theirs)
        os.set_blocking(answer, False)
        logger.info("preparing the environment of '%s', pid %s; its log tells more", spawn.model, pid)
        self._preparing[answer] = _Preparing(wanted, pid, answer, time.monotonic() + PREPARE_TIMEOUT_S, [spawn])
        self._poll.register(answer, select.POLLIN)

    def _read_answer(self, preparing: _Preparing) -> None:
        with contextlib.suppress(BlockingIOError):
            while block := os.read(preparing.answer, 65536):
                preparing.received += block
            try:
                answer = msgspec.json.decode(preparing.received, type=Answer)
            except UNREADABLE:
                answer = Failed("its preparation was ended from outside")
            self._answered(preparing, answer)

    def _answered(self, preparing: _Preparing, answer: Answer) -> None:
        self._end(preparing)
        if isinstance(answer, Prepared):
            self._prepared[preparing.wanted] = answer
        for spawn in preparing.waiting:
            if isinstance(answer, Prepared):
                self._start(spawn, answer)
                continue
            wanted = preparing.wanted
            what = (
                f"its {wanted.named}"
                if wanted.kind == "requirements"
                else f"{PARAMETER} '{without_places(wanted.named)}'"
            )
            text = f"unable to load model '{spawn.model}': {what} gives no environment: {answer.reason}"
            self._reports.append(SpawnFailed(spawn.worker, Fault("InvalidArgument", text)))

    # ---------------------------------------------------------------------------------------------------- the worker

    def _start(self, spawn: Spawn, prepared: Prepared) -> None:
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._fail(spawn, error.strerror)
            return
        channel: SeqpacketChannel[Spawn, Spawned | SpawnFailed] = SeqpacketChannel(ours, Spawned | SpawnFailed)
        log = self._run_dir.model_log(spawn.model)
        try:
            packages = self._own_packages()
            entry = os.path.join(packages, "workers", "environments", "entry.py")
            command = [prepared.python, entry, packages, msgspec.json.encode(prepared.behind).decode()]
            variables = activation.activated(os.environ, Path(prepared.folder), activation.own_folders())
            log_offset = log.stat().st_size if log.exists() else 0
            channel.send_nowait(spawn)
            pid = _run(command, variables, theirs.fileno(), log)
        except (OSError, MessageTooLong) as error:
            channel.close()
            too_long = f"its configuration is too long: {error}"
            self._fail(spawn, too_long if isinstance(error, MessageTooLong) else error.strerror)
            return
        finally:
            theirs.close()
        deadline = time.monotonic() + START_TIMEOUT_S
        self._starting[channel.fileno()] = _Starting(spawn, pid, channel, deadline, log_offset)
        self._poll.register(channel.fileno(), select.POLLIN)

    def _own_packages(self) -> str:
        """A folder that holds our packages and nothing else: beside the real ones may lie what belongs to the server's
        interpreter."""
        folder = self._run_dir.packages
        folder.mkdir(mode=0o700, exist_ok=True)
        for name in _OUR_PACKAGES:
            file = sys.modules[name].__file__
            assert file is not None
            link, target = folder / name, os.path.dirname(file)
            if not link.is_symlink() or os.readlink(link) != target:
                link.unlink(missing_ok=True)
                link.symlink_to(target)
        return str(folder)

    def _read_worker(self, starting: _Starting) -> Born | None:
        try:
            received = starting.channel.receive_nowait()
        except (ChannelClosed, BadMessage):
            self._prepared.clear()  # one of them is not what it was: they are looked at again
            self._fail(starting.spawn, f"its interpreter ended: {self._last_words(starting)}")
            self._end(starting)
            return None
        if received is None:
            return None
        message, _ = received
        if isinstance(message, SpawnFailed):
            self._reports.append(message)
            self._end(starting)
            return None
        self._put_away(starting)
        return Born(starting.spawn, message)

    def _last_words(self, starting: _Starting) -> str:
        with (
            contextlib.suppress(OSError),
            open(self._run_dir.model_log(starting.spawn.model), "rb") as log,
        ):
            size = log.seek(0, os.SEEK_END)
            offset = starting.log_offset if starting.log_offset <= size else 0  # the log may have been cut
            log.seek(max(offset, size - _LOG_TAIL_NBYTES))
            return telling(without_deaths(log.read()).decode(errors="replace").splitlines()[-1:])
        return ""

    # ----------------------------------------------------------------------------------------------------- both

    def _fail(self, spawn: Spawn, reason: str | None) -> None:
        text = f"cannot start a process for '{spawn.instance_name}': {reason}"
        self._reports.append(SpawnFailed(spawn.worker, Fault("Internal", text)))

    def _end(self, pending: _Preparing | _Starting) -> None:
        """Whatever still runs of it is killed. The launcher reaps it, as all children that nobody waits for."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pending.pid, signal.SIGKILL)  # nobody else can have that number: its leader is not reaped
        self._put_away(pending)

    def _put_away(self, pending: _Preparing | _Starting) -> None:
        if isinstance(pending, _Preparing):
            self._poll.unregister(pending.answer)
            del self._preparing[pending.answer]
            os.close(pending.answer)
        else:
            self._poll.unregister(pending.channel.fileno())
            del self._starting[pending.channel.fileno()]
            pending.channel.close()


def _is_still_there(prepared: Prepared, wanted: Wanted) -> bool:
    places = (prepared.python, *prepared.behind)
    return prepared.stamp == stamps.now(wanted) and all(os.path.exists(place) for place in places)


def _run(command: list[str], variables: dict[str, str], descriptor: int, log: Path) -> int:
    """Starts a program in a session of its own, which prints to ``log`` and has ``descriptor`` as its third. Not a
    ``Popen``: that would take its status, which is for whoever watches it."""
    return os.posix_spawn(
        command[0],
        command,
        variables,
        file_actions=[
            (os.POSIX_SPAWN_DUP2, descriptor, _DESCRIPTOR),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), _OPEN_LOG, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )
