"""What is refused before the broker hears of a CUDA region, and the child that tries to open it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from conch.errors import AlreadyExists, InvalidArgument
from conch.messages import Region, RegionTable, RegisterCudaRegion
from conch.requester.cuda_check import CudaCheck
from conch.requester.regions import RegionTableView
from tests.frontends.fakes import on_uvloop
from tests.shm.test_cuda import gpu_is_here

HANDLE = b"h" * 64


def registered(name: str) -> RegionTableView:
    regions = RegionTableView()
    regions.update(RegionTable(1, 1, (Region("cuda", name, 5, 0, 1, device=0, handle=HANDLE),)))
    return regions


async def refusal(call: RegisterCudaRegion) -> str:
    with pytest.raises(InvalidArgument) as raised:
        await CudaCheck().run(call, RegionTableView())
    return raised.value.message


@on_uvloop
async def test_what_cannot_be_right_starts_no_process() -> None:
    for call in (
        RegisterCudaRegion(0, "a", b"", 0, 1),
        RegisterCudaRegion(0, "a", HANDLE + b"h", 0, 1),
        RegisterCudaRegion(0, "a", HANDLE, -1, 1),
        RegisterCudaRegion(0, "a", HANDLE, 2**63, 1),
        RegisterCudaRegion(0, "a", HANDLE, 0, 0),
        RegisterCudaRegion(0, "a", HANDLE, 0, 2**64 - 1),
    ):
        assert await refusal(call) == "failed to register shared memory region 'a': invalid args"
    with pytest.raises(AlreadyExists, match="shared memory region 'a' already in manager"):
        await CudaCheck().run(RegisterCudaRegion(0, "a", HANDLE, 0, 1), registered("a"))


@pytest.mark.skipif(gpu_is_here(), reason="there is a GPU")
@on_uvloop
async def test_without_a_gpu_it_says_so() -> None:
    assert await refusal(RegisterCudaRegion(0, "a", HANDLE, 0, 1)) == (
        "failed to register CUDA shared memory region 'a': CUDA shared memory is not available here, because the "
        "server has no GPU or no cuda-python"
    )


OWNER = """
import sys
from shm.cuda import CudaArena
arena = CudaArena(0)
print(arena.allocate(1 << 20).handle.hex(), flush=True)
sys.stdin.read()
arena.close()
"""


@pytest.fixture
def handle() -> Iterator[bytes]:
    """Of 1 MiB that another process has on GPU 0."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert owner.stdout is not None
    yield bytes.fromhex(owner.stdout.readline().decode())
    owner.communicate(b"")


@pytest.mark.skipif(not gpu_is_here(), reason="needs a GPU and cuda-python")
@on_uvloop
async def test_a_handle_is_opened_in_another_process(handle: bytes) -> None:
    await CudaCheck().run(RegisterCudaRegion(0, "a", handle, 0, 1 << 20), RegionTableView())
    refused = "failed to register shared memory region 'a': invalid args"
    assert await refusal(RegisterCudaRegion(0, "a", handle, 0, 1 << 40)) == refused
    assert await refusal(RegisterCudaRegion(0, "a", handle, 99, 1)) == refused
    assert await refusal(RegisterCudaRegion(0, "a", HANDLE, 0, 1)) == refused
