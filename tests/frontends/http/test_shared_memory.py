"""Registration of clients' memory, and requests that name it. What the real Triton answers was asked of it."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from conch.errors import AlreadyExists, ConchError, InvalidArgument, MalformedJson, NotFound
from conch.messages import Region, RegionTable, RegisterCudaRegion, RegisterRegion, UnregisterRegions
from conch.requester.inference import OutputTensor, RegionWindow
from conch.requester.regions import RegionTableView
from frontends.http.request_body import decode
from frontends.http.response_body import encode
from tests.frontends.http.codecs import LIMIT, SIMPLE, json_nbytes, result, whole
from tests.frontends.http.support import Frontend, tensor

SYSTEM = "/v2/systemsharedmemory"
CUDA = "/v2/cudasharedmemory"
HANDLE = bytes(range(64))
NOT_STRING = "attempt to access JSON non-string as string"
NOT_UNSIGNED = "attempt to access JSON non-unsigned-integer as unsigned-integer"
DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."


@pytest.fixture
def shared() -> Iterator[Frontend]:
    with Frontend(allow_client_shm="true") as running:
        running.requester.regions.update(
            RegionTable(
                1,
                1,
                (
                    Region("system", "b", 2, 16, 4096, "/key2"),
                    Region("system", "a b", 1, 0, 2**40, "/key"),
                    Region("cuda", "gpu", 3, 0, 64, device=1, handle=HANDLE),
                ),
            )
        )
        yield running


def post(frontend: Frontend, path: str, body: Any = b"") -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, text = frontend.request("POST", path, data)
    return status, json.loads(text) if text else None


def get(frontend: Frontend, path: str) -> tuple[int, Any]:
    status, _, text = frontend.request("GET", path)
    return status, json.loads(text)


def test_status(shared: Frontend) -> None:
    a = {"name": "a b", "key": "/key", "offset": 0, "byte_size": 2**40}
    b = {"name": "b", "key": "/key2", "offset": 16, "byte_size": 4096}
    gpu = {"name": "gpu", "device_id": 1, "byte_size": 64}
    assert get(shared, f"{SYSTEM}/status") == (200, [a, b])
    assert get(shared, f"{SYSTEM}/region/a%20b/status") == (200, [a])
    assert get(shared, f"{CUDA}/status") == (200, [gpu])
    assert get(shared, f"{CUDA}/region/gpu/status") == (200, [gpu])
    for kind in ("system", "cuda"):
        text = f"Unable to find {kind} shared memory region: 'x'"
        assert get(shared, f"/v2/{kind}sharedmemory/region/x/status") == (404, {"error": text})
    text = "The region named 'gpu' is registered as CUDA shared memory, not system shared memory"
    assert get(shared, f"{SYSTEM}/region/gpu/status") == (404, {"error": text})


def test_register(shared: Frontend) -> None:
    assert post(shared, f"{SYSTEM}/region/r%2F1/register", {"key": "/k", "offset": 8, "byte_size": 16}) == (200, None)
    assert post(shared, f"{SYSTEM}/region/r/register", {"key": "", "byte_size": 2**64 - 1, "x": 1}) == (200, None)
    body = {"raw_handle": {"b64": base64.b64encode(HANDLE).decode()}, "device_id": 1, "byte_size": 64}
    assert post(shared, f"{CUDA}/region/g/register", body) == (200, None)
    assert shared.requester.messages == [
        RegisterRegion(0, "r/1", "/k", 8, 16),
        RegisterRegion(0, "r", "", 0, 2**64 - 1),
        RegisterCudaRegion(0, "g", HANDLE, 1, 64),
    ]


def test_unregister(shared: Frontend) -> None:
    assert post(shared, f"{SYSTEM}/region/r/unregister") == (200, None)
    assert post(shared, f"{SYSTEM}/unregister", b"{{{") == (200, None)
    assert post(shared, f"{CUDA}/region/r/unregister") == (200, None)
    assert post(shared, f"{CUDA}/unregister") == (200, None)
    assert shared.requester.messages == [
        UnregisterRegions(0, "system", "r"),
        UnregisterRegions(0, "system"),
        UnregisterRegions(0, "cuda", "r"),
        UnregisterRegions(0, "cuda"),
    ]


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 500, "failed to parse the request JSON buffer: The document is empty. at 0"),
        (b"{", 500, "failed to parse the request JSON buffer: Missing a name for object member. at 1"),
        ([], 400, "Shared memory register request has no 'key' field"),
        (5, 400, "Shared memory register request has no 'key' field"),
        ({"byte_size": "x", "offset": "y"}, 400, "Shared memory register request has no 'key' field"),
        ({"key": 5, "byte_size": "x", "offset": "y"}, 500, NOT_STRING),
        ({"key": None}, 500, NOT_STRING),
        ({"key": "/k"}, 400, "Shared memory register request has no 'byte_size' field"),
        ({"key": "/k", "offset": "y"}, 500, NOT_UNSIGNED),
        *(({"key": "/k", "byte_size": 4, "offset": bad}, 500, NOT_UNSIGNED) for bad in (None, -1, "0", 2**64)),
        *(({"key": "/k", "byte_size": bad}, 500, NOT_UNSIGNED) for bad in (None, -1, 1.5, True, "4", 2**64, 2**70)),
    ],
)
def test_bad_registrations(shared: Frontend, body: Any, status: int, text: str) -> None:
    assert post(shared, f"{SYSTEM}/region/r/register", body) == (status, {"error": text})
    assert not shared.requester.messages


def _handle(text: Any) -> dict[str, Any]:
    return {"raw_handle": {"b64": text}, "device_id": 0, "byte_size": 64}


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 500, "failed to parse the request JSON buffer: The document is empty. at 0"),
        ({}, 400, "Shared memory register request has no 'raw_handle' field"),
        ({"raw_handle": 5}, 500, "attempt to access non-existing object member 'b64'"),
        ({"raw_handle": {}}, 500, "attempt to access non-existing object member 'b64'"),
        ({"raw_handle": {"b64": 5}}, 500, NOT_STRING),
        (
            {"raw_handle": {"b64": "AA=="}, "device_id": 0},
            500,
            "attempt to access non-existing object member 'byte_size'",
        ),
        (
            {"raw_handle": {"b64": "AA=="}, "byte_size": 0},
            500,
            "attempt to access non-existing object member 'device_id'",
        ),
        ({"raw_handle": {"b64": "AA=="}, "byte_size": 0, "device_id": -1}, 500, NOT_UNSIGNED),
        *(
            (_handle(bad), 400, "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
            for bad in (
                "",
                "!!",
                "AAAA",
                base64.b64encode(bytes(63)).decode(),
                base64.b64encode(bytes(65)).decode(),
                "ü",
            )
        ),
    ],
)
def test_bad_cuda_registrations(shared: Frontend, body: Any, status: int, text: str) -> None:
    assert post(shared, f"{CUDA}/region/r/register", body) == (status, {"error": text})
    assert not shared.requester.messages


def test_a_region_needs_a_name(shared: Frontend) -> None:
    for kind in ("system", "cuda"):
        text = f"'region name' is necessary to register {kind} shared memory region"
        assert post(shared, f"/v2/{kind}sharedmemory/register", {}) == (400, {"error": text})
    for path in ("", "/region/x", "/region//status", "/region/x/other", "/status/", "/region/x/y/status"):
        assert shared.request("GET", SYSTEM + path)[0] == 404


@pytest.mark.parametrize(
    ("error", "status"),
    [(AlreadyExists("shared memory region 'r' already in manager"), 400), (InvalidArgument("invalid args"), 400)],
)
def test_what_the_broker_refuses(shared: Frontend, error: ConchError, status: int) -> None:
    shared.requester.answers.append(error)
    body = {"key": "/k", "byte_size": 16}
    assert post(shared, f"{SYSTEM}/region/r/register", body) == (status, {"error": error.message})


def test_switched_off() -> None:
    with Frontend(allow_client_shm="false") as frontend:
        for kind in ("system", "cuda"):
            for path in ("register", "region/x/register", "unregister", "region/x/unregister"):
                assert post(frontend, f"/v2/{kind}sharedmemory/{path}", b"{") == (501, {"error": DISABLED})
            assert get(frontend, f"/v2/{kind}sharedmemory/status") == (200, [])
        assert not frontend.requester.messages


# ---------------------------------------------------------------------------------------------------- requests


@pytest.fixture(scope="module")
def regions() -> RegionTableView:
    view = RegionTableView()
    view.update(RegionTable(1, 1, (Region("system", "r", 7, 0, 4096, "/k"), Region("cuda", "g", 8, 0, 4096))))
    return view


def place(region: Any = "r", size: Any = 64, offset: Any = 0, **more: Any) -> dict[str, Any]:
    found = {"shared_memory_region": region, "shared_memory_byte_size": size, "shared_memory_offset": offset, **more}
    return {name: value for name, value in found.items() if value is not ...}


def inputs(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": "INPUT0", "datatype": "INT32", "shape": [1, 16], "parameters": parameters},
        tensor("INPUT1", "INT32", [1, 16], [1] * 16),
    ]


def decoded(body: Any, regions: RegionTableView) -> Any:
    text = json.dumps(body).encode()
    return decode(text, len(text), SIMPLE, regions, LIMIT)


def test_inputs_in_regions(regions: RegionTableView) -> None:
    call, _ = decoded({"inputs": inputs(place(offset=128))}, regions)
    assert call.inputs[0].region == RegionWindow("r", 7, 128, 64)
    assert (call.inputs[0].data, call.inputs[0].shape) == (b"", (1, 16))
    assert call.inputs[1].region is None and len(call.inputs[1].data) == 64
    call, _ = decoded({"inputs": inputs(place("g", 4096, ..., other=1))}, regions)
    assert call.inputs[0].region == RegionWindow("g", 8, 0, 4096, True)


def test_outputs_in_regions(regions: RegionTableView) -> None:
    outputs = [
        {"name": "OUTPUT1", "parameters": {"binary_data": True}},
        {"name": "OUTPUT0", "parameters": place(offset=4032, binary_data=False)},
    ]
    call, formats = decoded({"inputs": inputs(place()), "outputs": outputs}, regions)
    assert call.outputs == ("OUTPUT1", "OUTPUT0")
    assert call.targets == {"OUTPUT0": RegionWindow("r", 7, 4032, 64)}
    written = OutputTensor("OUTPUT0", "INT32", (1, 16), b"", call.targets["OUTPUT0"])
    sent = OutputTensor("OUTPUT1", "INT32", (1, 1), b"\1\0\0\0")
    reply = encode(result(written, sent), formats, SIMPLE)
    assert whole(reply).endswith(b"}\1\0\0\0")
    assert json.loads(whole(reply)[: json_nbytes(reply)])["outputs"] == [
        {"name": "OUTPUT0", "datatype": "INT32", "shape": [1, 16]},
        {"name": "OUTPUT1", "datatype": "INT32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
    ]


def _unable(name: str, what: str) -> str:
    return f"Unable to parse '{name}': {what}"


BAD_PLACES = [
    (place("x"), NotFound, "Unable to find shared memory region: 'x'"),
    (place(""), NotFound, "Unable to find shared memory region: ''"),
    (place("x", ..., ...), NotFound, "Unable to find shared memory region: 'x'"),
    (place(offset=4096), InvalidArgument, "Invalid offset for shared memory region: 'r'"),
    (place(offset=2**64 - 1), InvalidArgument, "Invalid offset for shared memory region: 'r'"),
    (place(offset=4095), InvalidArgument, "Invalid offset + byte size for shared memory region: 'r'"),
    (place(size=4097), InvalidArgument, "Invalid offset + byte size for shared memory region: 'r'"),
    (place(size=2**63), InvalidArgument, "Invalid offset + byte size for shared memory region: 'r'"),
    (
        place(size=2**64 - 1, offset=1),
        InvalidArgument,
        "Integer overflow detected: byte_size (18446744073709551615) + offset (1) exceeds maximum value "
        "(18446744073709551615) for region 'r'",
    ),
    *(
        (place(offset=bad, size="x"), MalformedJson, _unable("shared_memory_offset", NOT_UNSIGNED))
        for bad in (None, -1, "0", 1.0, True, 2**64)
    ),
    *(
        (place("x", size=bad), MalformedJson, _unable("shared_memory_byte_size", NOT_UNSIGNED))
        for bad in (None, -1, "64", 64.0, True, 2**64)
    ),
    *(
        (place(bad, size="x", offset="y"), MalformedJson, _unable("shared_memory_region", NOT_STRING))
        for bad in (5, None, ["r"], {"r": 1})
    ),
]


@pytest.mark.parametrize(("parameters", "kind", "text"), BAD_PLACES)
def test_places_that_are_none(
    regions: RegionTableView, parameters: dict[str, Any], kind: type[ConchError], text: str
) -> None:
    with pytest.raises(kind) as raised:
        decoded({"inputs": inputs(parameters)}, regions)
    assert raised.value.message == text
    outputs = [{"name": "OUTPUT0", "parameters": parameters}]
    with pytest.raises(kind) as raised:
        decoded({"inputs": inputs(place()), "outputs": outputs}, regions)
    assert raised.value.message == text


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"classification": 0}, "Output can't set both 'shared_memory_region' and 'classification'"),
        (
            {"classification": "x", "binary_data": True},
            "Output can't set both 'shared_memory_region' and 'classification'",
        ),
        ({"binary_data": True}, "Output can't set both 'shared_memory_region' and 'binary_data'"),
        ({"binary_data": 5}, "Unable to set 'binary_data': attempt to access JSON non-boolean as boolean"),
    ],
)
def test_outputs_that_want_two_things(regions: RegionTableView, more: dict[str, Any], text: str) -> None:
    outputs = [{"name": "OUTPUT0", "parameters": place("x", **more)}]
    with pytest.raises(ConchError) as raised:
        decoded({"inputs": inputs(place()), "outputs": outputs}, regions)
    assert raised.value.message == text


def test_a_region_and_a_blob(regions: RegionTableView) -> None:
    with pytest.raises(InvalidArgument, match=r"But set 'binary_data_size' 'shared_memory_region'$"):
        decoded({"inputs": inputs(place(binary_data_size=64))}, regions)
    with pytest.raises(InvalidArgument, match=r"But no field is set$"):
        decoded({"inputs": inputs(place(...))}, regions)


def test_unknown_regions_over_http(shared: Frontend) -> None:
    answer = shared.infer("simple", {"inputs": inputs(place("x"))})
    assert answer == (404, {"error": "Unable to find shared memory region: 'x'"})
