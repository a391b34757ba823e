"""shm.cuda: two processes and one GPU, or a clear word where there is none."""

import os
import subprocess
import sys

import pytest

from conch.errors import Unsupported
from conch.messages import CudaBlock
from shm.base import BadReference
from shm.cuda import CudaArena, CudaMappings, _runtime


def gpu_is_here() -> bool:
    try:
        _runtime()
    except Unsupported:
        return False
    return True


READER = """
import sys
from cuda.bindings import runtime
from conch.messages import CudaBlock
from shm.cuda import CudaMappings
mappings = CudaMappings()
address = mappings.view(CudaBlock(bytes.fromhex(sys.argv[1]), 0, 256, 4))
found = bytearray(4)
runtime.cudaMemcpy(found, address, 4, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)
mappings.close()
print(found.hex())
"""


@pytest.mark.skipif(gpu_is_here(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(Unsupported, match="CUDA memory needs"):
        CudaArena(0)
    with pytest.raises(Unsupported, match="CUDA memory needs"):
        CudaMappings()


@pytest.mark.skipif(not gpu_is_here(), reason="there is no GPU")
def test_another_process_reads_device_memory() -> None:
    from cuda.bindings import runtime

    arena = CudaArena(0)
    block = arena.allocate(1000)
    written = bytes(range(250)) * 4
    runtime.cudaMemcpy(arena.view(block), written, 1000, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)
    reader = subprocess.run(
        [sys.executable, "-c", READER, block.handle.hex()],
        capture_output=True,
        text=True,
        timeout=25,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (reader.stdout.strip(), reader.stderr) == (written[256:260].hex(), "")
    arena.free(block)
    with pytest.raises(ValueError):
        arena.free(block)
    arena.close()


@pytest.mark.skipif(not gpu_is_here(), reason="there is no GPU")
def test_bad_handles_are_refused() -> None:
    mappings = CudaMappings()
    for handle, device in ((b"short", 0), (bytes(64), 0), (os.urandom(64), 99)):
        with pytest.raises(BadReference):
            mappings.view(CudaBlock(handle, device, 0, 1))
    mappings.close()
