"""Models that ask models, up to whoever carries the requests, which is played here."""

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from conch.errors import ClientError, ConchError, Forbidden, InvalidArgument, ModelError, NotFound, NotReady, Overloaded
from conch.messages import Block, LoadModel, Parent, Request, UnloadModel
from conch.requester.inference import InferenceCall, InferenceResult, Outcome, OutputTensor
from shm.lent import Lent
from workers.backends.base import Item
from workers.python_utils import asking, bls
from workers.python_utils import triton_python_backend_utils as pb_utils
from workers.python_utils.failures import triton_error

TritonModelException = pb_utils.TritonModelException


class Segment:
    number = 7
    nbytes = 1 << 30
    descriptor = 0


class FakeModel:
    decoupled = False


class FakeHandle:
    def __init__(self, respond: Callable[[Outcome | None, bool], None], call: InferenceCall) -> None:
        self.respond = respond
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeAsker:
    """``asked`` grows with each request; ``answers`` are given at once."""

    def __init__(self) -> None:
        self.models: dict[str, FakeModel] = {"other": FakeModel()}
        self.asked: list[FakeHandle] = []
        self.answers: list[tuple[Outcome | None, bool]] = []
        self.released: list[int] = []
        self.calls: list[Any] = []
        self.fails: ConchError | None = None
        self.arrived = threading.Semaphore(0)

    def ask(
        self,
        model_name: str,
        version: int,
        call: InferenceCall,
        parent: Parent | None,
        on_response: Callable[[Outcome | None, bool], None],
    ) -> FakeHandle:
        handle = FakeHandle(on_response, call)
        self.asked.append(handle)
        for answer in self.answers:
            on_response(*answer)
        self.arrived.release()
        return handle

    def model(self, name: str, version: int) -> Any:
        if self.fails is not None:
            raise self.fails
        if name not in self.models:
            raise NotFound(f"no {name}")
        return self.models[name]

    def call(self, message: Any) -> Any:
        self.calls.append(message)
        if self.fails is not None:
            raise self.fails

    def result(self, number: int, hold: object = None, nbytes: int = 12) -> InferenceResult:
        """With one output of int32 whose first element is ``number``, lent if there is a ``hold``."""
        data = np.full(nbytes // 4, number, np.int32).tobytes()
        lent = None if hold is None else Lent(Block(7, 0, nbytes), Segment(), hold)
        shown = data if lent is None else memoryview(data)
        output = OutputTensor("OUT", "INT32", (nbytes // 4,), shown, None, lent)
        return InferenceResult("other", 1, "", {"n": number}, [output], lambda: self.released.append(number))


@pytest.fixture
def asker() -> Iterator[FakeAsker]:
    fake = FakeAsker()
    asking.set_asker(fake)
    asking.set_serving(True)
    yield fake
    asking.set_serving(False)
    asking.set_asker(None)
    asking._running.set(None)


def request(model: str = "other", **options: Any) -> pb_utils.InferenceRequest:
    tensor = pb_utils.Tensor("IN", np.zeros(1, np.int32))
    return pb_utils.InferenceRequest(model_name=model, inputs=[tensor], requested_output_names=["OUT"], **options)


def number(response: Any) -> int:
    assert not response.has_error(), response.error().message()
    return int(response.output_tensors()[0].as_numpy()[0])


# ---------------------------------------------------------------------------------------------------------- asking


def test_what_is_asked(asker: FakeAsker) -> None:
    asker.answers = [(asker.result(4), True)]
    trace = pb_utils.InferenceTrace('{"t":1}')
    made = request(request_id="me", correlation_id="s", flags=2, timeout=7, parameters={"a": 1}, trace=trace)
    response = made.exec()
    assert number(response) == 4 and response.parameters() == '{"n":4}'  # type: ignore[union-attr]
    call = asker.asked[0].call
    assert (call.client_id, call.timeout_us, call.parameters, call.outputs) == ("me", 7, {"a": 1}, ("OUT",))
    assert call.sequence is not None
    assert (call.sequence.id, call.sequence.start, call.sequence.end) == ("s", False, True)
    assert (call.parent, call.depth, call.trace) == (None, 0, '{"t":1}')
    assert asker.released == [4]


def test_flags_without_a_correlation_id_are_no_sequence(asker: FakeAsker) -> None:
    asker.answers = [(asker.result(4), True)]
    request(flags=1).exec()
    assert asker.asked[0].call.sequence is None


def test_whose_request_it_is(asker: FakeAsker) -> None:
    """That of the batch which runs on this thread, in tasks too, but not in other threads."""
    asker.answers = [(asker.result(4), True)]
    item = Item(Request(9, 1, "me", 1, 1, "", (), depth=2), [], lambda: False, None, "asker")  # type: ignore[arg-type]
    asking.set_running(item)
    request().exec()

    async def in_a_task() -> None:
        await asyncio.gather(asyncio.create_task(_exec_in_task()))

    asyncio.run(in_a_task())
    thread = threading.Thread(target=request().exec)
    thread.start()
    thread.join()
    found = [(handle.call.parent, handle.call.depth) for handle in asker.asked]
    assert found == [(Parent("asker", 9), 3), (Parent("asker", 9), 3), (None, 0)]


async def _exec_in_task() -> None:
    await request().async_exec()


def test_exec_waits_without_holding_others_up(asker: FakeAsker) -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(number(request().exec())))
    thread.start()
    assert asker.arrived.acquire(timeout=10)
    asker.asked[0].respond(asker.result(8), True)
    thread.join(10)
    assert found == [8]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("x"), 2),
        (InvalidArgument("x"), 3),
        (Forbidden("x"), 3),
        (ClientError("x"), 0),
        (Overloaded("x"), 4),
        (ModelError("x"), 1),
    ],
)
def test_errors_are_responses(asker: FakeAsker, error: ConchError, code: int) -> None:
    asker.answers = [(error, True)]
    response: Any = request().exec()
    assert response.has_error() and response.error().message() == "x" and response.error().code() == code
    assert response.output_tensors() == []
    assert triton_error(error).code() == code


