"""Opening the memory that clients registered: by its key, or as another process of this server has it open.

Nothing but regular files is opened, no link is followed, and nothing here waits: whoever owns the file may be hostile.
"""

import errno
import os
import stat
from typing import NamedTuple

from shm.segment import SHARED_MEMORY_FOLDER, name_prefix

#: without O_NONBLOCK, a lease that the file's owner holds on it would stop us for most of a minute
_ACCESS = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC


class RegionFile(NamedTuple):
    """An open file: ``descriptor`` is the receiver's to close, ``file`` is its device and inode."""

    descriptor: int
    file: tuple[int, int]
    nbytes: int


def open_key(key: str) -> RegionFile:
    """What ``shm_open`` understands by ``key``, writable. Raises ``OSError``."""
    name = key.lstrip("/")
    if not name or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "not a name of shared memory")
    # looked at before it is opened: to open a FIFO or a device may do something
    looked_at = os.open(os.path.join(SHARED_MEMORY_FOLDER, name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(looked_at)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return _open(f"/proc/self/fd/{looked_at}", (found.st_dev, found.st_ino))
    finally:
        os.close(looked_at)


def open_held(pid: int, descriptor: int, file: tuple[int, int]) -> RegionFile:
    """What process ``pid`` has open as ``descriptor``, if it is still ``file``. Raises ``OSError``."""
    path = f"/proc/{pid}/fd/{descriptor}"
    found = os.stat(path)
    if (found.st_dev, found.st_ino) != file or not stat.S_ISREG(found.st_mode):
        raise OSError(errno.ESTALE, "the process has another file there by now")
    return _open(path, file)


def _open(path: str, file: tuple[int, int]) -> RegionFile:
    descriptor = os.open(path, _ACCESS)
    found = os.fstat(descriptor)
    if (found.st_dev, found.st_ino) != file:
        os.close(descriptor)
        raise OSError(errno.ESTALE, "another file came in between")
    return RegionFile(descriptor, file, found.st_size)


def is_own_segment(key: str, file: tuple[int, int]) -> bool:
    """Whether this is memory that processes of this server share with each other, whatever the name that led to it.
    Raises ``OSError``."""
    prefix = name_prefix()
    if key.lstrip("/").startswith(prefix):
        return True  # even if its owner has removed the name since: others may still read it
    with os.scandir(SHARED_MEMORY_FOLDER) as entries:
        for entry in entries:
            if entry.inode() == file[1] and entry.name.startswith(prefix):
                return True
    return False
