"""CUDA IPC: device memory that another process on the same GPU opens by its 64-byte handle.

cuda-python is imported at the first use, because most servers have no GPU. Only workers call this. A handle is a
capability: it is never logged and never shown to a client.
"""

import ctypes
from typing import Any

from conch.errors import Unsupported
from conch.messages import CudaBlock
from shm.base import ArenaFull, BadReference

HANDLE_NBYTES = 64


def _runtime() -> Any:
    """``cuda.bindings.runtime``. Raises ``Unsupported`` without cuda-python, a driver or a GPU."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise Unsupported("CUDA memory needs cuda-python: pip install 'conch[cuda]'") from error
    status, count = runtime.cudaGetDeviceCount()
    if status != runtime.cudaError_t.cudaSuccess or not count:
        raise Unsupported(f"CUDA memory needs a GPU: {status.name}")
    return runtime


class CudaArena:
    """Memory of GPU ``device`` that this process owns, a CUDA allocation per block. Belongs to one thread."""

    def __init__(self, device: int) -> None:
        """Raises ``Unsupported``."""
        self._runtime = _runtime()
        self._device = device
        self._addresses: dict[CudaBlock, int] = {}

    def allocate(self, nbytes: int) -> CudaBlock:
        """Raises ``ArenaFull``."""
        runtime = self._runtime
        _check(runtime.cudaSetDevice(self._device))
        status, address = runtime.cudaMalloc(max(nbytes, 1))
        if status == runtime.cudaError_t.cudaErrorMemoryAllocation:
            raise ArenaFull(f"no memory for {nbytes} bytes on GPU {self._device}")
        if status != runtime.cudaError_t.cudaSuccess:
            raise OSError(f"CUDA: {status.name}")
        (handle,) = _check(runtime.cudaIpcGetMemHandle(address))
        block = CudaBlock(ctypes.string_at(handle.getPtr(), HANDLE_NBYTES), self._device, 0, nbytes)
        self._addresses[block] = int(address)
        return block

    def view(self, block: CudaBlock) -> int:
        """The block's address in this process."""
        return self._addresses[block]

    def free(self, block: CudaBlock) -> None:
        """Raises ``ValueError`` for a block that is not allocated. Nobody may have it open any more: CUDA leaves that
        undefined."""
        address = self._addresses.pop(block, None)
        if address is None:
            raise ValueError("the block is not allocated")
        _check(self._runtime.cudaFree(address))

    def close(self) -> None:
        for block in list(self._addresses):
            self.free(block)


class CudaMappings:
    """Other processes' device memory, each handle opened once. Belongs to one thread."""

    def __init__(self) -> None:
        """Raises ``Unsupported``."""
        self._runtime = _runtime()
        self._opened: dict[tuple[bytes, int], tuple[int, int]] = {}  # address and size by handle and device

    def view(self, block: CudaBlock) -> int:
        """The block's address in this process. Raises ``BadReference``."""
        key = block.handle, block.device
        opened = self._opened.get(key)
        if opened is None:
            opened = self._opened[key] = self._open(*key)
        address, size = opened
        if block.offset < 0 or block.nbytes < 0 or block.offset + block.nbytes > size:
            raise BadReference(f"{block.nbytes} bytes at {block.offset} do not lie in {size} bytes of GPU memory")
        return address + block.offset

    def _open(self, handle: bytes, device: int) -> tuple[int, int]:
        if len(handle) != HANDLE_NBYTES:
            raise BadReference(f"a CUDA handle has {HANDLE_NBYTES} bytes, not {len(handle)}")
        from cuda.bindings import driver

        runtime = self._runtime
        opaque = runtime.cudaIpcMemHandle_t()
        ctypes.memmove(opaque.getPtr(), handle, HANDLE_NBYTES)
        try:
            _check(runtime.cudaSetDevice(device))
            (address,) = _check(runtime.cudaIpcOpenMemHandle(opaque, runtime.cudaIpcMemLazyEnablePeerAccess))
        except OSError as error:
            raise BadReference(f"GPU memory cannot be opened: {error}") from error
        _, size = _check(driver.cuMemGetAddressRange(address))
        return int(address), int(size)

    def close(self) -> None:
        for address, _ in self._opened.values():
            _check(self._runtime.cudaIpcCloseMemHandle(address))
        self._opened.clear()


def _check(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a CUDA call returned, without its status. Raises ``OSError``."""
    status, *values = result
    if status.value:
        raise OSError(f"CUDA: {status.name}")
    return tuple(values)
