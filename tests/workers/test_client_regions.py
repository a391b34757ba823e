"""Requests whose inputs and outputs lie in memory that clients registered."""

import mmap
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conch import tensors
from conch.messages import (
    Block,
    ClientRegion,
    CudaRegion,
    Died,
    Fault,
    OutputTarget,
    Response,
    TensorDescription,
    TensorReference,
)
from tests.client_memory import ClientMemory, client_memory
from tests.workers import onnx_models
from tests.workers.harness import Array, Stage, ints
from tests.workers.test_python_model import ECHO, model

NBYTES = 64 * 1024
#: regions begin at pages
PAGE = mmap.ALLOCATIONGRANULARITY
BYTES_CONFIG: dict[str, Any] = {
    "input": [{"name": "IN", "data_type": "TYPE_STRING", "dims": [-1]}],
    "output": [{"name": "OUT", "data_type": "TYPE_STRING", "dims": [-1]}],
}
#: adds what lies in the arena and what lies in a region; two outputs
ADD_SUB = model("""
y = pb_utils.get_input_tensor_by_name(request, "OTHER").as_numpy()
response = InferenceResponse([Tensor("SUM", x + y), Tensor("DIFFERENCE", x - y)])
""")
ADD_SUB_CONFIG: dict[str, Any] = {
    "input": [{"name": name, "data_type": "TYPE_INT32", "dims": [-1]} for name in ("IN", "OTHER")],
    "output": [{"name": name, "data_type": "TYPE_INT32", "dims": [-1]} for name in ("SUM", "DIFFERENCE")],
}
#: returns its input without looking at it
PASSES_ON = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(request.inputs()) for request in requests]
"""


@pytest.fixture
def memory() -> Iterator[ClientMemory]:
    with client_memory(NBYTES) as memory:
        yield memory


def region(stage: Stage, memory: ClientMemory, offset: int = 0, nbytes: int = NBYTES) -> int:
    return stage.requester.add_region(memory.descriptor, offset, nbytes)


def in_region(reference: TensorReference, array: Array, name: str = "IN") -> TensorDescription:
    return TensorDescription(name, tensors.datatype_of(array.dtype), array.shape, reference)


def write(memory: ClientMemory, offset: int, array: Array) -> int:
    """Puts ``array`` into the client's memory; returns its size in bytes."""
    if array.dtype == object:
        data = tensors.pack(tensors.elements_of(array))
    else:
        data = bytes(tensors.wire_bytes(array))
    memory.view[offset : offset + len(data)] = data
    return len(data)


def ask(stage: Stage, worker: str, model: str, *inputs: TensorDescription, **targets: TensorReference) -> Response:
    """One request to its response."""
    outputs = tuple(OutputTarget(name, reference) for name, reference in targets.items())
    request = stage.requester.request(model, *inputs, targets=outputs)
    batch = stage.send(worker, request)
    response = stage.requester.response(worker)
    assert (response.id, response.index, response.final) == (request.id, 0, True)
    assert stage.done(batch).failed == ((0,) if response.error else ())
    stage.requester.free(request)
    return response


def refused(stage: Stage, worker: str, model: str, *inputs: TensorDescription, **targets: TensorReference) -> Fault:
    response = ask(stage, worker, model, *inputs, **targets)
    assert response.error is not None
    assert (response.outputs, response.lease) == ((), None)
    return response.error


# ------------------------------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize(("start", "offset"), [(0, 0), (0, 4), (PAGE, 0), (PAGE, 28), (0, 3), (2 * PAGE, 2)])
def test_an_input_anywhere_in_a_region(stage: Stage, memory: ClientMemory, start: int, offset: int) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    number = region(stage, memory, start, NBYTES - start)
    array = np.arange(4000, dtype=np.int32).reshape(1, -1)
    nbytes = write(memory, start + offset, array)
    for _ in range(2):
        response = ask(stage, worker, "echo", in_region(ClientRegion(number, offset, nbytes), array))
        assert np.array_equal(stage.requester.outputs(response)["OUT"], array)
        array[:] += 1
        write(memory, start + offset, array)


