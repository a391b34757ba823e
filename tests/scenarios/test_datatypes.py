"""Every datatype through a Python model and back, as JSON and as bytes."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy
import pytest
import tritonclient.http

from tests.scenarios.harness import Server

NUMPY_TYPES = {
    "bool": numpy.bool_,
    "uint8": numpy.uint8,
    "uint16": numpy.uint16,
    "uint32": numpy.uint32,
    "uint64": numpy.uint64,
    "int8": numpy.int8,
    "int16": numpy.int16,
    "int32": numpy.int32,
    "int64": numpy.int64,
    "fp16": numpy.float16,
    "fp32": numpy.float32,
    "fp64": numpy.float64,
}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[tritonclient.http.InferenceServerClient]:
    connected = tritonclient.http.InferenceServerClient(server.url)
    yield connected
    connected.close()


def extremes(name: str) -> numpy.ndarray:
    kind: numpy.dtype[Any] = numpy.dtype(NUMPY_TYPES[name])
    if kind == numpy.bool_:
        return numpy.array([True, False, True])
    if kind.kind == "f":
        limits = numpy.finfo(kind)
        return numpy.array([0, -0.0, 0.1, -1.5, limits.max, limits.min, limits.tiny, limits.eps], dtype=kind)
    bounds = numpy.iinfo(kind)
    return numpy.array([bounds.min, bounds.max, 0, 1], dtype=kind)


def echo(
    client: tritonclient.http.InferenceServerClient, name: str, values: numpy.ndarray, sent: bool, answered: bool
) -> numpy.ndarray:
    tensor = tritonclient.http.InferInput("INPUT0", list(values.shape), name.upper())
    tensor.set_data_from_numpy(values, binary_data=sent)
    output = tritonclient.http.InferRequestedOutput("OUTPUT0", binary_data=answered)
    answer: numpy.ndarray | None = client.infer(f"echo_{name}", [tensor], outputs=[output]).as_numpy("OUTPUT0")
    assert answer is not None
    return answer


@pytest.mark.parametrize("name", [name for name in NUMPY_TYPES if name != "fp16"])
@pytest.mark.parametrize(("sent", "answered"), [(True, True), (False, False), (True, False), (False, True)])
def test_numbers(client: tritonclient.http.InferenceServerClient, name: str, sent: bool, answered: bool) -> None:
    values = extremes(name)
    answer = echo(client, name, values, sent, answered)
    assert answer.dtype == values.dtype
    assert answer.tobytes() == values.tobytes()


def test_fp16(client: tritonclient.http.InferenceServerClient) -> None:
    values = extremes("fp16")
    assert echo(client, "fp16", values, True, True).tobytes() == values.tobytes()


def test_bf16(client: tritonclient.http.InferenceServerClient) -> None:
    values = numpy.array([0, 1, -2.5, 3e38], dtype=ml_dtypes.bfloat16)
    tensor = tritonclient.http.InferInput("INPUT0", [4], "BF16")
    tensor.set_data_from_numpy(values)
    answer = client.infer("echo_bf16", [tensor]).as_numpy("OUTPUT0")
    assert answer is not None
    assert answer.astype(numpy.float32).tolist() == values.astype(numpy.float32).tolist()


@pytest.mark.parametrize(("sent", "answered"), [(True, True), (False, False), (True, False), (False, True)])
def test_strings(client: tritonclient.http.InferenceServerClient, sent: bool, answered: bool) -> None:
    texts = ["", "a", 'é\u2028"/\\\n', "nul\0inside", "x" * 70_000]
    values = numpy.array([text.encode() for text in texts], dtype=numpy.object_)
    answer = echo(client, "bytes", values, sent, answered)
    # the client gives str for JSON answers and bytes for binary ones
    assert [text if isinstance(text, bytes) else text.encode() for text in answer] == list(values)


def test_any_bytes_in_a_string(client: tritonclient.http.InferenceServerClient) -> None:
    values = numpy.array([bytes(range(256)), b"\xff\xfe"], dtype=numpy.object_)
    assert echo(client, "bytes", values, True, True).tolist() == values.tolist()


@pytest.mark.parametrize("name", [*NUMPY_TYPES, "bytes"])
def test_zero_elements(client: tritonclient.http.InferenceServerClient, name: str) -> None:
    values: numpy.ndarray = numpy.zeros([0], dtype=NUMPY_TYPES.get(name, numpy.object_))
    answer = echo(client, name, values, True, True)
    assert answer.shape == (0,)


def test_zero_elements_beside_other_dimensions(client: tritonclient.http.InferenceServerClient) -> None:
    tensor = tritonclient.http.InferInput("INPUT0", [0, 2], "FP32")
    tensor.set_data_from_numpy(numpy.zeros([0, 2], dtype=numpy.float32))
    answer = client.infer("matrix", [tensor]).as_numpy("OUTPUT0")
    assert answer is not None
    assert answer.shape == (0, 2)


def json_echo(server: Server, name: str, data: str, shape: list[int]) -> Any:
    tensor = f'"name":"INPUT0","shape":{shape},"datatype":"{name.upper()}"'
    body = f'{{"inputs":[{{{tensor},"data":{data}}}]}}'
    status, text = server.request("POST", f"/v2/models/echo_{name}/infer", body.encode())
    assert status == 200, text
    return json.loads(text)["outputs"][0]["data"]


def test_json_numbers_are_exact(server: Server) -> None:
    assert json_echo(server, "uint64", "[18446744073709551615]", [1]) == [2**64 - 1]
    assert json_echo(server, "int64", "[-9223372036854775808]", [1]) == [-(2**63)]
    # the double that equals the float, so that a client loses nothing
    assert json_echo(server, "fp32", "[0.1,3]", [2]) == [0.10000000149011612, 3.0]
    assert json_echo(server, "bool", "[true,false]", [2]) == [True, False]


def test_not_a_number_and_infinity_as_json(server: Server) -> None:
    answer = json_echo(server, "fp32", "[NaN,Infinity,-Infinity,1e39]", [4])
    numpy.testing.assert_array_equal(answer, [numpy.nan, numpy.inf, -numpy.inf, numpy.inf])


def test_nested_lists_are_flattened(server: Server) -> None:
    assert json_echo(server, "int32", "[[1,2],[3,[4]]]", [4]) == [1, 2, 3, 4]


def test_raw_binary_request(server: Server) -> None:
    """No JSON at all: the body is the model's one input, and every output comes back as bytes."""
    body = struct.pack("<3i", 1, 2, 3)
    status, text = server.request("POST", "/v2/models/echo_int32/infer", body, {"Inference-Header-Content-Length": "0"})
    assert status == 200, text
    assert text.endswith(body)
    header = json.loads(text[: -len(body)])
    assert header["outputs"] == [
        {"name": "OUTPUT0", "datatype": "INT32", "shape": [3], "parameters": {"binary_data_size": 12}}
    ]
