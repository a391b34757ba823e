"""S3: where a client's shared memory begins and ends. Numbers that lie outside it, or are none, are refused at the
registration and at each use; and no process but a worker of the model ever maps such memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.client_memory import ClientMemory, client_memory
from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.harness import Server
from tests.security.conftest import ROLES, Witness

NBYTES = 8192
PAGE_NBYTES = 4096
GROWN_NBYTES = 8 << 20
SYSTEM = "/v2/systemsharedmemory"
#: JSON's own numbers that no place in memory has; Triton answers 500 to these, a client's fault though they are
NOT_UNSIGNED = ("-1", "-9223372036854775808", "18446744073709551616", '"1"', "1.0", "1e3", "true", "null", "[0]", "NaN")
#: in a region of ``NBYTES``, for a tensor of 64 bytes
OUTSIDE = (NBYTES, NBYTES + 1, NBYTES - 63, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 64, 2**64 - 1)


@pytest.fixture
def memory() -> Iterator[ClientMemory]:
    with client_memory(NBYTES) as memory:
        memory.view[:] = bytes(range(256)) * (NBYTES // 256)
        yield memory


@pytest.fixture
def region(server: Server, memory: ClientMemory) -> Iterator[str]:
    """The whole of ``memory``, registered as this."""
    status, text = register(server, "mine", memory.key, "0", str(NBYTES))
    assert status == 200, text
    yield "mine"
    assert server.request("POST", f"{SYSTEM}/unregister")[0] == 200


def register(server: Server, name: str, key: str, offset: str, nbytes: str) -> tuple[int, str]:
    """``offset`` and ``nbytes`` are JSON."""
    body = f'{{"key":{json.dumps(key)},"offset":{offset},"byte_size":{nbytes}}}'
    status, text = server.request("POST", f"{SYSTEM}/region/{name}/register", body.encode())
    return status, text.decode()


def place(region: str, offset: str, nbytes: str) -> str:
    return f'{{"shared_memory_region":"{region}","shared_memory_offset":{offset},"shared_memory_byte_size":{nbytes}}}'


def infer(server: Server, source: str, target: str) -> tuple[int, str]:
    """64 numbers out of one place into another; both are parameters in JSON."""
    body = f"""{{"inputs":[{{"name":"INPUT0","datatype":"UINT8","shape":[64],"parameters":{source}}}],
        "outputs":[{{"name":"OUTPUT0","parameters":{target}}}]}}"""
    status, text = server.request("POST", "/v2/models/numbers/infer", body.encode())
    return status, text.decode()


def numbers_that_are_none(status: int, text: str) -> bool:
    """What Triton says to these as well."""
    return status == 500 and ("attempt to access JSON non-unsigned-integer" in text or "JSON buffer" in text)


def test_registrations(server: Server, witness: Witness, memory: ClientMemory) -> None:
    for offset in NOT_UNSIGNED:
        assert numbers_that_are_none(*register(server, "r", memory.key, offset, "64")), offset
        assert numbers_that_are_none(*register(server, "r", memory.key, "0", offset)), offset
    for place in (*OUTSIDE, 1, PAGE_NBYTES + 1):
        assert register(server, "r", memory.key, str(place), "64")[0] == (400 if place < 2**64 else 500), place
    for nbytes in (0, NBYTES + 1, 2**63 - 1, 2**63, 2**64 - 1):
        assert register(server, "r", memory.key, "0", str(nbytes))[0] == 400, nbytes
    assert json.loads(server.request("GET", f"{SYSTEM}/status")[1]) == []
    # exactly to the end
    assert register(server, "r", memory.key, str(PAGE_NBYTES), str(PAGE_NBYTES)) == (200, "")
    assert server.request("POST", f"{SYSTEM}/region/r/unregister")[0] == 200
    witness.check(GROWN_NBYTES)


def test_places_in_requests(server: Server, witness: Witness, memory: ClientMemory, region: str) -> None:
    before = bytes(memory.view)
    good = place(region, "0", "64")
    for number in NOT_UNSIGNED:
        for wrong in (place(region, number, "64"), place(region, "0", number)):
            assert numbers_that_are_none(*infer(server, wrong, good)), wrong
            assert numbers_that_are_none(*infer(server, good, wrong)), wrong
    for offset in OUTSIDE:
        wrong = place(region, str(offset), "64")
        for status, text in (infer(server, wrong, good), infer(server, good, wrong)):
            assert status == 400, (wrong, text)
            assert "for shared memory region" in text or "Integer overflow" in text, (wrong, text)
    for nbytes in (NBYTES + 1, 2**63 - 1, 2**63, 2**64 - 1):
        wrong = place(region, "0", str(nbytes))
        for status, text in (infer(server, wrong, good), infer(server, good, wrong)):
            assert status == 400, (wrong, text)
    # of the wrong size for the tensor
    for nbytes in (0, 63, 65):
        assert infer(server, place(region, "0", str(nbytes)), good)[0] == 400, nbytes
    assert infer(server, good, place(region, "0", "63"))[0] == 500  # Triton's number for what does not fit
    assert bytes(memory.view) == before
    # exactly at the end
    assert infer(server, place(region, str(NBYTES - 64), "64"), good)[0] == 200
    assert bytes(memory.view[:64]) == before[-64:]
    assert bytes(memory.view[64:]) == before[64:]
    witness.check(GROWN_NBYTES)


def test_grpc(server: Server, witness: Witness, memory: ClientMemory, region: str) -> None:
    before = bytes(memory.view)
    with grpc.insecure_channel(server.grpc_url) as channel:

        def code(method: str, message: Any) -> str:
            try:
                channel.unary_unary(SERVICE + method)(message.SerializeToString(), timeout=10)
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        for offset, nbytes in [*((each, 64) for each in OUTSIDE), *((0, each) for each in (0, NBYTES + 1, 2**64 - 1))]:
            message = pb.SystemSharedMemoryRegisterRequest(name="r", key=memory.key, offset=offset, byte_size=nbytes)
            assert code("SystemSharedMemoryRegister", message) == "INVALID_ARGUMENT", (offset, nbytes)
        assert code("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="r")) == "NOT_FOUND"

        nones: list[tuple[str, Any]] = [("int64_param", -1), ("int64_param", -(2**63)), ("string_param", "1")]
        nones += [("string_param", ""), ("double_param", 1.0), ("bool_param", True), ("uint64_param", 0)]
        wrong = [("shared_memory_offset", *each) for each in nones]
        wrong += [("shared_memory_byte_size", *each) for each in nones]
        wrong += [("shared_memory_offset", "int64_param", each) for each in OUTSIDE if each < 2**63]
        wrong += [("shared_memory_byte_size", "int64_param", each) for each in (NBYTES + 1, 2**32, 2**63 - 1)]
        for name, field, value in wrong:
            for side in ("inputs", "outputs"):
                message = request(region, region)
                parameters = getattr(message, side)[0].parameters
                parameters[name].Clear()
                setattr(parameters[name], field, value)
                assert code("ModelInfer", message) == "INVALID_ARGUMENT", (name, field, value, side)
        assert bytes(memory.view) == before
        message = request(region, region)
        message.inputs[0].parameters["shared_memory_offset"].int64_param = NBYTES - 64
        assert code("ModelInfer", message) == "OK"
    assert bytes(memory.view[:64]) == before[-64:]
    witness.check(GROWN_NBYTES)


def request(source: str, target: str) -> Any:
    message = pb.ModelInferRequest(model_name="numbers")
    places = (message.inputs.add(name="INPUT0", datatype="UINT8", shape=[64]), message.outputs.add(name="OUTPUT0"))
    for each, name in zip(places, (source, target), strict=True):
        each.parameters["shared_memory_region"].string_param = name
        each.parameters["shared_memory_byte_size"].int64_param = 64
        each.parameters["shared_memory_offset"].int64_param = 0
    return message


def test_only_workers_map_it(server: Server, witness: Witness, memory: ClientMemory, region: str) -> None:
    """Whoever maps it dies of SIGBUS when its owner cuts it."""
    good = place(region, "0", "64")
    assert infer(server, good, place(region, "128", "64"))[0] == 200
    with grpc.insecure_channel(server.grpc_url) as channel:
        channel.unary_unary(SERVICE + "ModelInfer")(request(region, region).SerializeToString(), timeout=10)
    mapped = {role: memory.key in Path(f"/proc/{pid}/maps").read_text() for role, pid in witness.pids.items()}
    assert not any(mapped[role] for role in ROLES), mapped
    assert mapped.pop("numbers_0_0") and not any(mapped.values()), mapped


def test_a_key_is_looked_up_at_each_registration(server: Server, witness: Witness, memory: ClientMemory) -> None:
    """What is registered stays the file that it was; what is registered anew is the file that there is now."""
    assert register(server, "old", memory.key, "0", str(NBYTES)) == (200, "")
    memory.unlink()
    status, text = register(server, "new", memory.key, "0", str(NBYTES))
    assert status == 500 and "Unable to open shared memory region" in text
    path = Path(f"/dev/shm{memory.key}")
    path.write_bytes(b"\7" * 64)
    try:
        assert register(server, "new", memory.key, "0", str(NBYTES))[0] == 400  # it is smaller
        assert register(server, "new", memory.key, "0", "64") == (200, "")
        memory.view[:64] = b"\5" * 64
        assert infer(server, place("new", "0", "64"), place("old", "64", "64"))[0] == 200
        assert bytes(memory.view[64:128]) == b"\7" * 64
        assert infer(server, place("old", "0", "64"), place("new", "0", "64"))[0] == 200
        assert path.read_bytes() == b"\5" * 64
    finally:
        path.unlink()
        assert server.request("POST", f"{SYSTEM}/unregister")[0] == 200
    witness.check(GROWN_NBYTES)
