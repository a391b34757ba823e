"""Whether a CUDA region that a client wants to register can be opened: asked of a child process."""

import logging
import sys
from typing import TYPE_CHECKING

from conch.errors import AlreadyExists, InvalidArgument, NotReady
from conch.later import Later
from conch.messages import RegisterCudaRegion
from conch.requester.regions import RegionTableView
from shm.cuda import HANDLE_NBYTES
from shm.cuda_check import NOT_HERE, OPENED

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

logger = logging.getLogger("conch.requester.cuda_check")

#: the child imports CUDA and makes a context, which takes seconds on a busy machine
_TIMEOUT_S = 30.0
_MAX_DEVICE = 2**31 - 1
_MAX_NBYTES = 2**63 - 1


class CudaCheck:
    """One child at a time: each takes a processor and GPU memory, and clients decide how many are asked for."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def run(self, call: RegisterCudaRegion, regions: RegionTableView) -> None:
        """Raises ``AlreadyExists``, ``InvalidArgument`` (also where there is no GPU, as Triton does), and ``NotReady``
        if there is no answer in time."""
        if call.name in regions:
            raise AlreadyExists(f"shared memory region '{call.name}' already in manager")
        refused = f"failed to register shared memory region '{call.name}': invalid args"
        if (
            len(call.handle) != HANDLE_NBYTES
            or not 0 <= call.device <= _MAX_DEVICE
            or not 0 < call.nbytes <= _MAX_NBYTES
        ):
            raise InvalidArgument(refused)
        async with self._lock:
            status = await _ask(call)
        if status == NOT_HERE:
            raise InvalidArgument(
                f"failed to register CUDA shared memory region '{call.name}': CUDA shared memory is not available "
                "here, because the server has no GPU or no cuda-python"
            )
        if status != OPENED:
            raise InvalidArgument(refused)


async def _ask(call: RegisterCudaRegion) -> int | None:
    arguments = ("-P", "-m", "shm.cuda_check", str(call.device), str(call.nbytes))
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        _, output = await asyncio.wait_for(child.communicate(call.handle), _TIMEOUT_S)
    except asyncio.TimeoutError as error:
        logger.error("whether a CUDA handle can be opened was not found out in %s s", _TIMEOUT_S)
        raise NotReady("the GPU did not answer in time; try again") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != OPENED:
        logger.warning("CUDA region '%s' is not registered: %s", call.name, output.decode(errors="replace").strip())
    return child.returncode
