"""System shared memory with the official client, unmodified, against a real server."""

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory

from tests.scenarios.conftest import copy_examples
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import ECHO, write_model

Array = npt.NDArray[Any]

#: Says that it has a request, and reads its input once a file is there.
READS_LATER = """
class TritonPythonModel:
    def initialize(self, args):
        self.folder = args["model_repository"]

    def execute(self, requests):
        open(os.path.join(self.folder, "started"), "w").close()
        while not os.path.exists(os.path.join(self.folder, "read")):
            time.sleep(0.002)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", tensor.as_numpy())])
            for request in requests
            for tensor in request.inputs()
        ]
"""
CUT = "cannot be used: its shared memory region is smaller than when it was registered"


@pytest.fixture(scope="session", autouse=True)
def resource_tracker_of_the_session() -> None:
    """The client's library starts one with its first region, and keeps a pipe to it."""
    resource_tracker.ensure_running()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = copy_examples(tmp_path_factory.mktemp("regions") / "models", "simple")
    write_model(repository, "numbers", ECHO, "INT32", max_batch_size=8)
    write_model(repository, "texts", ECHO, "STRING", max_batch_size=8)
    write_model(repository, "later", READS_LATER, "INT32", max_batch_size=8)
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    with serving([repository], make_run_dir()) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    connected = triton.InferenceServerClient(server.url, concurrency=4)
    yield connected
    with contextlib.suppress(InferenceServerException):
        connected.unregister_system_shared_memory()
    connected.close()


class Memory:
    """A client's region, registered under ``name``."""

    def __init__(self, client: triton.InferenceServerClient, nbytes: int, offset: int = 0) -> None:
        self.name = uuid.uuid4().hex
        self.key = f"/client-{self.name}"
        self.nbytes = nbytes
        self.handle = shared_memory.create_shared_memory_region(self.name, self.key, nbytes)
        client.register_system_shared_memory(self.name, self.key, nbytes - offset, offset)

    def write(self, array: Array, offset: int = 0) -> int:
        """Returns how many bytes it takes up."""
        values = serialize_byte_tensor(array) if array.dtype == object else array
        shared_memory.set_shared_memory_region(self.handle, [values], offset)
        return len(values.item()) if array.dtype == object else int(array.nbytes)

    def read(self, like: Array, offset: int = 0) -> Array:
        found: Array = shared_memory.get_contents_as_numpy(self.handle, like.dtype, like.shape, offset)
        return found.copy()

    def resize(self, nbytes: int) -> None:
        os.truncate(f"/dev/shm{self.key}", nbytes)


@pytest.fixture
def new_memory(client: triton.InferenceServerClient) -> Iterator[Callable[..., Memory]]:
    with contextlib.ExitStack() as stack:

        def make(nbytes: int, offset: int = 0) -> Memory:
            memory = Memory(client, nbytes, offset)
            stack.callback(shared_memory.destroy_shared_memory_region, memory.handle)
            return memory

        yield make


def lying(memory: Memory, array: Array, nbytes: int, offset: int = 0, name: str = "INPUT0") -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), "BYTES" if array.dtype == object else "INT32")
    tensor.set_shared_memory(memory.name, nbytes, offset)
    return tensor


def sent(array: Array, name: str = "INPUT0") -> triton.InferInput:
    tensor = triton.InferInput(name, list(array.shape), "INT32")
    tensor.set_data_from_numpy(array)
    return tensor


def target(memory: Memory, nbytes: int, offset: int = 0, name: str = "OUTPUT0") -> triton.InferRequestedOutput:
    output = triton.InferRequestedOutput(name)
    output.set_shared_memory(memory.name, nbytes, offset)
    return output