def test_a_region_that_is_announced_to_a_connection_that_is_there(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    assert np.array_equal(stage.ask(worker, "echo", ints(1)), ints(1))
    nbytes = write(memory, 0, ints(2))
    number = region(stage, memory)
    response = ask(stage, worker, "echo", in_region(ClientRegion(number, 0, nbytes), ints(2)))
    assert np.array_equal(stage.requester.outputs(response)["OUT"], ints(2))


def test_arena_and_region_in_one_request_and_in_one_batch(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("add_sub", ADD_SUB, ADD_SUB_CONFIG))
    number = region(stage, memory)
    nbytes = write(memory, 0, ints(10, 20))
    put = stage.requester.put
    lying = in_region(ClientRegion(number, 0, nbytes), ints(10, 20))
    target = OutputTarget("DIFFERENCE", ClientRegion(number, 1000, 100))
    requests = [
        stage.requester.request("add_sub", lying, put("OTHER", ints(1, 2)), targets=(target,)),
        stage.requester.request("add_sub", put("IN", ints(3)), put("OTHER", ints(4))),
    ]
    batch = stage.send(worker, *requests)
    first, second = stage.requester.response(worker), stage.requester.response(worker)
    assert stage.done(batch).failed == ()
    summed, difference = first.outputs
    assert isinstance(summed.reference, Block)
    assert difference == TensorDescription("DIFFERENCE", "INT32", (1, 2), ClientRegion(number, 1000, 8))
    assert np.array_equal(np.frombuffer(memory.view[1000:1008], np.int32), [9, 18])
    assert first.lease is not None
    assert np.array_equal(
        tensors.as_array(stage.requester.mappings.view(summed.reference), "INT32", (1, 2)), ints(11, 22)
    )
    stage.requester.mappings.give_back(first.lease)
    outputs = stage.requester.outputs(second)
    assert np.array_equal(outputs["DIFFERENCE"], ints(-1))
    for request in requests:
        stage.requester.free(request)


def test_a_model_may_change_and_keep_what_it_got(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(
        stage.model(
            "keeps",
            model("""
self.kept.append(request.inputs()[0])
x += 1
response = InferenceResponse([Tensor("OUT", self.kept[0].as_numpy())])
"""),
        )
    )
    number = region(stage, memory)
    for value in (5, 6):
        nbytes = write(memory, 0, ints(value))
        response = ask(stage, worker, "keeps", in_region(ClientRegion(number, 0, nbytes), ints(value)))
        assert np.array_equal(stage.requester.outputs(response)["OUT"], ints(6))
        assert np.array_equal(np.frombuffer(memory.view[:4], np.int32), [value])


@pytest.mark.parametrize("array", [ints(*range(9)), np.array([[b"a", b"", b"c" * 5000]], object)])
def test_an_input_that_is_passed_on(stage: Stage, memory: ClientMemory, array: Array) -> None:
    same_name = {"output": [{"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]}]}
    worker = stage.ready(stage.model("passes_on", PASSES_ON, same_name))
    number = region(stage, memory)
    nbytes = write(memory, 0, array)
    lying = in_region(ClientRegion(number, 0, nbytes), array)
    (output,) = ask(stage, worker, "passes_on", lying, IN=ClientRegion(number, 20_000, nbytes)).outputs
    assert output.reference == ClientRegion(number, 20_000, nbytes)
    assert memory.view[20_000 : 20_000 + nbytes] == memory.view[:nbytes]
    # onto itself, a little further on
    before = bytes(memory.view[:nbytes])
    ask(stage, worker, "passes_on", lying, IN=ClientRegion(number, 4, nbytes))
    assert memory.view[4 : 4 + nbytes] == before


def test_an_onnx_model(stage: Stage, memory: ClientMemory) -> None:
    worker, _ = stage.complete(stage.onnx_model("add", onnx_models.add_sub("n", 3)))
    a, b = np.array([[1, 2, 3]], np.float32), np.array([[10, 20, 30]], np.float32)
    number = region(stage, memory)
    nbytes = write(memory, 0, a)
    write(memory, 101, b)
    response = ask(
        stage,
        worker,
        "add",
        in_region(ClientRegion(number, 0, nbytes), a, "A"),
        in_region(ClientRegion(number, 101, nbytes), b, "B"),
        SUM=ClientRegion(number, 203, nbytes),
        DIFFERENCE=ClientRegion(number, 300, nbytes),
    )
    assert response.error is None and response.lease is None
    assert np.array_equal(np.frombuffer(bytes(memory.view[203:215]), np.float32), (a + b)[0])
    assert np.array_equal(np.frombuffer(memory.view[300:312], np.float32), (a - b)[0])


def test_zero_elements(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    number = region(stage, memory)
    empty = np.zeros((1, 0), np.int32)
    at_the_end = ClientRegion(number, NBYTES, 0)
    (output,) = ask(stage, worker, "echo", in_region(at_the_end, empty), OUT=at_the_end).outputs
    assert output == TensorDescription("OUT", "INT32", (1, 0), at_the_end)


# -------------------------------------------------------------------------------------------------------------- BYTES


def test_texts(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("texts", ECHO, BYTES_CONFIG))
    number = region(stage, memory, PAGE, NBYTES - PAGE)
    array = np.array([[b"one", b"", "zwölf".encode(), b"x" * 9000]], object)
    nbytes = write(memory, PAGE + 1, array)
    lying = in_region(ClientRegion(number, 1, nbytes), array)
    assert np.array_equal(stage.requester.outputs(ask(stage, worker, "texts", lying))["OUT"], array)
    response = ask(stage, worker, "texts", lying, OUT=ClientRegion(number, 20_001, 30_000))
    assert response.outputs[0].reference == ClientRegion(number, 20_001, nbytes)
    assert response.lease is None
    start = PAGE + 20_001
    assert memory.view[start : start + nbytes] == memory.view[PAGE + 1 : PAGE + 1 + nbytes]


@pytest.mark.parametrize(
    ("data", "elements", "text"),
    [
        (b"\1\0\0\0a" * 3, 2, "unexpected number of string elements 3 for inference input 'IN' for model 'texts'"),
        (b"\1\0\0\0a", 2, "expected 2 string elements for inference input 'IN' for model 'texts', got 1"),
        (b"\1\0\0\0a\1\0", 2, "incomplete string length indicator for inference input 'IN' for model 'texts'"),
        (b"\xff\xff\xff\xffa", 1, "incomplete string data for inference input 'IN' for model 'texts'"),
        (b"", 1, "expected 1 string elements for inference input 'IN' for model 'texts', got 0"),
    ],
)
def test_texts_that_are_wrong_fail_alone(
    stage: Stage, memory: ClientMemory, data: bytes, elements: int, text: str
) -> None:
    worker = stage.ready(stage.model("texts", ECHO, BYTES_CONFIG))
    number = region(stage, memory)
    memory.view[: len(data)] = data
    wrong = TensorDescription("IN", "BYTES", (1, elements), ClientRegion(number, 0, len(data)))
    good = np.array([[b"good"]], object)
    requests = [
        stage.requester.request("texts", stage.requester.put("IN", good)),
        stage.requester.request("texts", wrong, client_id="r1"),
        stage.requester.request("texts", stage.requester.put("IN", good)),
    ]
    batch = stage.send(worker, *requests)
    responses = [stage.requester.response(worker) for _ in requests]
    assert stage.done(batch).failed == (1,)
    fault = responses[1].error
    assert fault is not None and fault.kind == "InvalidArgument"
    assert fault.message.startswith(f"[request id: r1] {text}")
    for response in (responses[0], responses[2]):
        assert np.array_equal(stage.requester.outputs(response)["OUT"], good)
    for request in requests:
        stage.requester.free(request)


# ------------------------------------------------------------------------------------------------------------ outputs


def test_nothing_beside_the_window_is_written(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    memory.view[:] = b"\xee" * NBYTES
    number = region(stage, memory, PAGE, 30_000)
    array = np.arange(5000, dtype=np.int32).reshape(1, -1)
    response = ask(
        stage, worker, "echo", stage.requester.put("IN", array), OUT=ClientRegion(number, 5, array.nbytes + 500)
    )
    assert response.outputs[0].reference == ClientRegion(number, 5, array.nbytes)
    start = PAGE + 5
    assert bytes(memory.view[start : start + array.nbytes]) == array.tobytes()
    assert set(memory.view[:start]) | set(memory.view[start + array.nbytes :]) == {0xEE}


def test_too_small(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("add_sub", ADD_SUB, ADD_SUB_CONFIG))
    number = region(stage, memory)
    fault = refused(
        stage,
        worker,
        "add_sub",
        stage.requester.put("IN", ints(1, 2)),
        stage.requester.put("OTHER", ints(3, 4)),
        SUM=ClientRegion(number, 0, 8),
        DIFFERENCE=ClientRegion(number, 8, 7),
    )
    assert fault == Fault(
        "Internal",
        "shared memory size specified with the request for output 'DIFFERENCE' (7 bytes) should be at least 8 bytes to "
        "hold the results",
    )
    assert bytes(memory.view[:16]) == bytes(16)


def test_a_target_for_what_the_model_does_not_return(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    number = region(stage, memory)
    put = stage.requester.put("IN", ints(1))
    response = ask(stage, worker, "echo", put, OTHER=ClientRegion(number, 0, 100))
    assert np.array_equal(stage.requester.outputs(response)["OUT"], ints(1))


# ------------------------------------------------------------------------------------- regions that cannot be used


CUT = "cannot be used: its shared memory region is smaller than when it was registered"


def test_cut_before(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    number = region(stage, memory)
    nbytes = write(memory, 0, ints(1))
    lying = in_region(ClientRegion(number, 0, nbytes), ints(1))
    for _ in range(2):  # before the worker has mapped it, and after
        memory.resize(NBYTES - 1)
        assert refused(stage, worker, "echo", lying) == Fault("InvalidArgument", f"input 'IN' {CUT}")
        put = stage.requester.put("IN", ints(1))
        assert refused(stage, worker, "echo", put, OUT=ClientRegion(number, 0, nbytes)) == Fault(
            "InvalidArgument", f"output 'OUT' {CUT}"
        )
        memory.resize(NBYTES)
        response = ask(stage, worker, "echo", lying, OUT=ClientRegion(number, 0, nbytes))
        assert response.error is None


def test_cut_while_the_model_runs(stage: Stage, memory: ClientMemory) -> None:
    """The output is refused; nobody dies."""
    worker = stage.ready(
        stage.model(
            "cuts",
            model(f"""
os.truncate("/dev/shm{memory.key}", 0)
response = InferenceResponse([Tensor("OUT", x)])
"""),
        )
    )
    number = region(stage, memory)
    put = stage.requester.put("IN", ints(1))
    assert refused(stage, worker, "cuts", put, OUT=ClientRegion(number, 0, 4)) == Fault(
        "InvalidArgument", f"output 'OUT' {CUT}"
    )


def test_cut_before_the_model_reads(stage: Stage, memory: ClientMemory) -> None:
    """The worker dies of it, and nobody else."""
    code = model("response = None").replace(
        "            x =", f"            os.truncate('/dev/shm{memory.key}', 0)\n            x ="
    )
    worker = stage.ready(stage.model("cuts", code))
    number = region(stage, memory)
    nbytes = write(memory, 0, ints(1))
    stage.send(worker, stage.requester.request("cuts", in_region(ClientRegion(number, 0, nbytes), ints(1))))
    died = stage.broker.expect(Died)
    assert (died.worker, died.signal) == (worker, signal.SIGBUS)
    stage.requester.until_closed(worker)
    # the next worker is told what is wrong
    worker = stage.ready(stage.model("echo", ECHO))
    lying = in_region(ClientRegion(number, 0, nbytes), ints(1))
    assert refused(stage, worker, "echo", lying) == Fault("InvalidArgument", f"input 'IN' {CUT}")


def test_unlinked_by_the_client(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    number = region(stage, memory)
    nbytes = write(memory, 0, ints(1))
    memory.unlink()
    response = ask(
        stage,
        worker,
        "echo",
        in_region(ClientRegion(number, 0, nbytes), ints(1)),
        OUT=ClientRegion(number, 64, nbytes),
    )
    assert response.error is None
    assert memory.view[64:68] == memory.view[:4]


def test_retired(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    number, other = region(stage, memory), region(stage, memory)
    nbytes = write(memory, 0, ints(1))
    response = ask(stage, worker, "echo", in_region(ClientRegion(number, 0, nbytes), ints(1)))
    assert np.array_equal(stage.requester.outputs(response)["OUT"], ints(1))
    stage.requester.retire_region(number)
    text = "cannot be used: its shared memory region is not registered any more"
    lying = in_region(ClientRegion(number, 0, nbytes), ints(1))
    while (fault := ask(stage, worker, "echo", lying).error) is None:
        pass  # a busy worker reads that it is retired some batches later
    assert fault == Fault("InvalidArgument", f"input 'IN' {text}")
    put = stage.requester.put("IN", ints(1))
    fault = refused(stage, worker, "echo", put, OUT=ClientRegion(number, 0, nbytes))
    assert fault == Fault("InvalidArgument", f"output 'OUT' {text}")
    response = ask(stage, worker, "echo", in_region(ClientRegion(other, 0, nbytes), ints(1)))
    assert np.array_equal(stage.requester.outputs(response)["OUT"], ints(1))


def test_retired_while_a_batch_uses_it(stage: Stage, memory: ClientMemory) -> None:
    """A later request of the same batch makes the worker read that the region of the first is retired."""
    worker = stage.ready(stage.model("echo", ECHO))
    assert np.array_equal(stage.ask(worker, "echo", ints(1)), ints(1))
    number = region(stage, memory)
    array = np.arange(4000, dtype=np.int32).reshape(1, -1)
    nbytes = write(memory, 0, array)
    lying = in_region(ClientRegion(number, 0, nbytes), array)
    assert stage.requester.outputs(ask(stage, worker, "echo", lying))
    with client_memory(NBYTES) as new_memory:
        write(new_memory, 0, ints(7))
        first = stage.requester.request(
            "echo", lying, targets=(OutputTarget("OUT", ClientRegion(number, 20_000, nbytes)),)
        )
        second = stage.requester.request("echo", in_region(ClientRegion(number + 1, 0, 4), ints(7)))
        batch = stage.send(worker, first, second)
        stage.requester.retire_region(number)
        assert region(stage, new_memory) == number + 1
        answers = [stage.requester.response(worker) for _ in range(2)]
        assert stage.done(batch).failed in ((), (0,))  # if the worker has read all that before it took up the batch
        if answers[0].error is None:
            assert memory.view[20_000 : 20_000 + nbytes] == memory.view[:nbytes]
        assert np.array_equal(stage.requester.outputs(answers[1])["OUT"], ints(7))


def test_outside_of_the_region(stage: Stage, memory: ClientMemory) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    number = region(stage, memory, 0, 1000)
    put = stage.requester.put("IN", ints(1))
    for offset, nbytes in [(997, 4), (-1, 4), (2**62, 4), (0, 1001), (1001, 0)]:
        fault = refused(stage, worker, "echo", put, OUT=ClientRegion(number, offset, nbytes))
        assert fault == Fault("Internal", "the server could not find the memory of this request's inputs or outputs")
        put = stage.requester.put("IN", ints(1))
        assert fault == refused(stage, worker, "echo", in_region(ClientRegion(number, offset, nbytes), ints(1)))


def test_cuda_regions_are_refused(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    text = "is in CUDA shared memory, which cannot be used yet: use system shared memory"
    on_gpu = CudaRegion(1, 0, 4)
    assert refused(stage, worker, "echo", in_region(on_gpu, ints(1))) == Fault("Unsupported", f"input 'IN' {text}")
    put = stage.requester.put("IN", ints(1))
    assert refused(stage, worker, "echo", put, OUT=on_gpu) == Fault("Unsupported", f"output 'OUT' {text}")
