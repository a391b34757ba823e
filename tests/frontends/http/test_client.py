"""The official client, synchronous and asyncio, unmodified."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from tests.frontends.http.support import Frontend

A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.full((1, 16), 3, np.int32)


@pytest.fixture
def client(frontend: Frontend) -> Iterator[tritonclient.http.InferenceServerClient]:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{frontend.port}") as opened:
        yield opened


def inputs(binary: bool) -> list[Any]:
    made = []
    for name, array in (("INPUT0", A), ("INPUT1", B)):
        tensor = tritonclient.http.InferInput(name, [1, 16], "INT32")
        tensor.set_data_from_numpy(array, binary_data=binary)
        made.append(tensor)
    return made


def outputs(first_binary: bool, second_binary: bool) -> list[Any]:
    return [
        tritonclient.http.InferRequestedOutput("OUTPUT0", binary_data=first_binary),
        tritonclient.http.InferRequestedOutput("OUTPUT1", binary_data=second_binary),
    ]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("wanted", [None, outputs(True, False), outputs(False, False), outputs(True, True)])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer(client: Any, binary: bool, wanted: Any, compression: str | None) -> None:
    answer = client.infer(
        "simple",
        inputs(binary),
        outputs=wanted,
        request_id="r1",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
        parameters={"echo": "x", "number": 5},
    )
    assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)
    assert np.array_equal(answer.as_numpy("OUTPUT1"), A - B)
    shown = answer.get_response()
    assert (shown["id"], shown["model_version"], shown["parameters"]) == ("r1", "1", {"echo": "x"})


def test_async_infer(client: Any) -> None:
    answers = [client.async_infer("simple", inputs(True)) for _ in range(5)]
    for answer in answers:
        assert np.array_equal(answer.get_result().as_numpy("OUTPUT0"), A + B)


def test_large_tensors(client: Any) -> None:
    array = np.arange(3_000_000, dtype=np.float32)
    tensor = tritonclient.http.InferInput("INPUT0", array.shape, "FP32")
    tensor.set_data_from_numpy(array)
    for _ in range(3):
        assert np.array_equal(client.infer("echo_fp32", [tensor]).as_numpy("OUTPUT0"), array)


def test_strings(client: Any) -> None:
    array = np.array(["", "a\0b", "ü", "x" * 100_000], np.object_)
    for binary in (True, False):
        tensor = tritonclient.http.InferInput("INPUT0", array.shape, "BYTES")
        tensor.set_data_from_numpy(array, binary_data=binary)
        answer = client.infer("echo_bytes", [tensor]).as_numpy("OUTPUT0")
        assert [element.decode() for element in answer] == array.tolist()


def test_classification(client: Any) -> None:
    array = np.array([[0.1, 0.4, 0.2, 0.3, 0.0]], np.float32)
    tensor = tritonclient.http.InferInput("INPUT0", array.shape, "FP32")
    tensor.set_data_from_numpy(array)
    wanted = tritonclient.http.InferRequestedOutput("OUTPUT0", class_count=3)
    answer = client.infer("scores", [tensor], outputs=[wanted]).as_numpy("OUTPUT0")
    assert answer.tolist() == [[b"0.400000:1:dog", b"0.300000:3:bird", b"0.200000:2"]]


def test_everything_else(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("simple") and not client.is_model_ready("nope")
    assert client.is_model_ready("a b+c.d")
    assert client.get_server_metadata()["name"] == "triton"
    assert client.get_model_metadata("simple", "1")["versions"] == ["1"]
    assert client.get_model_config("simple")["max_batch_size"] == 8
    assert "simple" in [model["name"] for model in client.get_model_repository_index()]
    client.load_model("simple", config="{}", files={"file:1/model.onnx": b"abc"})
    client.unload_model("simple")


def test_errors(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope' is not found") as failed:
        client.infer("nope", inputs(True))
    assert failed.value.status() == "404"
    with pytest.raises(
        InferenceServerException, match="HTTP end point doesn't support models with decoupled"
    ) as failed:
        client.infer("stream", inputs(True))
    assert failed.value.status() == "501"


def test_asyncio_client(frontend: Frontend) -> None:
    async def run() -> None:
        async with tritonclient.http.aio.InferenceServerClient(f"127.0.0.1:{frontend.port}") as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(*(client.infer("simple", inputs(True)) for _ in range(20)))
            for answer in answers:
                assert np.array_equal(answer.as_numpy("OUTPUT0"), A + B)
            with pytest.raises(InferenceServerException, match="unknown model"):
                await client.get_model_metadata("nope")

    asyncio.run(run())
