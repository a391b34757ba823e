"""S9, numbers: sizes, shapes, offsets and lengths at the edges of what integers hold. Every request is refused or
answered rightly, and nothing is allocated before that is decided."""

import http.client
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.client_memory import ClientMemory, client_memory
from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.harness import Server
from tests.security.conftest import Witness

pytestmark = pytest.mark.timeout(60)

EXAMPLES = 250
WITHIN_S = 4.0
GROWN_NBYTES = 48 << 20
PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")
REGION_NBYTES = 2 * PAGE_NBYTES
EDGES = (
    *(0, 1, 2, 3, 7, 8, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33, 2**53, 2**53 + 1),
    *(2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**65, 10**30, -1, -2, -(2**31), -(2**63)),
)
#: what JSON may have in the place of a whole number
NO_INTEGERS = (
    *("NaN", "Infinity", "-Infinity", '"1"', "true", "false", "null", "1.0", "1.5", "1e2", "1E400", "-0", "0x10"),
    *("01", "+1", "1_000", "[]", "[1]", "{}", "\u0661", "1 2"),
)
NBYTES = {"UINT8": 1, "INT16": 2, "FP16": 2, "INT32": 4, "FP32": 4, "INT64": 8, "FP64": 8, "BOOL": 1, "BYTES": 1}

number = st.sampled_from([str(each) for each in EDGES]) | st.sampled_from(NO_INTEGERS)
small = st.sampled_from(["0", "1", "2", "4", "16"])


class Asker:
    """Sends requests on one connection each, and looks at what comes back."""

    def __init__(self, server: Server) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        self._channel = grpc.insecure_channel(server.grpc_url)
        self._infer = self._channel.unary_unary(SERVICE + "ModelInfer")
        self.statuses: dict[int, int] = {}
        self._until = time.monotonic() + WITHIN_S

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._until

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        self._http.request("POST", path, body, headers or {})
        response = self._http.getresponse()
        text = response.read()
        self.statuses[response.status] = self.statuses.get(response.status, 0) + 1
        # Triton's status for JSON that is none, or that has a string where a number should be
        parser = response.status == 500 and (b"JSON" in text or b"true shape" in text or b"Unable to" in text)
        assert response.status < 500 or parser, (path, body[:300], response.status, text)
        assert b"internal error" not in text
        return response.status, text

    def infer(self, message: Any) -> tuple[grpc.StatusCode, str]:
        try:
            self._infer(message.SerializeToString(), timeout=10)
        except grpc.RpcError as error:
            assert error.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            ), (message, error)
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""

    def close(self) -> None:
        self._http.close()
        self._channel.close()


@pytest.fixture
def asker(server: Server, witness: Witness) -> Iterator[Asker]:
    """Afterwards the server is the one that it was, and not larger."""
    found = Asker(server)
    yield found
    found.close()
    print(found.statuses)
    witness.check(GROWN_NBYTES)


@pytest.fixture
def memory(server: Server) -> Iterator[ClientMemory]:
    with client_memory(REGION_NBYTES) as found:
        yield found


def some(examples: int = EXAMPLES) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The same examples each time, as many as there is time for."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def shape_of(texts: list[str]) -> list[int] | None:
    """None for what is no shape."""
    try:
        values = [json.loads(text) for text in texts]
    except ValueError:
        return None
    right = all(type(value) is int and 0 <= value < 2**63 for value in values)
    return values if right else None


def test_shapes_and_payloads_over_http(asker: Asker) -> None:
    """``numbers`` takes UINT8 of any length and answers it: 200 exactly where all is as it says."""

    @some()
    @given(
        st.lists(number | small, max_size=4),
        st.sampled_from(sorted(NBYTES)),
        number | small,
        st.sampled_from([0, 1, 2, 4, 16, 17]),
    )
    def check(shape: list[str], datatype: str, declared: str, sent: int) -> None:
        if asker.is_over:
            return
        tensor = (
            f'{{"name":"INPUT0","shape":[{",".join(shape)}],"datatype":"{datatype}",'
            f'"parameters":{{"binary_data_size":{declared}}}}}'
        )
        head = f'{{"inputs":[{tensor}]}}'.encode()
        status, text = asker.post(
            "/v2/models/numbers/infer", head + bytes(sent), {"Inference-Header-Content-Length": str(len(head))}
        )
        dims = shape_of(shape)
        right = (
            datatype == "UINT8" and dims is not None and len(dims) == 1 and dims[0] == sent and declared == str(sent)
        )
        assert (status == 200) == right, (head, sent, status, text)

    for sent in ("0", "1", "17"):
        check.hypothesis.inner_test([sent], "UINT8", sent, int(sent))  # type: ignore[attr-defined]
    check()
    assert {200, 400} <= set(asker.statuses)


