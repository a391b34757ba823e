"""Models that answer any number of times, over gRPC streams: order, flags, errors. What is expected is what Triton 2.51
answered to the same models."""

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy
import pytest
import tritonclient.grpc as triton

from tests.scenarios.decoupled import STREAM, Stream, pb, telling, text_of, write_decoupled_models
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import ECHO, write_model

NOT_DECOUPLED = "doesn't support models with decoupled transaction policy"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("decoupled") / "models"
    write_decoupled_models(repository)
    write_model(repository, "slow", ECHO, "INT32", extra='parameters { key: "seconds" value { string_value: "0.3" } }')
    with serving([repository], make_run_dir()) as running:
        yield running


def answers(server: Server, *requests: Any, metadata: Any = ()) -> list[Any]:
    with Stream(server.grpc_url, *requests, metadata=metadata) as stream:
        return list(stream.rest())


def finals(found: list[Any]) -> list[bool]:
    return [answer.infer_response.parameters["triton_final_response"].bool_param for answer in found]


class Client:
    """The official client, with one stream."""

    def __init__(self, url: str) -> None:
        self.results: queue.Queue[Any] = queue.Queue()
        self.client = triton.InferenceServerClient(url)
        self.client.start_stream(lambda result, error: self.results.put(error or result))

    def infer(self, model: str, id: str, **arrays: numpy.ndarray) -> None:
        inputs = []
        for name, array in arrays.items():
            tensor = triton.InferInput(name, list(array.shape), "UINT32" if array.dtype == numpy.uint32 else "INT32")
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        self.client.async_stream_infer(model, inputs, request_id=id)

    def take(self, count: int) -> list[Any]:
        found = [self.results.get(timeout=20) for _ in range(count)]
        assert not [item for item in found if isinstance(item, Exception)]
        return found

    def close(self) -> None:
        self.client.stop_stream()
        self.client.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    connected = Client(server.grpc_url)
    yield connected
    connected.close()


def test_square(client: Client) -> None:
    """Several requests at once: each gets its own number of responses, none of another's, and 0 is none at all."""
    for value in (4, 2, 0, 1, 30):
        client.infer("square", str(value), IN=numpy.array([value], numpy.int32))
    found = client.take(37)
    for value in (4, 2, 1, 30):
        own = [result for result in found if result.get_response().id == str(value)]
        assert [result.as_numpy("OUT").tolist() for result in own] == [[value]] * value
    assert client.results.empty()


def test_repeat(client: Client) -> None:
    """The model takes the second request while it still responds to the first one, which takes longer."""
    client.infer(
        "repeat",
        "long",
        IN=numpy.arange(5, dtype=numpy.int32),
        DELAY=numpy.full(5, 200, numpy.uint32),
        WAIT=numpy.array([0], numpy.uint32),
    )
    client.infer(
        "repeat",
        "short",
        IN=numpy.array([7, 8], numpy.int32),
        DELAY=numpy.zeros(2, numpy.uint32),
        WAIT=numpy.array([0], numpy.uint32),
    )
    found = client.take(7)
    ids = [result.get_response().id for result in found]
    assert sorted(ids) == ["long"] * 5 + ["short"] * 2 and ids[-1] == "long"
    for id, expected in (("long", [0, 1, 2, 3, 4]), ("short", [7, 8])):
        own = [result for result in found if result.get_response().id == id]
        assert [result.as_numpy("OUT").tolist() for result in own] == [[value] for value in expected]
        assert [result.as_numpy("IDX").tolist() for result in own] == [[i] for i in range(len(expected))]


def test_many_responses_in_order(server: Server) -> None:
    found = answers(server, telling("n 2000,f", "1"))
    assert [text_of(answer) for answer in found] == [str(i) for i in range(2000)]
    assert {answer.infer_response.id for answer in found} == {"1"}


@pytest.mark.parametrize(
    ("order", "empty_final", "texts", "last"),
    [
        ("r a,r b,f", False, ["a", "b"], False),
        ("r a,rf b", False, ["a", "b"], True),
        ("r a,rf b", True, ["a", "b"], True),
        ("f", False, [], False),
        ("r a,e broken,r b,f", False, ["a", "broken", "b"], False),
        ("r a,ef gone", False, ["a", "gone"], True),
        ("parameters,f", True, ['{"mine":5}'], True),
    ],
)
def test_flags_and_errors(server: Server, order: str, empty_final: bool, texts: list[str], last: bool) -> None:
    found = answers(server, telling(order, "1", mine=5, triton_enable_empty_final_response=empty_final))
    if empty_final and order.endswith(",f"):
        empty = pb.ModelInferResponse(id="1", model_name="tell")
        empty.parameters["triton_final_response"].bool_param = True
        assert found.pop() == pb.ModelStreamInferResponse(infer_response=empty)
        last = False
    assert [text_of(answer) for answer in found] == texts
    assert finals(found) == [*[False] * (len(texts) - 1), last][: len(texts)]


def test_an_error_has_the_model_and_no_version(server: Server) -> None:
    (answer,) = answers(server, telling("ef gone", "1"))
    expected = pb.ModelInferResponse(id="1", model_name="tell")
    expected.parameters["triton_final_response"].bool_param = True
    assert answer == pb.ModelStreamInferResponse(error_message="gone", infer_response=expected)


def test_execute_that_raises(server: Server) -> None:
    (answer,) = answers(server, telling("raise", "1"))
    assert "told to raise" in answer.error_message and finals([answer]) == [True]
    assert [text_of(answer) for answer in answers(server, telling("rf on"))] == ["on"]


def test_strict_mode(server: Server) -> None:
    with Stream(server.grpc_url, telling("r a,e broken,r b,f"), metadata=(("triton_grpc_error", "true"),)) as stream:
        assert text_of(stream.answer()) == "a"
        with pytest.raises(grpc.RpcError) as raised:
            list(stream.rest())
    assert (raised.value.code().name, raised.value.details()) == ("UNAVAILABLE", "broken")


def test_ordinary_models_on_the_same_stream(server: Server) -> None:
    """Their answers keep the order of their requests; decoupled responses do not wait for them."""
    ordinary = []
    for i in range(2):
        request = pb.ModelInferRequest(model_name="slow", id=f"slow {i}")
        request.inputs.add(name="INPUT0", datatype="INT32", shape=[1]).contents.int_contents.append(i)
        ordinary.append(request)
    unknown = telling("f", "unknown", model="nope")
    found = answers(server, ordinary[0], telling("r a,rf b", "decoupled"), ordinary[1], unknown)
    ids = [answer.infer_response.id for answer in found]
    assert ids == ["decoupled", "decoupled", "slow 0", "slow 1", "unknown"]


def test_ordinary_calls_are_refused(server: Server) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(STREAM.replace("Stream", ""))(telling("f").SerializeToString(), timeout=10)
    assert raised.value.code().name == "UNIMPLEMENTED"
    assert raised.value.details() == f"ModelInfer RPC {NOT_DECOUPLED}"
    body = b'{"inputs":[{"name":"IN","shape":[1],"datatype":"BYTES","data":["f"]}]}'
    status, text = server.request("POST", "/v2/models/tell/infer", body)
    assert (status, text) == (501, f'{{"error":"HTTP end point {NOT_DECOUPLED}"}}'.encode())
