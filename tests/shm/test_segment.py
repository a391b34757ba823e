"""shm.segment: names, modes, locks, and machines that have no room."""

import fcntl
import mmap
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shm.base import ArenaFull
from shm.segment import SHARED_MEMORY_FOLDER, Kind, Segment, best_kind


def path_of(segment: Segment) -> Path:
    [path] = {Path(os.readlink(f"/proc/self/fd/{segment.descriptor}"))}
    return path


def test_name_mode_and_size() -> None:
    segment = Segment(8192, kind="posix")
    path = path_of(segment)
    assert re.fullmatch(rf"/dev/shm/conch-{os.geteuid()}-[0-9a-f]{{32}}", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 8192
    assert path.stat().st_blocks * 512 == 8192  # reserved, not just promised
    assert 0 < segment.number < 2**63
    segment.close()
    assert not path.exists()
    segment.close()


@pytest.mark.parametrize("kind", ["posix", "memfd"])
def test_peers_descriptor_is_read_only_except_for_a_lease_page(kind: Kind) -> None:
    segment, page = Segment(4096, kind=kind), Segment(4096, lease_page=True, kind=kind)
    assert fcntl.fcntl(segment.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    with pytest.raises(PermissionError):
        mmap.mmap(segment.descriptor, 4096)
    mmap.mmap(page.descriptor, 4096).close()
    assert not os.get_inheritable(segment.descriptor)
    segment.close()
    page.close()


def test_memfd_cannot_be_shrunk_or_grown() -> None:
    page = Segment(4096, lease_page=True, kind="memfd")
    for nbytes in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(page.descriptor, nbytes)
    page.close()


@pytest.mark.parametrize("kind", ["posix", "memfd"])
def test_touch_leaves_zeros(kind: Kind) -> None:
    segment = Segment(1 << 20, kind=kind)
    segment.touch()
    assert bytes(segment.view) == bytes(1 << 20)
    segment.close()


def test_lock_is_held_by_the_owner_alone() -> None:
    segment = Segment(4096, kind="posix")
    path = path_of(segment)
    peer = os.dup(segment.descriptor)  # what a peer gets
    other = os.open(path, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    view = segment.view[:8]
    segment.close()  # while a peer has a descriptor and a view of it is in use
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    os.close(peer)
    assert bytes(view) == bytes(8)


def test_forked_child_neither_keeps_the_lock_nor_removes_the_name() -> None:
    segment = Segment(4096, kind="posix")
    path = path_of(segment)
    done, child_done = os.pipe()
    child = os.fork()
    if child == 0:
        segment.close()
        os.write(child_done, b"closed")
        signal.pause()
        os._exit(0)
    assert os.read(done, 10) == b"closed"
    assert path.exists()
    child_with_everything = os.fork()
    if child_with_everything == 0:
        os.write(child_done, b"forked")
        signal.pause()
        os._exit(0)
    assert os.read(done, 10) == b"forked"
    os.close(segment._lock_descriptor)  # what the kernel does when the owner is killed
    segment._lock_descriptor = -1
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for pid in (child, child_with_everything):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(done)
    os.close(child_done)
    segment.close()


def test_more_than_the_machine_has() -> None:
    free = os.statvfs(SHARED_MEMORY_FOLDER)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ArenaFull, match="No space left"):
        Segment(free.f_blocks * free.f_frsize + (1 << 30), kind="posix")
    assert set(os.listdir("/proc/self/fd")) == before


IN_A_TINY_DEV_SHM = """
import os
from shm.arena import Arena
from shm.base import ArenaFull
from shm.segment import best_kind

assert best_kind() == "memfd"
arena = Arena(64 << 20, "test", kind="posix")
blocks = []
try:
    while True:
        blocks.append(arena.allocate(100_000))
        arena.view(blocks[-1])[:] = bytes(100_000)
except ArenaFull as error:
    assert "No space left" in str(error), error
assert len(blocks) == 10, len(blocks)
try:
    arena.grow(4096)
    raise AssertionError("grew")
except ArenaFull:
    pass
assert arena.reserved_nbytes == 1 << 20
arena.free(blocks.pop())
blocks.append(arena.allocate(90_000))
assert len(os.listdir("/dev/shm")) == 1
arena.close()

with open("/dev/shm/somebody-else", "wb") as file:
    os.posix_fallocate(file.fileno(), 0, 900_000)
arena = Arena(64 << 20, "test", kind="posix")
assert arena.allocate(50_000).nbytes == 50_000  # less than the usual step is there, and enough
assert arena.reserved_nbytes < 1 << 17
arena.close()

arena = Arena(64 << 20, "test")
block = arena.allocate(8 << 20)
arena.view(block)[:] = bytes(range(256)) * (8 << 12)
assert os.listdir("/dev/shm") == ["somebody-else"]
assert "memfd:conch" in os.readlink(f"/proc/self/fd/{arena.segments[0].descriptor}")
arena.close()
print("all well")
"""


IN_A_FULL_DEV_SHM = """
import os
from shm.arena import Arena
from shm.leases import LeasedArena
from shm.segment import best_kind

assert best_kind() == "posix"
arena = LeasedArena(Arena(64 << 20, "test"))
first = arena.allocate(1 << 20)
with open("/dev/shm/somebody-else", "wb") as file:
    free = os.statvfs("/dev/shm")
    os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
block = arena.allocate(3 << 20)
arena.arena.view(block)[:] = bytes(3 << 20)
arena.lease(block, "me")
kinds = [os.readlink(f"/proc/self/fd/{segment.descriptor}").split("conch")[0] for segment in arena.segments]
assert kinds == ["/dev/shm/", "/memfd:", "/memfd:"], kinds
os.unlink("/dev/shm/somebody-else")
arena.allocate(9 << 20)
assert os.readlink(f"/proc/self/fd/{arena.segments[2].descriptor}").startswith("/dev/shm/conch")
arena.close()
assert os.listdir("/dev/shm") == []
print("all well")
"""


def test_full_shared_memory_is_done_without() -> None:
    stderr = _in_private_shared_memory("260m", IN_A_FULL_DEV_SHM)
    assert stderr == f"{SHARED_MEMORY_FOLDER} is full: memory is taken from elsewhere\n"


def test_tiny_shared_memory_is_full_and_not_a_bus_error() -> None:
    assert _in_private_shared_memory("1m", IN_A_TINY_DEV_SHM) == ""


def _in_private_shared_memory(size: str, script: str) -> str:
    """What the script prints to its standard error, in a process whose ``/dev/shm`` has ``size``."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare here")
    private = [unshare, "--mount"] if os.geteuid() == 0 else [unshare, "--mount", "--map-root-user"]
    mount = f"mount -t tmpfs -o size={size} tmpfs {SHARED_MEMORY_FOLDER}"
    if subprocess.run([*private, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("a private mount namespace is not permitted here")
    command = f'{mount} && exec "$0" -c "$1"'
    result = subprocess.run(
        [*private, "sh", "-c", command, sys.executable, script],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (result.returncode, result.stdout) == (0, "all well\n"), result.stderr
    return result.stderr


def test_no_memory_is_left() -> None:
    """Reserving it would not fail: the kernel would kill somebody."""
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ArenaFull, match="try again later"):
        Segment(1 << 50, kind="memfd")
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["posix", "memfd"])
def test_no_descriptor_is_left(kind: Kind) -> None:
    """Each step finds the table full in turn."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(os.devnull, os.O_RDONLY)  # the first number that is free: no gap before it
    os.close(lowest)
    for left in range(4 if kind == "posix" else 3):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, hard))
        try:
            with pytest.raises(ArenaFull, match="Too many open files"):
                Segment(4096, kind=kind).close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_here_is_a_usable_kind() -> None:
    segment = Segment(4096, kind=best_kind())
    segment.view[:] = bytes(4096)
    segment.close()