def test_add_sub(client: triton.InferenceServerClient, new_memory: Callable[..., Memory]) -> None:
    """One output lies in a region, the other comes with the answer."""
    inputs, outputs = new_memory(128), new_memory(8192, 4096)
    left, right = np.arange(16, dtype=np.int32).reshape(1, 16), np.full((1, 16), 7, np.int32)
    inputs.write(left)
    inputs.write(right, 64)
    answer = client.infer(
        "simple",
        [lying(inputs, left, 64), lying(inputs, right, 64, 64, "INPUT1")],
        outputs=[target(outputs, 100, 32), triton.InferRequestedOutput("OUTPUT1")],
    )
    assert np.array_equal(outputs.read(left, 4096 + 32), left + right)
    assert np.array_equal(answer.as_numpy("OUTPUT1"), left - right)
    described = answer.get_output("OUTPUT0")
    assert described is not None and "data" not in described
    assert (described["datatype"], described["shape"]) == ("INT32", [1, 16])


@pytest.mark.parametrize("nbytes", [4, 1 << 20, 16 << 20])
def test_sizes(client: triton.InferenceServerClient, new_memory: Callable[..., Memory], nbytes: int) -> None:
    memory = new_memory(2 * nbytes)
    array = np.random.default_rng(1).integers(-(2**31), 2**31, (1, nbytes // 4), np.int32)
    memory.write(array)
    for _ in range(3):
        client.infer("numbers", [lying(memory, array, nbytes)], outputs=[target(memory, nbytes, nbytes)])
        assert np.array_equal(memory.read(array, nbytes), array)
        array = array[:, ::-1].copy()
        memory.write(array)


def test_texts(client: triton.InferenceServerClient, new_memory: Callable[..., Memory]) -> None:
    memory = new_memory(4096)
    array = np.array([[b"one", b"", "zwölf".encode(), b"x" * 900]], object)
    nbytes = memory.write(array)
    client.infer("texts", [lying(memory, array, nbytes)], outputs=[target(memory, 1000, 2001)])
    assert np.array_equal(memory.read(array, 2001), array)


def test_texts_that_are_wrong(client: triton.InferenceServerClient, new_memory: Callable[..., Memory]) -> None:
    memory = new_memory(4096)
    array = np.array([[b"abc", b"def"]], object)
    nbytes = memory.write(array)
    where = "for inference input 'INPUT0' for model 'texts'"
    for shape, length, text in [
        ((1, 1), nbytes, f"unexpected number of string elements 2 {where}, expecting 1"),
        ((1, 3), nbytes, f"expected 3 string elements {where}, got 2"),
        ((1, 2), nbytes - 1, f"incomplete string data {where}, expecting string of length 3 but only 2 bytes"),
        ((1, 2), 10, f"incomplete string length indicator {where}, expecting 4 bytes but only 3 bytes"),
    ]:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("texts", [lying(memory, np.empty(shape, object), length)], request_id="r1")
        assert caught.value.status() == "400"
        assert caught.value.message().startswith(f"[request id: r1] {text}")


def test_an_output_that_does_not_fit(client: triton.InferenceServerClient, new_memory: Callable[..., Memory]) -> None:
    memory = new_memory(4096)
    array = np.arange(16, dtype=np.int32).reshape(1, 16)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("numbers", [sent(array)], outputs=[target(memory, 63)])
    assert caught.value.status() == "500"
    assert caught.value.message() == (
        "shared memory size specified with the request for output 'OUTPUT0' (63 bytes) should be at least 64 bytes to "
        "hold the results"
    )
    assert not memory.read(array).any()


def test_a_region_that_was_cut(client: triton.InferenceServerClient, new_memory: Callable[..., Memory]) -> None:
    memory, other = new_memory(8192), new_memory(8192)
    array = np.arange(1000, dtype=np.int32).reshape(1, -1)
    memory.write(array)
    other.write(array)
    for _ in range(2):
        memory.resize(4096)
        for inputs, outputs, tensor in [
            ([lying(memory, array, 4000)], [target(other, 4000, 4000)], "input 'INPUT0'"),
            ([sent(array)], [target(memory, 4000)], "output 'OUTPUT0'"),
        ]:
            with pytest.raises(InferenceServerException) as caught:
                client.infer("numbers", inputs, outputs=outputs)
            assert (caught.value.status(), caught.value.message()) == ("400", f"{tensor} {CUT}")
        client.infer("numbers", [lying(other, array, 4000)], outputs=[target(other, 4000, 4000)])
        memory.resize(8192)
        memory.write(array)
        client.infer("numbers", [lying(memory, array, 4000)], outputs=[target(memory, 4000, 4000)])
        assert np.array_equal(memory.read(array, 4000), array)


class Later:
    """A request to a model that has it, and reads its input when it is told to."""

    def __init__(self, server: Server, repository: Path, inputs: list[triton.InferInput], outputs: Any = None) -> None:
        self._folder = repository / "later"
        for name in ("started", "read"):
            (self._folder / name).unlink(missing_ok=True)
        self._client = triton.InferenceServerClient(server.url)
        self._answer: Any = None
        self._thread = threading.Thread(target=self._ask, args=[inputs, outputs])
        self._thread.start()
        deadline = time.monotonic() + 10
        while not (self._folder / "started").exists():
            assert time.monotonic() < deadline, server.report()
            time.sleep(0.002)

    def _ask(self, inputs: list[triton.InferInput], outputs: Any) -> None:
        try:
            self._answer = self._client.infer("later", inputs, outputs=outputs)
        except InferenceServerException as error:
            self._answer = error

    def let(self) -> None:
        (self._folder / "read").touch()

    def answer(self) -> Any:
        self.let()
        self._thread.join(20)
        self._client.close()
        return self._answer


@pytest.mark.timeout(60)
def test_cut_while_the_model_has_it(
    server: Server, repository: Path, client: triton.InferenceServerClient, new_memory: Callable[..., Memory]
) -> None:
    """The worker dies of reading it, and comes back. That request is told what is wrong; one that waits behind it, and
    those to other models, notice nothing."""
    memory = new_memory(1 << 20)
    array = np.arange(1000, dtype=np.int32).reshape(1, -1)
    pid = server.worker_pids("later")[0]
    request = Later(server, repository, [lying(memory, array, 4000)])
    memory.resize(0)
    waiting = triton.InferenceServerClient(server.url)
    behind = waiting.async_infer("later", [sent(array)])
    answer = request.answer()
    assert isinstance(answer, InferenceServerException), answer
    assert (answer.status(), answer.message()) == ("400", f"input 'INPUT0' {CUT}")
    assert np.array_equal(behind.get_result(timeout=10).as_numpy("OUTPUT0"), array)
    waiting.close()
    assert server.worker_pids("later")[0] != pid
    assert np.array_equal(client.infer("numbers", [sent(array)]).as_numpy("OUTPUT0"), array)


def test_unregistered_while_it_is_used(
    server: Server, repository: Path, client: triton.InferenceServerClient, new_memory: Callable[..., Memory]
) -> None:
    """What runs is answered; later requests do not find it any more."""
    memory = new_memory(8192)
    array = np.arange(1000, dtype=np.int32).reshape(1, -1)
    memory.write(array)
    request = Later(server, repository, [lying(memory, array, 4000)], [target(memory, 4000, 4000)])
    client.unregister_system_shared_memory(memory.name)
    answer = request.answer()
    assert not isinstance(answer, Exception), answer
    assert np.array_equal(memory.read(array, 4000), array)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("numbers", [lying(memory, array, 4000)])
    assert caught.value.message() == f"Unable to find shared memory region: '{memory.name}'"


def test_a_worker_that_is_killed_gets_the_regions_again(
    server: Server, repository: Path, client: triton.InferenceServerClient, new_memory: Callable[..., Memory]
) -> None:
    memory = new_memory(8192)
    array = np.arange(1000, dtype=np.int32).reshape(1, -1)
    memory.write(array)
    request = Later(server, repository, [lying(memory, array, 4000)], [target(memory, 4000, 4000)])
    os.kill(server.worker_pids("later")[0], signal.SIGKILL)
    answer = request.answer()
    assert not isinstance(answer, Exception), answer
    assert np.array_equal(memory.read(array, 4000), array)
