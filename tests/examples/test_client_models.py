"""The models that the official client's examples ask, over both protocols."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import tritonclient.grpc
import tritonclient.http

from scripts.client_examples import MODELS, SERVED_MODELS
from tests.scenarios.harness import Server, serving

#: the HTTP and the gRPC client have the same methods; what they share has no type
Client = Any


@pytest.fixture(scope="module")
def server(make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    flags = ["--model-control-mode=explicit", *(f"--load-model={model}" for model in SERVED_MODELS)]
    with serving([MODELS], make_run_dir(), *flags) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def library(request: pytest.FixtureRequest) -> Any:
    return {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]


@pytest.fixture
def client(server: Server, library: Any) -> Iterator[Client]:
    url = server.url if library is tritonclient.http else server.grpc_url
    with library.InferenceServerClient(url) as connected:
        yield connected


def tensor(library: Any, name: str, values: numpy.ndarray, datatype: str) -> Any:
    made = library.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def add_and_subtract(library: Any, client: Client, model: str, values: numpy.ndarray, datatype: str) -> list[Any]:
    answer = client.infer(
        model, [tensor(library, "INPUT0", values, datatype), tensor(library, "INPUT1", values[:, ::-1], datatype)]
    )
    return [answer.as_numpy(name).tolist() for name in ("OUTPUT0", "OUTPUT1")]


@pytest.mark.parametrize(("model", "datatype"), [("simple", numpy.int32), ("simple_int8", numpy.int8)])
def test_numbers(library: Any, client: Client, model: str, datatype: Any) -> None:
    values = numpy.arange(32, dtype=datatype).reshape(2, 16)
    expected = [(values + values[:, ::-1]).tolist(), (values - values[:, ::-1]).tolist()]
    assert add_and_subtract(library, client, model, values, numpy.dtype(datatype).name.upper()) == expected


def test_numbers_as_text(library: Any, client: Client) -> None:
    numbers = numpy.arange(-8, 8).reshape(1, 16)
    texts = numbers.astype(numpy.bytes_).astype(numpy.object_)
    sums, differences = add_and_subtract(library, client, "simple_string", texts, "BYTES")
    assert sums == [[b"-1"] * 16]
    assert differences == [[str(each).encode() for each in range(-15, 16, 2)]]


def test_identities(library: Any, client: Client) -> None:
    texts = numpy.array([[b"a", b"\xff\0", b""]], dtype=numpy.object_)
    answer = client.infer("simple_identity", [tensor(library, "INPUT0", texts, "BYTES")])
    assert answer.as_numpy("OUTPUT0").tolist() == texts.tolist()
    numbers = numpy.arange(5, dtype=numpy.int32).reshape(1, 5)
    answer = client.infer("custom_identity_int32", [tensor(library, "INPUT0", numbers, "INT32")])
    assert answer.as_numpy("OUTPUT0").tolist() == numbers.tolist()


def test_colours(library: Any, client: Client) -> None:
    """A picture that is yellow, but for a quarter that is dark blue."""
    picture = numpy.zeros((3, 224, 224), dtype=numpy.float32)
    picture[:2] = 255
    picture[:, :112, :112] = numpy.array([0, 0, 30], dtype=numpy.float32).reshape(3, 1, 1)
    inputs = [tensor(library, "data_0", picture, "FP32")]
    scores = client.infer("densenet_onnx", inputs).as_numpy("fc6_1")
    assert scores.shape == (1000,)
    assert scores.sum() == pytest.approx(1)
    classes = client.infer(
        "densenet_onnx", inputs, outputs=[library.InferRequestedOutput("fc6_1", class_count=2)]
    ).as_numpy("fc6_1")
    assert [each.decode().split(":")[2] for each in classes] == ["#ffff00", "#00001c"]
    assert [float(each.decode().split(":")[0]) for each in classes] == [0.75, 0.25]


def test_labels() -> None:
    """Class 100 * red + 10 * green + blue has the colour of these levels."""
    labels = (MODELS / "densenet_onnx" / "densenet_labels.txt").read_text().split()
    assert len(labels) == 1000
    level = [round(number * 255 / 9) for number in range(10)]
    assert labels[739] == f"#{level[7]:02x}{level[3]:02x}{level[9]:02x}"