def test_shapes_and_data_over_http(asker: Asker) -> None:
    @some(200)
    @given(st.lists(number | small, max_size=3), st.lists(number | small, max_size=3))
    def check(shape: list[str], data: list[str]) -> None:
        if asker.is_over:
            return
        tensor = f'{{"name":"INPUT0","shape":[{",".join(shape)}],"datatype":"UINT8","data":[{",".join(data)}]}}'
        status, text = asker.post("/v2/models/numbers/infer", f'{{"inputs":[{tensor}]}}'.encode())
        if status == 200:
            dims = shape_of(shape)
            assert dims is not None and len(dims) == 1
            if dims == [0]:
                return  # as in Triton, nobody looks at the data of a tensor without elements
            assert dims == [len(data)]
            assert json.loads(text)["outputs"][0]["data"] == [json.loads(each) for each in data]

    check()


def test_shapes_over_grpc(asker: Asker) -> None:
    sizes = [each for each in EDGES if -(2**63) <= each < 2**63]

    @some(300)
    @given(st.lists(st.sampled_from(sizes), max_size=5), st.sampled_from(sorted(NBYTES)), st.integers(0, 20))
    def check(shape: list[int], datatype: str, nbytes: int) -> None:
        if asker.is_over:
            return
        message = pb.ModelInferRequest(model_name="numbers", raw_input_contents=[bytes(nbytes)])
        message.inputs.add(name="INPUT0", datatype=datatype, shape=shape)
        code, text = asker.infer(message)
        right = datatype == "UINT8" and shape == [nbytes]
        assert (code is grpc.StatusCode.OK) == right, (message, code, text)

    check()


