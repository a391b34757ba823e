"""The official client, unmodified, against a real server."""

import asyncio
from collections.abc import Iterator

import numpy
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from tests.scenarios.harness import Server

LEFT = numpy.arange(16, dtype=numpy.int32).reshape(1, 16)
RIGHT = numpy.full((1, 16), 7, dtype=numpy.int32)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[tritonclient.http.InferenceServerClient]:
    connected = tritonclient.http.InferenceServerClient(server.url, concurrency=4)
    yield connected
    connected.close()


def simple_inputs(left_binary: bool, right_binary: bool) -> list[tritonclient.http.InferInput]:
    inputs = []
    for name, values, binary in (("INPUT0", LEFT, left_binary), ("INPUT1", RIGHT, right_binary)):
        tensor = tritonclient.http.InferInput(name, list(values.shape), "INT32")
        tensor.set_data_from_numpy(values, binary_data=binary)
        inputs.append(tensor)
    return inputs


@pytest.mark.parametrize("left_binary", [True, False])
@pytest.mark.parametrize("right_binary", [True, False])
@pytest.mark.parametrize("sum_binary", [True, False])
@pytest.mark.parametrize("difference_binary", [True, False])
def test_every_mix_of_json_and_binary(
    client: tritonclient.http.InferenceServerClient,
    left_binary: bool,
    right_binary: bool,
    sum_binary: bool,
    difference_binary: bool,
) -> None:
    outputs = [
        tritonclient.http.InferRequestedOutput("OUTPUT0", binary_data=sum_binary),
        tritonclient.http.InferRequestedOutput("OUTPUT1", binary_data=difference_binary),
    ]
    answer = client.infer("simple", simple_inputs(left_binary, right_binary), outputs=outputs)
    numpy.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), LEFT + RIGHT)
    numpy.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), LEFT - RIGHT)


def test_no_outputs_means_all(client: tritonclient.http.InferenceServerClient) -> None:
    answer = client.infer("simple", simple_inputs(True, True))
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    numpy.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), LEFT - RIGHT)


def test_only_requested_outputs(client: tritonclient.http.InferenceServerClient) -> None:
    outputs = [tritonclient.http.InferRequestedOutput("OUTPUT1")]
    answer = client.infer("simple", simple_inputs(True, True), outputs=outputs)
    assert answer.as_numpy("OUTPUT0") is None
    numpy.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), LEFT - RIGHT)


def test_request_id_and_version(client: tritonclient.http.InferenceServerClient) -> None:
    answer = client.infer("simple", simple_inputs(True, False), model_version="1", request_id="mine_1").get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine_1", "simple", "1")


@pytest.mark.parametrize("request_algorithm", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_algorithm", [None, "gzip", "deflate"])
def test_compression(
    client: tritonclient.http.InferenceServerClient, request_algorithm: str | None, response_algorithm: str | None
) -> None:
    answer = client.infer(
        "simple",
        simple_inputs(True, False),
        request_compression_algorithm=request_algorithm,
        response_compression_algorithm=response_algorithm,
    )
    numpy.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), LEFT + RIGHT)


def obey(client: tritonclient.http.InferenceServerClient, order: str, **options: object) -> bytes:
    tensor = tritonclient.http.InferInput("INPUT0", [1], "BYTES")
    tensor.set_data_from_numpy(numpy.array([order.encode()], dtype=numpy.object_))
    answer = client.infer("obey", [tensor], **options).as_numpy("OUTPUT0")
    assert answer is not None
    text: bytes = answer[0]
    return text


def test_parameters_and_id_reach_the_model(client: tritonclient.http.InferenceServerClient) -> None:
    given = {"text": "b", "number": -5, "flag": True}
    assert obey(client, "parameters", parameters=given) == b'{"text":"b","number":-5,"flag":true}'
    assert obey(client, "id", request_id="9") == b"9"


@pytest.mark.parametrize(
    ("order", "status"),
    [
        *(("raise", 500), ("error UNKNOWN", 400), ("error INTERNAL", 500), ("error NOT_FOUND", 404)),
        *(("error INVALID_ARG", 400), ("error UNAVAILABLE", 503), ("error UNSUPPORTED", 501)),
        *(("error ALREADY_EXISTS", 400), ("error CANCELLED", 400)),
    ],
)
def test_a_model_that_fails(client: tritonclient.http.InferenceServerClient, order: str, status: int) -> None:
    with pytest.raises(InferenceServerException) as raised:
        obey(client, order)
    assert raised.value.status() == str(status)
    assert ("told to raise" if order == "raise" else "told to fail") in raised.value.message()


def test_several_requests_at_a_time(client: tritonclient.http.InferenceServerClient) -> None:
    pending = [client.async_infer("simple", simple_inputs(True, True), request_id=str(number)) for number in range(20)]
    for number, request in enumerate(pending):
        answer = request.get_result()
        assert answer.get_response()["id"] == str(number)
        numpy.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), LEFT + RIGHT)


def test_asyncio_client(server: Server) -> None:
    async def ask() -> None:
        async with tritonclient.http.aio.InferenceServerClient(server.url) as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("simple")
            answers = await asyncio.gather(
                *(client.infer("simple", simple_inputs(True, False), request_id=str(number)) for number in range(20))
            )
            for number, answer in enumerate(answers):
                assert answer.get_response()["id"] == str(number)
                numpy.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), LEFT - RIGHT)
            with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope' is not found"):
                await client.infer("nope", simple_inputs(True, True))

    asyncio.run(ask())


def scores(client: tritonclient.http.InferenceServerClient, model: str, values: numpy.ndarray, classes: int) -> object:
    datatype = tritonclient.utils.np_to_triton_dtype(values.dtype)
    tensor = tritonclient.http.InferInput("INPUT0", list(values.shape), datatype)
    tensor.set_data_from_numpy(values)
    output = tritonclient.http.InferRequestedOutput("OUTPUT0", class_count=classes)
    answer = client.infer(model, [tensor], outputs=[output]).as_numpy("OUTPUT0")
    assert answer is not None
    return answer.tolist()


def test_classification(client: tritonclient.http.InferenceServerClient) -> None:
    """Answers of the real Triton. Labels are per output, may be too few, and numbers are printed as C++ does."""
    batch = numpy.array([[0.1, 0.9, 0.3, -2, 1e10], [5, 4, 3, 2, 1]], dtype=numpy.float32)
    assert scores(client, "scores", batch, 2) == [
        [b"10000000000.000000:4", b"0.900000:1:dog"],
        [b"5.000000:0:cat", b"4.000000:1:dog"],
    ]
    assert scores(client, "scores_int", numpy.array([1, 5, 3, 2, 4], dtype=numpy.int32), 3) == [b"5:1", b"4:4", b"3:2"]
    ties = numpy.array([1, 1, 1, 0, 0], dtype=numpy.float32)
    assert scores(client, "scores_nobatch", ties, 100) == [
        *(b"1.000000:0:cat", b"1.000000:1:dog", b"1.000000:2:cow", b"0.000000:3:emu", b"0.000000:4:fox")
    ]
