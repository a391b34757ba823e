"""shm.region_files: what a client's key may lead to, and what it must not."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import posix_ipc
import pytest

from shm.region_files import is_own_segment, open_held, open_key
from shm.segment import SHARED_MEMORY_FOLDER, Segment
from tests.client_memory import ClientMemory, client_memory


@pytest.fixture
def memory() -> Iterator[ClientMemory]:
    with client_memory(8192) as memory:
        yield memory


@pytest.fixture
def path() -> Iterator[Path]:
    """Of something that a test makes in /dev/shm."""
    path = Path(SHARED_MEMORY_FOLDER, f"client-{uuid.uuid4().hex}")
    yield path
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def test_a_key_opens_what_the_client_made(memory: ClientMemory) -> None:
    for key in (memory.key, memory.key.lstrip("/"), "//" + memory.key):
        opened = open_key(key)
        try:
            found = os.fstat(memory.descriptor)
            assert opened[1:] == ((found.st_dev, found.st_ino), 8192)
            os.pwrite(opened.descriptor, b"x", 5)
            assert bytes(memory.view[5:6]) == b"x"
            assert not os.get_inheritable(opened.descriptor)
        finally:
            os.close(opened.descriptor)


@pytest.mark.parametrize(
    "key", ["", "/", "///", ".", "..", "/../shm", "/a/b", "no-such-memory", "a\0b", "x" * 300, "/\udcff"]
)
def test_a_key_that_leads_nowhere(key: str) -> None:
    with pytest.raises((OSError, ValueError)):
        os.close(open_key(key).descriptor)


def test_what_is_no_regular_file_is_not_opened(path: Path, memory: ClientMemory) -> None:
    def refuse() -> None:
        with pytest.raises(OSError, match="not a regular file"):
            open_key(path.name)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    path.mkdir()
    refuse()
    path.symlink_to(SHARED_MEMORY_FOLDER + memory.key)
    refuse()
    os.mkfifo(path)
    refuse()


def test_a_fifo_is_not_touched(path: Path) -> None:
    """Who waits for a writer still waits after it was refused."""
    os.mkfifo(path)
    reader = subprocess.Popen(["cat", path], stdout=subprocess.PIPE)
    with pytest.raises(OSError, match="not a regular file"):
        open_key(path.name)
    with pytest.raises(subprocess.TimeoutExpired):
        reader.wait(0.2)
    reader.kill()
    reader.communicate()


def test_a_lease_on_the_file_stops_nobody(path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, signal, sys; signal.signal(signal.SIGIO, signal.SIG_IGN);"
            "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); os.ftruncate(fd, 4096);"
            "fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK); print(flush=True); input()",
            path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        with pytest.raises(BlockingIOError):
            open_key(path.name)
    finally:
        holder.kill()
        holder.communicate()


def test_what_another_process_holds_is_opened_whatever_its_name_means_by_now(memory: ClientMemory) -> None:
    opened = open_key(memory.key)
    memory.unlink()
    again = posix_ipc.SharedMemory(memory.key, posix_ipc.O_CREX, size=4096)
    try:
        held = open_held(os.getpid(), opened.descriptor, opened.file)
        assert held[1:] == opened[1:]
        os.pwrite(held.descriptor, b"y", 7)
        assert bytes(memory.view[7:8]) == b"y"
        os.close(held.descriptor)
        with pytest.raises(OSError, match="another file"):
            open_held(os.getpid(), again.fd, opened.file)
    finally:
        posix_ipc.unlink_shared_memory(memory.key)
        os.close(again.fd)
        os.close(opened.descriptor)
    with pytest.raises(OSError, match="No such file"):
        open_held(os.getpid(), opened.descriptor, opened.file)


def test_our_own_segments_are_known_under_any_name(path: Path, memory: ClientMemory) -> None:
    segment = Segment(4096)
    try:
        found = os.fstat(segment.descriptor)
        os.link(SHARED_MEMORY_FOLDER + segment._name, path)
        opened = open_key(path.name)
        os.close(opened.descriptor)
        assert opened.file == (found.st_dev, found.st_ino)
        assert is_own_segment(path.name, opened.file)
        foreign = os.fstat(memory.descriptor)
        assert not is_own_segment(memory.key, (foreign.st_dev, foreign.st_ino))
        opened = open_key(segment._name)
        os.close(opened.descriptor)
        path.unlink()
        os.unlink(SHARED_MEMORY_FOLDER + segment._name)  # just then
        assert is_own_segment(segment._name, opened.file)
    finally:
        segment.close()