def test_an_empty_answer_is_an_error(asker: FakeAsker) -> None:
    asker.answers = [(None, True)]
    assert request().exec().error().message() == "Unexpected empty response."  # type: ignore[union-attr]


def test_a_model_that_has_just_become_decoupled(asker: FakeAsker) -> None:
    asker.answers = [(asker.result(1), False), (asker.result(2), False)]
    assert number(request().exec()) == 1
    asker.answers = []
    asker.asked[0].respond(asker.result(3), True)
    assert asker.asked[0].cancelled and sorted(asker.released) == [1, 2, 3]


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_model_that_is_not_there(asker: FakeAsker, decoupled: bool) -> None:
    found = request("nowhere").exec(decoupled=decoupled)
    response: Any = next(iter(found)) if isinstance(found, pb_utils.ResponseIterator) else found
    text = (
        "Failed for execute the inference request. Model 'nowhere' is not ready. Error when running inference: "
        "no nowhere"
    )
    assert response.error().message() == text
    assert not asker.asked


def test_a_decoupled_model_without_the_flag(asker: FakeAsker) -> None:
    asker.models["other"].decoupled = True
    response: Any = request().exec()
    assert "Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls" in response.error().message()


def test_only_while_the_model_executes(asker: FakeAsker) -> None:
    asking.set_serving(False)
    text = "BLS is only supported during the 'execute' function"
    with pytest.raises(TritonModelException, match=text):
        request().exec()

    async def main() -> None:
        with pytest.raises(TritonModelException, match=text):
            await request().async_exec()

    asyncio.run(main())


def test_a_forked_process_cannot_ask(asker: FakeAsker) -> None:
    pid = os.fork()
    if not pid:
        try:
            request().exec()
        except TritonModelException as error:
            os._exit(3 if "forked" in str(error) else 4)
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_without_a_server() -> None:
    with pytest.raises(TritonModelException, match="only a running server's workers can"):
        pb_utils.load_model("a")


# ------------------------------------------------------------------------------------------------------ async_exec


def test_an_answer_from_another_thread_wakes_the_loop(asker: FakeAsker) -> None:
    async def main() -> list[int]:
        asked = [request().async_exec() for _ in range(3)]
        threading.Thread(target=answer_all).start()
        return [number(each) for each in await asyncio.gather(*asked)]

    def answer_all() -> None:
        for position in (2, 0, 1):
            asker.asked[position].respond(asker.result(position), True)

    assert asyncio.run(main()) == [0, 1, 2]


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_task_cancels_its_request(asker: FakeAsker, begun: bool) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(request().async_exec())
        if begun:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert asker.asked[0].cancelled
    asker.asked[0].respond(asker.result(5), True)
    assert asker.released == [5], "an answer that nobody waits for is given back"


def test_an_answer_after_the_end_of_the_loop(asker: FakeAsker) -> None:
    loop = asyncio.new_event_loop()

    async def ask() -> None:
        tasks.append(request().async_exec())
        await asyncio.sleep(0)

    tasks: list[Any] = []
    loop.run_until_complete(ask())
    asker.asked[0].respond(asker.result(5), True)
    loop.run_until_complete(tasks[0])
    loop.run_until_complete(ask())
    pending = tasks.pop()
    pending.cancel()
    loop.run_until_complete(asyncio.gather(pending, return_exceptions=True))
    loop.close()
    asker.asked[1].respond(asker.result(6), True)
    assert asker.released[-1] == 6


