"""How near a process is to having no descriptor left.

What it opens on its own account stops a little before that: libraries take a failure for a reason to end the process,
libzmq when it accepts a connection.
"""

import os
import resource
from typing import Final

#: descriptors that are left to libraries
RESERVED: Final = 64


def are_left(reserved: int = RESERVED) -> bool:
    """Whether there are more than ``reserved``, which is a guess where lower numbers are free. The kernel gives out the
    lowest number that is free."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return True
    try:
        probe = os.eventfd(0, os.EFD_CLOEXEC)
    except OSError:
        return False
    os.close(probe)
    return probe < most - reserved
