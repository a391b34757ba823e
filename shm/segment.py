"""One piece of memory that this process owns and others map.

Normally a POSIX segment ``/dev/shm/conch-<uid>-<32 hex digits>``. Its owner holds a shared ``flock`` on it for as long
as it lives, which is how ``shm.sweep`` tells a dead owner's segments from a live one's. Where ``/dev/shm`` is too small
(a container's 64 MB), or full, it is a sealed ``memfd``, which that limit does not bind and which needs no sweeping.

An ``flock`` belongs to the *open file description*: whoever holds a duplicate of the descriptor, or a mapping made from
it, keeps the lock alive after the owner's death. So there are two descriptions:

- the locked one, which nobody else ever gets and which a forked child closes at once;
- ``descriptor``, opened separately and without a lock, which peers get. It is read-only except for a lease page.
"""

import errno
import fcntl
import logging
import mmap
import os
import threading
import time
from typing import Literal

import posix_ipc

from conch.seldom import Seldom
from shm.base import ArenaFull
from shm.room import has_room

logger = logging.getLogger("conch.shm.segment")

SHARED_MEMORY_FOLDER = "/dev/shm"
#: a ``/dev/shm`` of less is taken for a container's default, in which a few requests would fill it
MIN_SHARED_MEMORY_NBYTES = 256 * 1024 * 1024

Kind = Literal["posix", "memfd"]

#: what the kernel says when there is no more memory, or no descriptor for it
_FULL = {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}
#: the same, where a memfd may still do
_MOUNT_FULL = {errno.ENOSPC, errno.EDQUOT}
_told = Seldom()
_ZEROS = "/dev/zero"
_READ_LIMIT_NBYTES = 1 << 30


def name_prefix() -> str:
    """What this user's segments are called, without the random part."""
    return f"conch-{os.geteuid()}-"


def best_kind() -> Kind:
    """``"memfd"`` where ``/dev/shm`` is absent, read-only or smaller than ``MIN_SHARED_MEMORY_NBYTES``."""
    try:
        found = os.statvfs(SHARED_MEMORY_FOLDER)
    except OSError:
        return "memfd"
    too_small = found.f_blocks * found.f_frsize < MIN_SHARED_MEMORY_NBYTES
    return "memfd" if too_small or not os.access(SHARED_MEMORY_FOLDER, os.W_OK | os.X_OK) else "posix"


class Segment:
    """``nbytes`` of zeroed memory, all of it reserved: touching it never raises SIGBUS for want of memory.

    ``number``: random, 63 bits, never 0, the segment's name in references. ``descriptor``: for peers, who each get a
    duplicate; the segment keeps it and closes it. ``view``: writable, the whole segment.
    """

    __slots__ = (
        "_lock_descriptor",
        "_mapping",
        "_name",
        "_owner_pid",
        "descriptor",
        "lease_page",
        "nbytes",
        "number",
        "view",
    )

    def __init__(self, nbytes: int, lease_page: bool = False, kind: Kind | None = None) -> None:
        """Raises ``ArenaFull`` if the machine has no memory for it. Without ``kind`` it is the best that can be had."""
        self.number = int.from_bytes(os.urandom(8), "little") >> 1 or 1
        self.nbytes = nbytes
        self.lease_page = lease_page
        self.descriptor = -1
        self._owner_pid = os.getpid()
        self._lock_descriptor = -1
        self._name = ""
        try:
            descriptor = self._reserve(kind) if kind is not None else self._reserve_somehow()
            try:
                self.descriptor = _open_again(descriptor, os.O_RDWR if lease_page else os.O_RDONLY)
                self._mapping = mmap.mmap(descriptor, nbytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._drop()
            if error.errno in _FULL:
                reason = os.strerror(error.errno or 0)
                raise ArenaFull(f"no memory for a segment of {nbytes} bytes: {reason}; try again later") from error
            raise
        self.view = memoryview(self._mapping)

    def _reserve_somehow(self) -> int:
        kind = best_kind()
        if kind == "posix":
            try:
                return self._reserve(kind)
            except OSError as error:
                if error.errno not in _MOUNT_FULL:
                    raise
            self._drop()
            if _told.is_told(time.monotonic()):
                logger.warning("%s is full: memory is taken from elsewhere", SHARED_MEMORY_FOLDER)
        return self._reserve("memfd")

    def _reserve(self, kind: Kind) -> int:
        """A writable descriptor without a lock, every page behind it reserved."""
        if kind == "memfd":
            if not has_room(self.nbytes):
                raise OSError(errno.ENOMEM, "as good as no memory left")
            descriptor = os.memfd_create("conch", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.posix_fallocate(descriptor, 0, self.nbytes)
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            except OSError:
                os.close(descriptor)
                raise
            return descriptor
        while not self._create_locked():
            pass
        os.posix_fallocate(self._lock_descriptor, 0, self.nbytes)
        return _open_again(self._lock_descriptor, os.O_RDWR)

    def _create_locked(self) -> bool:
        """False if a sweep took the new name for a dead owner's, before the lock was held."""
        with _fork_guard:
            name = f"/{name_prefix()}{os.urandom(16).hex()}"
            try:
                shared = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
            except OSError as error:
                # it gives no number with its text for the want of a descriptor
                raise OSError(error.errno or errno.EMFILE, str(error)) from error
            try:
                fcntl.flock(shared.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                swept = os.fstat(shared.fd).st_nlink == 0
            except BlockingIOError:
                swept = True
            if swept:
                os.close(shared.fd)
                _unlink(name)
                return False
            self._name = name
            self._lock_descriptor = shared.fd
            _owned.add(self)
            return True

    def touch(self) -> None:
        """Writes zeros over a new segment, so that the first real write finds its pages mapped (20 to 38 ms for 16 MiB
        otherwise). Holds no interpreter lock meanwhile: meant for an executor's thread."""
        zeros = os.open(_ZEROS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            done = 0
            while done < self.nbytes:
                done += os.readv(zeros, [self.view[done : done + _READ_LIMIT_NBYTES]])
        finally:
            os.close(zeros)

    def close(self) -> None:
        """Removes the name and gives up the lock. The memory itself goes when nobody maps it any more, which includes
        views of it that are still in use here. Idempotent; in a forked child it leaves the parent's name alone."""
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            pass  # somebody still reads or writes: unmapped with the last view
        self._drop()

    def _drop(self) -> None:
        with _fork_guard:
            if self._name and self._owner_pid == os.getpid():
                _unlink(self._name)
            self._name = ""
            if self.descriptor >= 0:
                os.close(self.descriptor)
                self.descriptor = -1
            self._unlock()
            _owned.discard(self)

    def _unlock(self) -> None:
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1


def _open_again(descriptor: int, access: int) -> int:
    """A descriptor of the same file with an open file description of its own, hence without the lock."""
    return os.open(f"/proc/self/fd/{descriptor}", access | os.O_CLOEXEC)


def _unlink(name: str) -> None:
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        pass  # removed by hand


_owned: set[Segment] = set()
#: held while a locked descriptor is made or closed, so that a fork on another thread copies either none or a known one
_fork_guard = threading.RLock()


def _forget_in_child() -> None:
    """A forked child must not keep its parent's locks alive, or its segments would outlive it unswept."""
    for segment in _owned:
        segment._unlock()
    _owned.clear()
    _fork_guard.release()


os.register_at_fork(before=_fork_guard.acquire, after_in_parent=_fork_guard.release, after_in_child=_forget_in_child)
