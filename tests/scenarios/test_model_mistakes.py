"""Models that break their contract: what their clients are told, and that nobody else notices."""

from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import indent

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from tests.frontends.http.wire import wait_until
from tests.scenarios.conftest import Serve
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import ECHO, write_model

ECHO_ONE = "return pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT0', values)])"
#: what answers a request, and a part of the error that its client gets
FAILURES = {
    "raise ValueError('no good')": "ValueError: no good",
    "raise pb_utils.TritonModelException('mine')": "mine",
    "return None": "Expected an 'InferenceResponse' object in the execute function return list, found type 'NoneType'.",
    "return 'text'": "Expected an 'InferenceResponse' object in the execute function return list, found type '<class",
    "return pb_utils.InferenceResponse(error=pb_utils.TritonError('only mine'))": "only mine",
    "return pb_utils.InferenceResponse([pb_utils.Tensor('', values)])": "Tensor name cannot be an empty string.",
    "return pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT0', [1])])": "expects a NumPy array, got <class 'list'>",
    "return pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT0', values.astype(complex))])": "dtype is not supported",
}
#: what answers a request, and what of the array 0 to 7 its client gets; None: no such output
SURPRISES: dict[str, Callable[[np.ndarray], np.ndarray] | None] = {
    "return pb_utils.InferenceResponse([pb_utils.Tensor('OTHER', values)])": None,
    "return pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT0', values.reshape(4, 2))])": lambda x: x.reshape(4, 2),
    "return pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT0', values.astype('f8'))])": lambda x: x.astype("f8"),
    "return pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT0', values[::2])])": lambda x: x[::2],
    "return pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT0', values.reshape(4, 2).T)])": (
        lambda x: x.reshape(4, 2).T
    ),
    "values.flags.writeable = False\n" + ECHO_ONE: lambda x: x,
    "return pb_utils.InferenceResponse([pb_utils.Tensor('OUTPUT0', values[:0])])": lambda x: x[:0],
}
ORDERS = [*FAILURES, *SURPRISES]


def obeying(orders: list[str]) -> str:
    """A model that does what the order says whose number is its input's first element; otherwise echoes."""
    branches = "".join(
        f"        if order == {number}:\n{indent(order, ' ' * 12)}\n" for number, order in enumerate(orders)
    )
    return f"""
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
        order = int(values[0]) - 1000 if len(values) else -1
        if 0 <= order:
            values = numpy.arange(8, dtype=numpy.int32)
{branches}        {ECHO_ONE}
"""


WRONG_COUNTS = """
class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse()] * (len(requests) + 1)
"""
NO_LIST = """
class TritonPythonModel:
    def execute(self, requests):
        return 5
"""
FAILING_START = """
class TritonPythonModel:
    def initialize(self, args):
        raise RuntimeError("no weights today")

    def execute(self, requests):
        return []
"""
FAILING_END = (
    obeying([])
    + """
    def finalize(self):
        raise RuntimeError("no end")
"""
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    models = tmp_path_factory.mktemp("models")
    write_model(models, "echo", ECHO)
    write_model(models, "obeys", obeying(ORDERS))
    write_model(models, "too_many", WRONG_COUNTS)
    write_model(models, "no_list", NO_LIST)
    with serving([models], make_run_dir()) as running:
        yield running


Infer = Callable[[str, np.ndarray], np.ndarray | None]


@pytest.fixture(params=["http", "grpc"])
def infer(request: pytest.FixtureRequest, server: Server) -> Iterator[Infer]:
    """Asks a model for OUTPUT0, over either protocol."""
    library = httpclient if request.param == "http" else grpcclient
    with library.InferenceServerClient(server.url if request.param == "http" else server.grpc_url) as client:

        def ask(model: str, values: np.ndarray) -> np.ndarray | None:
            tensor = library.InferInput("INPUT0", list(values.shape), "INT32")
            tensor.set_data_from_numpy(values)
            answer: np.ndarray | None = client.infer(model, [tensor]).as_numpy("OUTPUT0")
            return answer

        yield ask


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def order(text: str) -> np.ndarray:
    return ints(1000 + ORDERS.index(text))


def nobody_noticed(infer: Infer, server: Server, pids: list[int]) -> None:
    for model in ("echo", "obeys"):
        answer = infer(model, ints(1, 2))
        assert answer is not None
        assert answer.tolist() == [1, 2]
    assert server.worker_pids("obeys") == pids


@pytest.mark.parametrize("text", FAILURES)
def test_a_failing_request(server: Server, infer: Infer, text: str) -> None:
    pids = server.worker_pids("obeys")
    with pytest.raises(InferenceServerException) as caught:
        infer("obeys", order(text))
    message = caught.value.message()
    assert FAILURES[text] in message
    assert str(server.repositories[0]) not in message
    nobody_noticed(infer, server, pids)


@pytest.mark.parametrize("text", SURPRISES)
def test_a_surprising_answer(server: Server, infer: Infer, text: str) -> None:
    pids = server.worker_pids("obeys")
    answer = infer("obeys", order(text))
    expected = SURPRISES[text]
    if expected is None:
        assert answer is None
    else:
        assert answer is not None
        assert np.array_equal(answer, expected(np.arange(8, dtype=np.int32)))
    nobody_noticed(infer, server, pids)


@pytest.mark.parametrize("model", ["echo", "obeys"])
def test_nothing_in_nothing_out(infer: Infer, model: str) -> None:
    answer = infer(model, ints())
    assert answer is not None
    assert answer.shape == (0,)


def test_a_wrong_number_of_responses(server: Server, infer: Infer) -> None:
    pids = server.worker_pids("obeys")
    with pytest.raises(InferenceServerException, match=r"InferenceRequest\(s\) size is:1, and InferenceResponse\(s\)"):
        infer("too_many", ints(1))
    with pytest.raises(InferenceServerException, match="Expected a list in the execute return, found type"):
        infer("no_list", ints(1))
    nobody_noticed(infer, server, pids)


def test_failing_at_start_and_end(tmp_path: Path, serve: Serve) -> None:
    write_model(tmp_path / "models", "echo", ECHO)
    write_model(tmp_path / "models", "fails_at_start", FAILING_START)
    write_model(tmp_path / "models", "fails_at_end", FAILING_END)
    server = serve(
        tmp_path / "models", "--model-control-mode=explicit", "--load-model=echo", "--load-model=fails_at_end"
    )
    with httpclient.InferenceServerClient(server.url) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.load_model("fails_at_start")
        assert "no weights today" in caught.value.message()
        assert str(tmp_path) not in caught.value.message()
        client.unload_model("fails_at_end")
        wait_until(lambda: not client.is_model_ready("fails_at_end"))
        client.load_model("fails_at_end")
        for model in ("echo", "fails_at_end"):
            tensor = httpclient.InferInput("INPUT0", [2], "INT32")
            tensor.set_data_from_numpy(ints(1, 2))
            assert np.array_equal(client.infer(model, [tensor]).as_numpy("OUTPUT0"), ints(1, 2))