def test_async_exec_needs_a_running_loop(asker: FakeAsker) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        request().async_exec()
    assert not asker.asked


# --------------------------------------------------------------------------------------------------- the iterator


def iterate(asker: FakeAsker, *answers: tuple[Outcome | None, bool]) -> Any:
    asker.answers = list(answers)
    return request().exec(decoupled=True)


def test_a_response_has_been_read_when_the_next_one_is_asked_for(asker: FakeAsker) -> None:
    responses = iterate(asker, (asker.result(0), False), (asker.result(1), False), (None, True))
    assert number(next(responses)) == 0 and asker.released == []
    assert number(next(responses)) == 1 and asker.released == [0]
    assert next(responses).output_tensors() == [] and asker.released == [0, 1]
    with pytest.raises(StopIteration):
        next(responses)


def test_a_kept_tensor_lets_go_of_the_memory_it_came_in(asker: FakeAsker) -> None:
    class Hold:
        def __del__(self) -> None:
            gone.append(True)

    gone: list[bool] = []
    responses = iterate(asker, (asker.result(3, Hold()), False), (None, True))
    kept = next(responses).output_tensors()[0]
    asker.answers = []
    gc.collect()
    assert not gone
    next(responses)
    asker.asked.clear()
    gc.collect()
    assert gone == [True] and kept.as_numpy().tolist() == [3, 3, 3]


def test_iterating_again(asker: FakeAsker) -> None:
    responses = iterate(asker, (asker.result(0), False), (asker.result(1), True))
    assert [number(each) for each in responses] == [0, 1]
    assert [number(each) for each in responses] == [0, 1]
    assert iter(responses) is responses
    assert number(next(responses)) == 0
    assert [number(each) for each in responses] == [1]


def test_too_many_are_not_kept(asker: FakeAsker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bls, "MOST_KEPT_NBYTES", 2 * bls.RESPONSE_NBYTES + 24)
    responses = iterate(asker, *[(asker.result(each), each == 2) for each in range(3)])
    assert [number(each) for each in responses] == [0, 1, 2]
    with pytest.raises(TritonModelException, match="cannot be iterated over again"):
        iter(responses)
    with pytest.raises(StopIteration):
        next(responses)


def test_cancelling_ends_the_iteration(asker: FakeAsker) -> None:
    responses = iterate(asker, (asker.result(0), False), (asker.result(1), False))
    next(responses)
    responses.cancel()
    assert asker.asked[0].cancelled
    rest = list(responses)
    assert number(rest[0]) == 1 and rest[1].error().code() == pb_utils.TritonError.CANCELLED and len(rest) == 2
    responses.cancel()


def test_cancelling_from_another_thread_wakes_who_waits(asker: FakeAsker) -> None:
    responses = iterate(asker, (asker.result(0), False))
    next(responses)
    timer = threading.Timer(0.05, responses.cancel)
    timer.start()
    assert next(responses).error().code() == pb_utils.TritonError.CANCELLED
    timer.join()


def test_a_dropped_iterator_drops_what_comes(asker: FakeAsker) -> None:
    responses = iterate(asker, (asker.result(0), False), (asker.result(1), False))
    del responses
    asker.answers = []
    gc.collect()
    asker.asked[0].respond(asker.result(2), False)
    assert sorted(asker.released) == [0, 1, 2] and not asker.asked[0].cancelled


def test_async_for(asker: FakeAsker) -> None:
    asker.answers = [(asker.result(0), False)]

    async def main() -> list[int]:
        responses: Any = await request().async_exec(decoupled=True)
        threading.Timer(0.02, lambda: asker.asked[0].respond(asker.result(1), True)).start()
        return [number(each) async for each in responses] + [number(each) async for each in responses]

    assert asyncio.run(main()) == [0, 1, 0, 1]


# ---------------------------------------------------------------------------------------------- loading and unloading


def test_loading(asker: FakeAsker) -> None:
    pb_utils.load_model("m")
    pb_utils.load_model(model_name="m", config="{}", files={"file:1/model.py": b"x"})
    pb_utils.unload_model("m", unload_dependents=True)
    assert asker.calls == [LoadModel(0, "m"), LoadModel(0, "m", "{}", {"1/model.py": b"x"}), UnloadModel(0, "m", True)]


def test_a_refusal_is_an_exception(asker: FakeAsker) -> None:
    asker.fails = NotReady("no")
    with pytest.raises(TritonModelException, match="Failed to load model: no"):
        pb_utils.load_model("m")
    with pytest.raises(TritonModelException, match="Failed to unload model: no"):
        pb_utils.unload_model("m")
    assert not pb_utils.is_model_ready("m")
    asker.fails = Overloaded("no")
    with pytest.raises(TritonModelException, match="Failed to check model readiness: no"):
        pb_utils.is_model_ready("m")


