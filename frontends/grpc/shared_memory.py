"""RPCs about memory that clients register."""

from typing import Any

from conch.categories import Category
from conch.messages import RegisterCudaRegion, RegisterRegion, UnregisterRegions
from conch.requester.regions import check_allowed
from frontends.grpc.calls import SERVICE, Rpc, Traffic, unary, unary_later
from frontends.grpc.codec import service_pb2 as pb
from frontends.requesting import RequesterLike


class SharedMemoryRpcs:
    """``allowed``: clients may register memory; whatever it says, they may ask what is registered."""

    def __init__(self, requester: RequesterLike, allowed: bool) -> None:
        self._requester = requester
        self._allowed = allowed

    def rpcs(self, traffic: Traffic) -> dict[str, Rpc]:
        category = Category.SHARED_MEMORY
        at_once = {
            "SystemSharedMemoryStatus": (pb.SystemSharedMemoryStatusRequest, self._system_status),
            "CudaSharedMemoryStatus": (pb.CudaSharedMemoryStatusRequest, self._cuda_status),
        }
        later = {
            "SystemSharedMemoryRegister": (pb.SystemSharedMemoryRegisterRequest, self._register_system),
            "SystemSharedMemoryUnregister": (pb.SystemSharedMemoryUnregisterRequest, self._unregister_system),
            "CudaSharedMemoryRegister": (pb.CudaSharedMemoryRegisterRequest, self._register_cuda),
            "CudaSharedMemoryUnregister": (pb.CudaSharedMemoryUnregisterRequest, self._unregister_cuda),
        }
        return {
            **{SERVICE + name: unary(category, *what) for name, what in at_once.items()},
            **{SERVICE + name: unary_later(category, *what, traffic) for name, what in later.items()},
        }

    def _system_status(self, request: Any) -> Any:
        response = pb.SystemSharedMemoryStatusResponse()
        for region in self._requester.regions.listed("system", request.name):
            shown = response.regions[region.name]
            shown.name = region.name
            shown.key = region.key
            shown.offset = region.offset
            shown.byte_size = region.nbytes
        return response

    def _cuda_status(self, request: Any) -> Any:
        response = pb.CudaSharedMemoryStatusResponse()
        for region in self._requester.regions.listed("cuda", request.name):
            shown = response.regions[region.name]
            shown.name = region.name
            shown.device_id = region.device
            shown.byte_size = region.nbytes
        return response

    async def _register_system(self, request: Any) -> Any:
        check_allowed(self._allowed)
        await self._requester.call(RegisterRegion(0, request.name, request.key, request.offset, request.byte_size))
        return pb.SystemSharedMemoryRegisterResponse()

    async def _register_cuda(self, request: Any) -> Any:
        check_allowed(self._allowed)
        await self._requester.call(
            RegisterCudaRegion(0, request.name, request.raw_handle, request.device_id, request.byte_size)
        )
        return pb.CudaSharedMemoryRegisterResponse()

    async def _unregister_system(self, request: Any) -> Any:
        check_allowed(self._allowed)
        await self._requester.call(UnregisterRegions(0, "system", request.name))
        return pb.SystemSharedMemoryUnregisterResponse()

    async def _unregister_cuda(self, request: Any) -> Any:
        check_allowed(self._allowed)
        await self._requester.call(UnregisterRegions(0, "cuda", request.name))
        return pb.CudaSharedMemoryUnregisterResponse()
