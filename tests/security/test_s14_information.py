"""S14, what answers tell: memory that one request has used shows nothing of it to the next, and errors show what the
model says, never where the server keeps it. (``docs/compatibility.md`` says what of a model's exception is shown.)"""

import http.client
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import ECHO, write_model

MARKER = b"somebody's secret 7c2e"
NBYTES = 1 << 20
ROUNDS = 20

#: takes what it is sent, fails, and leaves its inputs, and an answer that it has made of them, behind
FAILS = """
class TritonPythonModel:
    def execute(self, requests):
        answers = [pb_utils.Tensor("OUTPUT0", request.inputs()[0].as_numpy().copy()) for request in requests]
        kept = [pb_utils.InferenceResponse([answer]) for answer in answers]
        raise RuntimeError("no answer for you")
"""
#: answers memory that it has not written to, as long or as short as it is told
UNWRITTEN = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            elements = int(request.inputs()[0].as_numpy()[0]) * 1024
            answer = pb_utils.Tensor("OUTPUT0", numpy.empty(elements, numpy.uint8))
            responses.append(pb_utils.InferenceResponse([answer]))
        return responses
"""
#: for "long" an answer full of the marker, otherwise a short one
SHORT = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            text = request.inputs()[0].as_numpy().tobytes()
            answer = numpy.frombuffer(text if len(text) > 100 else b"short", numpy.uint8)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", answer)]))
        return responses
"""
LEAKY_ERRORS = """
class TritonPythonModel:
    def execute(self, requests):
        order = bytes(requests[0].inputs()[0].as_numpy()).decode()
        if order == "open":
            open(os.path.join(os.path.dirname(__file__), "weights.bin"))
        if order == "nested":
            import json
            json.loads("{")
        if order == "chained":
            try:
                os.stat(os.path.dirname(__file__) + "/nothing")
            except OSError as error:
                raise RuntimeError(f"cannot: {error}") from error
        if order == "object":
            raise ValueError(self)
        if order == "library":
            numpy.zeros(3).reshape(2, 2)
        raise ValueError(order)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("information") / "models"
    for name, code in (
        *(("fails", FAILS), ("unwritten", UNWRITTEN), ("short", SHORT), ("echo", ECHO), ("errors", LEAKY_ERRORS)),
    ):
        write_model(repository, name, code, "UINT8")
    with serving([repository], make_run_dir()) as running:
        yield running


@pytest.fixture
def connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    found = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=10)
    yield found
    found.close()


def over_http(connection: http.client.HTTPConnection, model: str, data: bytes, claimed: int = -1) -> tuple[int, bytes]:
    """``claimed``: of how many elements the request says that it is."""
    shape = [len(data) if claimed < 0 else claimed]
    tensor = {"name": "INPUT0", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": len(data)}}
    head = json.dumps(
        {"inputs": [tensor], "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}]}
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connection.request("POST", f"/v2/models/{model}/infer", head + data, headers)
    response = connection.getresponse()
    return response.status, response.read()


def over_grpc(server: Server, model: str, data: bytes, claimed: int = -1) -> tuple[str, bytes]:
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[data])
    message.inputs.add(name="INPUT0", datatype="UINT8", shape=[len(data) if claimed < 0 else claimed])
    with grpc.insecure_channel(server.grpc_url, [("grpc.max_receive_message_length", -1)]) as channel:
        try:
            answer = channel.unary_unary(SERVICE + "ModelInfer")(message.SerializeToString(), timeout=10)
        except grpc.RpcError as error:
            return error.code().name, (error.details() or "").encode()
    return "OK", bytes(answer)


SECRET = MARKER * (NBYTES // len(MARKER))


def test_another_model_s_memory(server: Server, connection: http.client.HTTPConnection) -> None:
    """What a failed request has left in the frontends' memory and in its worker's is in no answer of another model."""
    for number in range(ROUNDS):
        status, text = over_http(connection, "fails", SECRET)
        assert (status, MARKER in text) == (500, False)
        assert over_grpc(server, "fails", SECRET)[0] == "INTERNAL"
        for kibibytes in (1, 64, 255):
            status, answer = over_http(connection, "unwritten", bytes([kibibytes]))
            assert (status, MARKER in answer) == (200, False), (number, kibibytes)
            code, answer = over_grpc(server, "unwritten", bytes([kibibytes]))
            assert (code, MARKER in answer) == ("OK", False), (number, kibibytes)


def test_the_rest_of_a_block(server: Server, connection: http.client.HTTPConnection) -> None:
    """A short answer, in memory in which the same worker's long one for somebody else lay, is as long as it says."""
    for _ in range(ROUNDS):
        assert over_http(connection, "short", SECRET)[1].count(MARKER) == len(SECRET) // len(MARKER)
        status, answer = over_http(connection, "short", b"x")
        assert (status, answer.endswith(b"}short"), MARKER in answer) == (200, True, False)
        code, answer = over_grpc(server, "short", b"x")
        assert (code, MARKER in answer, len(answer) < 200) == ("OK", False, True)


def test_more_than_was_sent(server: Server, connection: http.client.HTTPConnection) -> None:
    """A request that says it is longer than it is does not get what lies behind it."""
    assert over_http(connection, "fails", SECRET)[0] == 500
    for claimed in (2, 100, NBYTES, 2 * NBYTES):
        status, answer = over_http(connection, "echo", b"x", claimed)
        assert (status, MARKER in answer) == (400, False)
        code, answer = over_grpc(server, "echo", b"x", claimed)
        assert (code, MARKER in answer) == ("INVALID_ARGUMENT", False)
    texts = struct.pack("<I", NBYTES) + b"x"
    status, answer = over_http(connection, "echo", texts)
    assert (status, MARKER in answer) == (200, False)


@pytest.mark.parametrize("order", ["open", "nested", "chained", "object", "library", "mine"])
def test_a_model_s_exceptions(server: Server, connection: http.client.HTTPConnection, order: str) -> None:
    """Type, text and lines of the model's own files, by their names in the repository; the whole traceback is in the
    log."""
    status, text = over_http(connection, "errors", order.encode())
    assert status == 500
    error = json.loads(text)["error"]
    shown = over_grpc(server, "errors", order.encode())[1].decode()
    for each in (error, shown):
        for secret in (
            str(server.repositories[0]),
            str(server.run_dir),
            "/site-packages",
            "/lib/python",
            "0x",
            "Traceback",
        ):
            assert secret not in each, (secret, each)
        assert "errors/1/model.py(" in each, "where it was, for whoever wrote the model"
    log = (server.run_dir / "logs" / "models" / "errors.log").read_text()
    assert "Traceback (most recent call last):" in log
    assert str(server.repositories[0]) in log
