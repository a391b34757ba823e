"""Clients' shared memory: its registration, and what is registered (inventory H-14 … H-17, X-20, X-21)."""

import base64
import binascii
from typing import Any, Final

from conch.errors import InvalidArgument, MalformedJson
from conch.messages import RegionKind, RegisterCudaRegion, RegisterRegion, UnregisterRegions
from conch.requester.regions import check_allowed
from conch.settings import Settings
from frontends.http.calls import BrokerCall
from frontends.http.exchange import JSON_TYPE, Pending, Reply, Request, json_reply
from frontends.http.json_values import NOT_STRING, NOT_UNSIGNED, is_unsigned, missing, parse_members
from frontends.http.routes import Match
from frontends.requesting import RequesterLike

_HANDLE_NBYTES: Final = 64


class SharedMemoryEndpoints:
    def __init__(self, requester: RequesterLike, settings: Settings) -> None:
        self._requester = requester
        self._allowed = settings.client_shm_allowed
        self._max_input_nbytes = settings.http_max_input_size

    def system_regions(self, request: Request, match: Match) -> Reply:
        return json_reply(
            [
                {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.nbytes}
                for region in self._requester.regions.listed("system", match.region)
            ]
        )

    def cuda_regions(self, request: Request, match: Match) -> Reply:
        return json_reply(
            [
                {"name": region.name, "device_id": region.device, "byte_size": region.nbytes}
                for region in self._requester.regions.listed("cuda", match.region)
            ]
        )

    def system_region_register(self, request: Request, match: Match) -> Pending:
        body = self._registration(request, match, "system")
        key = _string(_required(body, "key"))
        offset = _unsigned(body["offset"]) if "offset" in body else 0
        nbytes = _unsigned(_required(body, "byte_size"))
        return self._call(RegisterRegion(0, match.region, key, offset, nbytes))

    def cuda_region_register(self, request: Request, match: Match) -> Pending:
        body = self._registration(request, match, "cuda")
        text = _string(_member(_required(body, "raw_handle"), "b64"))
        nbytes = _unsigned(_member(body, "byte_size"))
        device = _unsigned(_member(body, "device_id"))
        return self._call(RegisterCudaRegion(0, match.region, _handle(text), device, nbytes))

    def system_region_unregister(self, request: Request, match: Match) -> Pending:
        return self._unregister(match, "system")

    def cuda_region_unregister(self, request: Request, match: Match) -> Pending:
        return self._unregister(match, "cuda")

    def _registration(self, request: Request, match: Match, kind: RegionKind) -> dict[str, Any]:
        check_allowed(self._allowed)
        if not match.region:
            raise InvalidArgument(f"'region name' is necessary to register {kind} shared memory region")
        return parse_members(bytes(request.body), self._max_input_nbytes)

    def _unregister(self, match: Match, kind: RegionKind) -> Pending:
        check_allowed(self._allowed)
        return self._call(UnregisterRegions(0, kind, match.region))

    def _call(self, message: RegisterRegion | RegisterCudaRegion | UnregisterRegions) -> Pending:
        return BrokerCall(self._requester.call(message), lambda result: Reply(200, JSON_TYPE))


def _required(body: dict[str, Any], name: str) -> Any:
    if name not in body:
        raise InvalidArgument(f"Shared memory register request has no '{name}' field")
    return body[name]


def _member(value: Any, name: str) -> Any:
    if type(value) is not dict or name not in value:
        raise MalformedJson(missing(name))
    return value[name]


def _string(value: Any) -> str:
    if type(value) is not str:
        raise MalformedJson(NOT_STRING)
    return value


def _unsigned(value: Any) -> int:
    if not is_unsigned(value):
        raise MalformedJson(NOT_UNSIGNED)
    return int(value)


def _handle(text: str) -> bytes:
    try:
        handle = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        handle = b""
    if len(handle) != _HANDLE_NBYTES:
        raise InvalidArgument("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
    return handle
