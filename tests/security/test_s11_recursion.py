"""S11: values nested 250,000 deep, wherever a client can send one. Nothing recurses into them."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.harness import Server
from tests.security.conftest import NUMBERS, Witness
from tests.security.wire import POST_PATHS, answer, head

DEPTH = 250_000
GROWN_NBYTES = 64 << 20
#: these read no body
BODILESS = "unregister"
GOOD = [{"name": f"INPUT{i}", "shape": [1, 16], "datatype": "INT32", "data": NUMBERS} for i in (0, 1)]

#: text that is nested ``DEPTH`` times, complete or not
NESTED: dict[str, str] = {
    "arrays": "[" * DEPTH + "]" * DEPTH,
    "arrays without an end": "[" * DEPTH,
    "objects": '{"a":' * DEPTH + "1" + "}" * DEPTH,
    "objects without an end": '{"a":' * DEPTH,
    "both": '[{"a":' * (DEPTH // 2) + "1" + "}]" * (DEPTH // 2),
    "NaN within arrays": "[" * DEPTH + "NaN" + "]" * DEPTH,  # a second parser reads what is no standard JSON
}

#: bodies around a nested value
AROUND: dict[str, Callable[[str], str]] = {
    "a member that nobody knows": lambda nested: f'{{"x":{nested}}}',
    "parameters": lambda nested: f'{{"parameters":{nested},"inputs":{json.dumps(GOOD)}}}',
    "a parameter": lambda nested: f'{{"parameters":{{"config":{nested}}},"inputs":{json.dumps(GOOD)}}}',
    "inputs": lambda nested: f'{{"inputs":{nested}}}',
    "data": lambda nested: f'{{"inputs":[{{"name":"INPUT0","shape":[1],"datatype":"BYTES","data":{nested}}}]}}',
    "a text": lambda nested: f'{{"INPUT0":{nested},"key":{nested},"raw_handle":{nested},"log_file":{nested}}}',
}


@pytest.mark.timeout(120)
def test_every_route(server: Server, witness: Witness) -> None:
    """Told so, whether the rest of the body is right or not; what does not read its body does not mind."""
    bodies = {**NESTED, **{place: around(NESTED["arrays"]) for place, around in AROUND.items()}}
    for path in POST_PATHS:
        for name, nested in bodies.items():
            body = nested.encode()
            status, text = answer(server, head(path, f"Content-Length: {len(body)}") + body)
            if path.endswith(BODILESS):
                assert (status, text) == (200, b""), (path, name)
            else:
                assert status in (400, 500), (path, name, status, text[:200])
                assert b"internal error" not in text, (path, name, text)
    witness.check(GROWN_NBYTES)


@pytest.mark.timeout(60)
def test_configuration_that_a_load_brings(server: Server, witness: Witness) -> None:
    """It is a text in JSON, which has JSON in it. The model stays as it was."""
    configs = list(NESTED.values())
    for around in ('{{"x":{}}}', '{{"max_batch_size":{}}}', '{{"input":{}}}', '{{"parameters":{{"a":{}}}}}'):
        configs.append(around.format(NESTED["arrays"]))
    for config in configs:
        body = json.dumps({"parameters": {"config": config}}).encode()
        path = "/v2/repository/models/simple/load"
        status, text = answer(server, head(path, f"Content-Length: {len(body)}") + body)
        assert status in (400, 500) and b"failed to load 'simple'" in text, (status, text[:500])
        with grpc.insecure_channel(server.grpc_url) as channel:
            request = pb.RepositoryModelLoadRequest(model_name="simple")
            request.parameters["config"].string_param = config
            with pytest.raises(grpc.RpcError) as raised:
                channel.unary_unary(SERVICE + "RepositoryModelLoad")(request.SerializeToString(), timeout=20)
            assert "failed to load 'simple'" in (raised.value.details() or "")
    witness.check(GROWN_NBYTES)


def nested_groups(depth: int) -> bytes:
    """Unknown fields that hold each other."""
    return b"\x0b" * depth + b"\x0c" * depth


def nested_messages(depth: int) -> bytes:
    """Fields with the number of ``parameters``, each the value of the one before, as deep as a length allows."""
    found = b""
    for _ in range(depth):
        length, nbytes = bytearray(), len(found)
        while nbytes > 0x7F:
            length.append(nbytes & 0x7F | 0x80)
            nbytes >>= 7
        found = b"\x22" + bytes(length) + bytes([nbytes]) + found
    return found


@pytest.mark.timeout(60)
def test_grpc_parameters(server: Server, witness: Witness) -> None:
    texts: list[Any] = []
    for nested in NESTED.values():
        for key in ("config", "sequence_id", "headers", "x"):
            request = pb.ModelInferRequest(model_name="simple")
            request.parameters[key].string_param = nested
            texts.append(request.SerializeToString())
    raw = [nested_groups(DEPTH), nested_groups(50), b"\x0b" * DEPTH, nested_messages(2_000), b"\x22\x05" * DEPTH]
    with grpc.insecure_channel(server.grpc_url) as channel:
        for method in ("ModelInfer", "RepositoryModelLoad", "TraceSetting", "LogSettings", "ServerMetadata"):
            for payload in (*raw, *(texts if method == "ModelInfer" else ())):
                try:
                    channel.unary_unary(SERVICE + method)(payload, timeout=20)
                except grpc.RpcError as error:
                    assert error.code().name in ("INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND"), error.details()
                    assert "internal error" not in (error.details() or "")
    witness.check(GROWN_NBYTES)
