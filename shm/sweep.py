"""Removes what processes that were killed left in ``/dev/shm``."""

import fcntl
import os
import re

from shm.segment import SHARED_MEMORY_FOLDER, name_prefix


def sweep() -> int:
    """Unlinks this user's segments whose owner is dead and returns how many.

    An owner holds a shared ``flock``; whoever gets an exclusive one knows that there is no owner. Other processes may
    still map such a segment: their memory stays until they let go of it. Safe beside running servers and other sweeps.
    """
    pattern = re.compile(re.escape(name_prefix()) + "[0-9a-f]{32}")
    try:
        names = [name for name in os.listdir(SHARED_MEMORY_FOLDER) if pattern.fullmatch(name)]
    except FileNotFoundError:
        return 0
    return sum(_remove_if_dead(os.path.join(SHARED_MEMORY_FOLDER, name)) for name in names)


def _remove_if_dead(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False  # gone already, or not ours
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except (BlockingIOError, FileNotFoundError):
        return False
    finally:
        os.close(descriptor)
    return True
