"""What every test gets: a check that it leaves nothing behind, and short private directories for sockets.

Leaks are looked for after each test, and more strictly after each module, because a client that a module's fixture
holds may open connections during a test. What a fixture of a wider scope sets up is not a leak of the test that came
first.
"""

import fcntl
import gc
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shm.segment import SHARED_MEMORY_FOLDER, name_prefix
from tests.private_shared_memory import make_private
from tests.processes import Process, all_processes, ancestors, command_line, environment

#: in the environment of everything that the tests start, so that orphans are found as well
SESSION_TAG = "PYTEST_SESSION_TAG"
os.environ[SESSION_TAG] = uuid.uuid4().hex
make_private()

#: how long what was told to go may take to be gone
_GRACE_S = 5.0
_POLL_S = 0.02
#: event loops, files and the like that libraries open once and keep
_LIBRARY_DESCRIPTORS = 8
#: connections that a fixture of a wider scope may open during one test
_CLIENT_CONNECTIONS = 16
#: these are ours alone: none may be left
_STRICT_TARGETS = ("socket:", "pipe:", "/dev/shm/", "/memfd:", "anon_inode:[pidfd]")
_HELPER_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
_SCOPES = ("function", "class", "module", "package", "session")
_OWN_FIXTURES = ("no_leaks_of_module", "make_run_dir")


@dataclass
class _Holdings:
    """What the test process and its descendants hold at one moment."""

    descriptors: set[tuple[int, str]]
    processes: set[Process]
    segments: set[str]

    @classmethod
    def now(cls) -> "_Holdings":
        return cls(_descriptors(), _processes(), _segments())

    def add(self, other: "_Holdings") -> None:
        self.descriptors |= other.descriptors
        self.processes |= other.processes
        self.segments |= other.segments

    def minus(self, other: "_Holdings") -> "_Holdings":
        return _Holdings(
            self.descriptors - other.descriptors, self.processes - other.processes, self.segments - other.segments
        )


def _descriptors() -> set[tuple[int, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            pass  # the one that listdir itself used
    return found


def _processes() -> set[Process]:
    """Descendants, also those whose parents are gone. Zombies only if it is this process that should reap them."""
    found = set()
    processes = all_processes()
    me = os.getpid()
    for pid, status in processes.items():
        if pid == me or (status.state == "Z" and status.parent != me):
            continue
        is_descendant = any(ancestor.pid == me for ancestor in ancestors(pid, processes))
        if not is_descendant and environment(pid).get(SESSION_TAG) != os.environ[SESSION_TAG]:
            continue
        if not any(helper in command_line(pid) for helper in _HELPER_PROCESSES):
            found.add(status.process)
    return found


def _segments() -> set[str]:
    """Named segments of this user that nobody owns, or this very process. Where ``/dev/shm`` is not the session's own,
    those of another session's killed processes are among them."""
    mine = {target for _, target in _descriptors()}
    found = set()
    for name in os.listdir(SHARED_MEMORY_FOLDER):
        path = f"{SHARED_MEMORY_FOLDER}/{name}"
        if name.startswith(name_prefix()) and (path in mine or _is_orphan(path)):
            found.add(name)
    return found


def _is_orphan(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _of_running_server(process: Process, baseline: _Holdings) -> bool:
    """Whether it belongs to a server that was there before, such as a worker that was started again."""
    if not baseline.processes.isdisjoint(ancestors(process.pid, all_processes())):
        return True
    run_dir = environment(process.pid).get("CONCH_RUN_DIR")
    return run_dir is not None and any(
        environment(other.pid).get("CONCH_RUN_DIR") == run_dir for other in baseline.processes
    )


def _new_processes(baseline: _Holdings) -> list[Process]:
    new = sorted(_processes() - baseline.processes)
    return [process for process in new if not _of_running_server(process, baseline)]


def _leaks(baseline: _Holdings, connections_allowed: int) -> list[str]:
    leaks = [f"segment {name}" for name in sorted(_segments() - baseline.segments)]
    leaks += [f"process {pid}: {command_line(pid) or 'zombie'}" for pid, _ in _new_processes(baseline)]
    connections, library = [], []
    for number, target in sorted(_descriptors() - baseline.descriptors):
        text = f"descriptor {number}: {target}"
        if not target.startswith(_STRICT_TARGETS):
            library.append(text)
        elif target.startswith("socket:"):
            connections.append(text)
        else:
            leaks.append(text)
    if len(connections) > connections_allowed:
        leaks += connections
    if len(library) > _LIBRARY_DESCRIPTORS:
        leaks += library
    return leaks


_baselines: list[tuple[str, _Holdings]] = []


def _check(scope: str, connections_allowed: int) -> Iterator[None]:
    baseline = _Holdings.now()
    _baselines.append((scope, baseline))
    yield
    _baselines.pop()
    deadline = time.monotonic() + _GRACE_S
    while True:
        multiprocessing.active_children()  # reaps
        leaks = _leaks(baseline, connections_allowed)
        if not leaks:
            return
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(_POLL_S)
    for process in _new_processes(baseline):
        try:
            os.kill(process.pid, signal.SIGKILL)  # ours, by its parent or its tag; the next test is to start clean
        except ProcessLookupError:
            pass
    pytest.fail("left behind:\n  " + "\n  ".join(leaks), pytrace=False)


@pytest.fixture(scope="module", autouse=True)
def no_leaks_of_module() -> Iterator[None]:
    """Like ``no_leaks``, for what the fixtures of a module leave."""
    yield from _check("module", connections_allowed=0)


@pytest.fixture(autouse=True)
def no_leaks(no_leaks_of_module: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves segments, descriptors or processes behind."""
    fixtures: dict[str, Any] = request.node._fixtureinfo.name2fixturedefs
    shares_a_fixture = any(
        definitions[-1].scope != "function" and definitions[-1].baseid.startswith("tests") and name not in _OWN_FIXTURES
        for name, definitions in fixtures.items()
    )
    yield from _check("function", _CLIENT_CONNECTIONS if shares_a_fixture else 0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    """What a fixture sets up belongs to its scope, whenever it is first asked for."""
    width = _SCOPES.index(fixturedef.scope)
    narrower = [baseline for scope, baseline in _baselines if _SCOPES.index(scope) < width]
    if not narrower:
        return (yield)
    before = _Holdings.now()
    try:
        return (yield)
    finally:
        made = _Holdings.now().minus(before)
        for baseline in narrower:
            baseline.add(made)


@pytest.fixture(scope="session")
def make_run_dir() -> Iterator[Callable[[], Path]]:
    """For fixtures of a wider scope: makes directories like ``run_dir``, removed at the end of the session."""
    made: list[Path] = []

    def make() -> Path:
        made.append(Path(tempfile.mkdtemp(prefix="conch-", dir="/tmp")))
        return made[-1]

    yield make
    for path in made:
        shutil.rmtree(path)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A private directory with a path of less than 60 bytes: sockets' paths are limited."""
    path = Path(tempfile.mkdtemp(prefix="conch-", dir="/tmp"))
    yield path
    shutil.rmtree(path)