def test_products_that_wrap_around(asker: Asker) -> None:
    """To what is really sent: the product is right only in integers of 64 or 32 bits."""
    for shape in ([2**33, 2**33], [2**32, 2**32], [2**63, 2], [2**62, 4], [2**32, 2**31, 2], [2**64 + 4], [2**32 + 16]):
        wrapped = {math.prod(shape) % 2**32, math.prod(shape) % 2**64}
        for nbytes in {0, 4, 16} | {each for each in wrapped if each < 100}:
            tensor = {"name": "INPUT0", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": nbytes}}
            head = json.dumps({"inputs": [tensor]}).encode()
            headers = {"Inference-Header-Content-Length": str(len(head))}
            status, _ = asker.post("/v2/models/numbers/infer", head + bytes(nbytes), headers)
            assert status != 200, (shape, nbytes)


def test_windows_of_regions(server: Server, asker: Asker, memory: ClientMemory) -> None:
    """Offset and size of a registration, and of the use of what is registered."""
    register = "/v2/systemsharedmemory/region/edge/register"
    unregister = "/v2/systemsharedmemory/region/edge/unregister"

    page = st.sampled_from([str(each) for each in (PAGE_NBYTES, REGION_NBYTES, REGION_NBYTES - 1, REGION_NBYTES + 1)])
    offsets = st.just("0") | st.just(str(PAGE_NBYTES)) | number | page

    @some()
    @given(offsets, number | small | page, number | small, number | small)
    def check(offset: str, nbytes: str, used_offset: str, used_nbytes: str) -> None:
        if asker.is_over:
            return
        body = f'{{"key":"{memory.key}","offset":{offset},"byte_size":{nbytes}}}'
        status, text = asker.post(register, body.encode())
        whole = shape_of([offset, nbytes])
        right = whole is not None and sum(whole) <= REGION_NBYTES and whole[0] % PAGE_NBYTES == 0 and whole[1] > 0
        assert (status == 200) == right, (body, text)
        if status != 200:
            body = f'{{"key":"{memory.key}","byte_size":{REGION_NBYTES}}}'
            assert asker.post(register, body.encode())[0] == 200
        registered = whole[1] if status == 200 and whole is not None else REGION_NBYTES
        window = f'"shared_memory_offset":{used_offset},"shared_memory_byte_size":{used_nbytes}'
        parameters = f'{{"shared_memory_region":"edge",{window}}}'
        tensor = f'{{"name":"INPUT0","shape":[4],"datatype":"UINT8","parameters":{parameters}}}'
        status, text = asker.post("/v2/models/numbers/infer", f'{{"inputs":[{tensor}]}}'.encode())
        used = shape_of([used_offset, used_nbytes])
        right = used is not None and used[1] == 4 and sum(used) <= registered
        assert (status == 200) == right, (window, registered, status, text)
        assert asker.post(unregister, b"{}")[0] == 200

    check()


@pytest.mark.parametrize(
    "length",
    [
        *("1_0", " 10x", "\u0661", "+10", "0x10", "1e1", "10.0", "", " ", "-0", "-1", "99999999999", str(2**31)),
        *(
            str(2**63 - 1),
            str(2**63),
            str(2**64),
            str(2**64 + 10),
            "9" * 300,
            "NaN",
            "true",
            "10,10",
            "10 10",
            "\x0b10",
        ),
    ],
)
@pytest.mark.parametrize("name", ["Inference-Header-Content-Length", "Content-Length"])
def test_lengths_in_headers(server: Server, name: str, length: str) -> None:
    """Python's ``int`` reads more than numbers; a length that is too long is refused before anybody waits for it."""
    tensor = {"name": "INPUT0", "shape": [4], "datatype": "UINT8", "parameters": {"binary_data_size": 4}}
    head = json.dumps({"inputs": [tensor]}).encode()
    body = head + bytes(4)
    lengths = {"Content-Length": str(len(body)), "Inference-Header-Content-Length": str(len(head)), name: length}
    lines = "".join(f"{key}: {value}\r\n" for key, value in lengths.items()).encode()
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as connection:
        connection.sendall(b"POST /v2/models/numbers/infer HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n" + body)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass
    assert not received.startswith(b"HTTP/1.1 200"), received
    assert b"internal error" not in received


def test_lengths_in_byte_tensors(asker: Asker) -> None:
    """Each element's own length, at every edge of 32 bits."""
    for length in (1, 3, 5, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1):
        for shape in ([1], [2], [2**31], [2**62]):
            data = struct.pack("<I", length) + b"abcd"
            size = {"binary_data_size": len(data)}
            tensor = {"name": "INPUT0", "shape": shape, "datatype": "BYTES", "parameters": size}
            head = json.dumps({"inputs": [tensor]}).encode()
            headers = {"Inference-Header-Content-Length": str(len(head))}
            assert asker.post("/v2/models/texts/infer", head + data, headers)[0] != 200
            message = pb.ModelInferRequest(model_name="texts", raw_input_contents=[data])
            message.inputs.add(name="INPUT0", datatype="BYTES", shape=shape)
            assert asker.infer(message)[0] is not grpc.StatusCode.OK


@pytest.mark.parametrize("parameter", ["priority", "timeout", "sequence_id", "classification"])
def test_numbers_in_parameters(asker: Asker, parameter: str) -> None:
    for text in (*map(str, EDGES), *NO_INTEGERS):
        outputs = f',"outputs":[{{"name":"OUTPUT0","parameters":{{"{parameter}":{text}}}}}]'
        both = f',"parameters":{{"{parameter}":{text}}}'
        tensor = '{"name":"INPUT0","shape":[2],"datatype":"UINT8","data":[1,2]}'
        for more in (both, outputs):
            asker.post("/v2/models/numbers/infer", f'{{"inputs":[{tensor}]{more}}}'.encode())