@pytest.mark.parametrize(
    ("kind", "call", "text"),
    [
        (TypeError, lambda: pb_utils.load_model(3), "model_name of .* must be a str, got"),  # type: ignore[arg-type]
        (TypeError, lambda: pb_utils.load_model("m", {}), "config of .* must be a str, got"),  # type: ignore[arg-type]
        (TypeError, lambda: pb_utils.load_model("m", "", {"file:a": "b"}), "as bytes"),  # type: ignore[dict-item]
        (TritonModelException, lambda: pb_utils.load_model("m", "", {"a": b""}), "begin with 'file:'"),
        (TritonModelException, lambda: pb_utils.load_model("m", "", [1]), "should be a dictionary"),  # type: ignore[arg-type]
        (TypeError, lambda: pb_utils.unload_model(None), "model_name of .* must be a str, got"),  # type: ignore[arg-type]
        (TypeError, lambda: pb_utils.is_model_ready("m", 1), "model_version of .* must be a str, got"),  # type: ignore[arg-type]
        (TritonModelException, lambda: pb_utils.is_model_ready("m", "-1"), "should be an integral value > 0"),
    ],
)
def test_wrong_arguments_of_model_control(
    asker: FakeAsker, kind: type[Exception], call: Callable[[], Any], text: str
) -> None:
    with pytest.raises(kind, match=text):
        call()
    assert not asker.calls


# -------------------------------------------------------------------------------------------------- making requests


def make(**changes: Any) -> Any:
    arguments: dict[str, Any] = {"inputs": [], "requested_output_names": ["OUT"], "model_name": "other", **changes}
    return pb_utils.InferenceRequest(**{name: value for name, value in arguments.items() if value is not ...})


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        (TypeError, {"model_name": ...}, "misses its argument 'model_name'"),
        (TypeError, {"inputs": ...}, "misses its argument 'inputs'"),
        (TypeError, {"requested_output_names": ...}, "misses its argument 'requested_output_names'"),
        (TypeError, {"model_name": None}, "model_name of .* must be a str, got"),
        (TypeError, {"request_id": 1}, "request_id of .* must be a str, got"),
        (TypeError, {"inputs": [1]}, "expects a list of Tensor inputs"),
        (TypeError, {"inputs": 5}, "expects a list of inputs"),
        (TypeError, {"requested_output_names": "OUT"}, "expects a list of requested_output_names"),
        (TypeError, {"requested_output_names": [3]}, "a name in requested_output_names must be a str, got"),
        (TypeError, {"model_version": "1"}, "expects model_version to be an int"),
        (TypeError, {"flags": -1}, "expects flags to be an int of at least 0"),
        (TypeError, {"timeout": 1.5}, "expects timeout to be an int"),
        (TypeError, {"correlation_id": -1}, "expects correlation_id to be an int"),
        (TypeError, {"parameters": 3}, "parameters must be a dict"),
        (TritonModelException, {"correlation_id": None}, "Correlation ID must be integer or string"),
        (TritonModelException, {"inputs": [None]}, "Input tensor for request with id '' and model name 'other' should"),
        (TritonModelException, {"requested_output_names": [""]}, "Requested output name for request with id ''"),
        (TritonModelException, {"parameters": {"a": []}}, "to have type bool/int/float/str, found type"),
        (TritonModelException, {"parameters": {1: 1}}, "keys to have type str"),
    ],
)
def test_wrong_arguments_of_a_request(kind: type[Exception], changes: dict[str, Any], text: str) -> None:
    with pytest.raises(kind, match=text):
        make(**changes)


def test_bytes_are_texts() -> None:
    """Names often are elements of a BYTES tensor."""
    made = make(request_id=b"a", correlation_id=b"b", requested_output_names=[b"B"], model_name=b"other")
    assert (made.request_id(), made.correlation_id(), made.requested_output_names()) == ("a", "b", ["B"])
    tensor = pb_utils.Tensor(b"OUT", np.zeros(1, np.int32))  # type: ignore[arg-type]
    assert pb_utils.get_output_tensor_by_name(pb_utils.InferenceResponse([tensor]), b"OUT") is tensor
    with pytest.raises(TypeError, match="model_name of InferenceRequest is no UTF-8"):
        make(model_name=b"\xff")


def test_a_request_of_ones_own() -> None:
    made = make(request_id="a", correlation_id="b", requested_output_names=["B", "A", "B"], parameters={"x": True})
    assert (made.request_id(), made.correlation_id(), made.parameters()) == ("a", "b", '{"x":true}')
    assert list(made.requested_output_names()) == ["A", "B"]
    assert (made.flags(), made.timeout(), made.is_cancelled(), made.trace().get_context()) == (0, 0, False, None)
    made.set_flags(pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END)
    assert made.flags() == 2
    with pytest.raises(TritonModelException):
        made.get_response_sender()
