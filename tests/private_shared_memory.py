"""A ``/dev/shm`` of the test session's own, so that two sessions of one user do not see each other's leaks."""

import ctypes
import os

from shm.segment import SHARED_MEMORY_FOLDER

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV = 2, 4
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18


def make_private() -> bool:
    """Puts this process, and all that it starts, into a mount namespace with an empty ``/dev/shm``.

    Does nothing and returns False for want of permission (it takes root): then the tests use the machine's. To be
    called before there is a second thread, which would stay outside.
    """
    if os.geteuid() != 0:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    folder = SHARED_MEMORY_FOLDER.encode()
    return bool(
        libc.unshare(_CLONE_NEWNS) == 0
        and libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) == 0
        and libc.mount(b"tmpfs", folder, b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=1777") == 0
    )
