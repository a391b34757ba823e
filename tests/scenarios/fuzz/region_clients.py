"""The steps of ``region_steps`` over each protocol. Every function returns whether the server did as it was told, and
raises ``Finding`` if it blamed itself."""

import http.client
import json
from typing import Any, Protocol
from urllib.parse import quote

import grpc

from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.fuzz.region_steps import Infer, Window
from tests.scenarios.fuzz.watch import REGION_ERRORS, Watch, check_grpc, check_http


class Client(Protocol):
    def register(self, name: str, key: str, offset: int, nbytes: int) -> bool: ...
    def unregister(self, name: str) -> bool: ...
    def status(self, name: str) -> bool: ...
    def infer(self, step: Infer, data: bytes) -> bool: ...


class HttpClient:
    def __init__(self, watch: Watch) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", watch.server.http_port, timeout=10)

    def close(self) -> None:
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bool:
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        text = response.read()
        check_http(response.status, text, *REGION_ERRORS)
        return response.status == 200

    def register(self, name: str, key: str, offset: int, nbytes: int) -> bool:
        body = json.dumps({"key": key, "offset": offset, "byte_size": nbytes}).encode()
        return self._ask("POST", f"{_path(name)}/register", body)

    def unregister(self, name: str) -> bool:
        return self._ask("POST", f"{_path(name)}/unregister")

    def status(self, name: str) -> bool:
        return self._ask("GET", f"{_path(name)}/status")

    def infer(self, step: Infer, data: bytes) -> bool:
        tensor: dict[str, Any] = {"name": "INPUT0", "datatype": step.datatype, "shape": step.shape}
        tensor["parameters"] = {"binary_data_size": len(data)} if step.source is None else _parameters(step.source)
        document: dict[str, Any] = {"inputs": [tensor]}
        if step.target is not None:
            document["outputs"] = [{"name": "OUTPUT0", "parameters": _parameters(step.target)}]
        text = json.dumps(document).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        body = text + (data if step.source is None else b"")
        return self._ask("POST", f"/v2/models/{step.model}/infer", body, headers)


def _path(name: str) -> str:
    return "/v2/systemsharedmemory" + (f"/region/{quote(name, safe='')}" if name else "")


def _parameters(window: Window) -> dict[str, Any]:
    found = {
        "shared_memory_region": window.name,
        "shared_memory_offset": window.offset,
        "shared_memory_byte_size": window.nbytes,
    }
    return {key: value for key, value in found.items() if value is not None}


class GrpcClient:
    def __init__(self, watch: Watch) -> None:
        self._channel = grpc.insecure_channel(watch.server.grpc_url, [("grpc.use_local_subchannel_pool", 1)])

    def close(self) -> None:
        self._channel.close()

    def _ask(self, method: str, message: Any) -> bool:
        try:
            self._channel.unary_unary(SERVICE + method)(message.SerializeToString(), timeout=10)
        except grpc.RpcError as error:
            check_grpc(error.code().name, error.details() or "", *REGION_ERRORS)
            return False
        return True

    def register(self, name: str, key: str, offset: int, nbytes: int) -> bool:
        """Numbers of more than 64 bits cannot be sent."""
        if not (0 <= offset < 2**64 and 0 <= nbytes < 2**64):
            return False
        request = pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=nbytes)
        return self._ask("SystemSharedMemoryRegister", request)

    def unregister(self, name: str) -> bool:
        return self._ask("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name))

    def status(self, name: str) -> bool:
        return self._ask("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name))

    def infer(self, step: Infer, data: bytes) -> bool:
        request = pb.ModelInferRequest(model_name=step.model)
        tensor = request.inputs.add(name="INPUT0", datatype=step.datatype, shape=step.shape)
        if step.source is None:
            request.raw_input_contents.append(data)
        else:
            _set_parameters(tensor, step.source)
        if step.target is not None:
            _set_parameters(request.outputs.add(name="OUTPUT0"), step.target)
        return self._ask("ModelInfer", request)


def _set_parameters(tensor: Any, window: Window) -> None:
    for key, value in _parameters(window).items():
        parameter = tensor.parameters[key]
        if isinstance(value, str):
            parameter.string_param = value
        elif -(2**63) <= value < 2**63:
            parameter.int64_param = value
        else:
            parameter.uint64_param = value % 2**64
