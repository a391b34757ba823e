"""Opens a CUDA handle once, to see whether it can be opened: ``python -m shm.cuda_check DEVICE NBYTES``.

A process of its own, because a server's process must not hold a CUDA context, which takes hundreds of megabytes and
dies of other processes' faults. The handle comes on the standard input: a command line can be read by everybody.
"""

import logging
import sys

from conch.errors import Unsupported
from shm.base import BadReference, CudaBlock
from shm.cuda import HANDLE_NBYTES, CudaMappings

logger = logging.getLogger("conch.shm.cuda_check")

#: exit statuses
OPENED = 0
UNUSABLE = 3
NOT_HERE = 4


def check(handle: bytes, device: int, nbytes: int) -> int:
    """An exit status: whether ``handle`` leads to at least ``nbytes`` bytes on GPU ``device``."""
    try:
        mappings = CudaMappings()
        try:
            mappings.view(CudaBlock(handle, device, 0, nbytes))
        finally:
            mappings.close()
    except Unsupported as error:
        logger.error("%s", error.message)
        return NOT_HERE
    except (BadReference, OSError) as error:
        logger.error("%s", error)
        return UNUSABLE
    return OPENED


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    sys.exit(check(sys.stdin.buffer.read(HANDLE_NBYTES + 1), int(sys.argv[1]), int(sys.argv[2])))
