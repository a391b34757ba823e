"""Models that answer a request any number of times, while its batch runs or later."""

import os
import signal
import time
from typing import Any

import numpy as np
import pytest

from conch.messages import (
    Batch,
    Cancel,
    Closed,
    Died,
    Dispatch,
    Done,
    Drain,
    Forget,
    Ready,
    Request,
    Response,
    Welcome,
    Window,
)
from conch.windows import NBYTES, RESPONSES
from tests.workers.harness import FakeBroker, FakeRequester, Stage, ints

HEAD = """
import asyncio
import os
import threading
import time
import numpy as np
import triton_python_backend_utils as pb_utils
from triton_python_backend_utils import InferenceResponse, Tensor, TritonError

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

def values(request):
    return pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0].tolist()

def answer(*numbers):
    return InferenceResponse([Tensor("OUT", np.array([numbers], np.int32))])

def mark(name):
    open(os.path.join(os.path.dirname(__file__), name), "w").close()

def wait_for(name):
    while not os.path.exists(os.path.join(os.path.dirname(__file__), name)):
        time.sleep(0.002)

class TritonPythonModel:
"""
#: as many responses as the first value says, in a thread for each request
REPEAT = (
    HEAD
    + """
    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            thread = threading.Thread(target=self.repeat, args=(values(request)[0], request.get_response_sender()))
            thread.start()
            self.threads.append(thread)

    def repeat(self, count, sender):
        for number in range(count):
            sender.send(answer(number))
            if sender.is_cancelled():
                mark("cancelled")
        sender.send(flags=FINAL)

    def finalize(self):
        for thread in self.threads:
            thread.join()
        mark("finalized")
"""
)
DECOUPLED: dict[str, Any] = {"model_transaction_policy": {"decoupled": True}}


def body(text: str) -> str:
    """A model with this ``execute``."""
    lines = "\n".join("        " + line for line in text.strip().splitlines())
    return f"{HEAD}\n    def execute(self, requests):\n{lines}\n"


def ready(stage: Stage, code: str, name: str = "stream", **config: Any) -> str:
    return stage.ready(stage.model(name, code, DECOUPLED | config))


def request(stage: Stage, *numbers: int, model: str = "stream", **options: Any) -> Request:
    return stage.requester.request(model, stage.requester.put("IN", ints(*numbers)), **options)


def responses(stage: Stage, worker: str, *requests: Request) -> dict[int, list[Response]]:
    """All of these, to their final ones. What has been read is told to the worker."""
    found: dict[int, list[Response]] = {each.id: [] for each in requests}
    while not all(each and each[-1].final for each in found.values()):
        response = stage.requester.response(worker)
        found[response.id].append(response)
        assert response.index == len(found[response.id]) - 1
        if not response.final:
            stage.requester.links[worker].send_nowait(Window(response.id, 1))
    return found


def numbers(stage: Stage, found: list[Response]) -> list[list[int]]:
    return [stage.requester.outputs(each)["OUT"][0].tolist() for each in found if each.outputs]


def errors(found: list[Response]) -> list[str]:
    return [each.error.message for each in found if each.error is not None]


def closed(stage: Stage, *requests: Request) -> dict[int, Closed]:
    found = [stage.broker.expect(Closed) for _ in requests]
    assert {each.id for each in found} == {each.id for each in requests}
    return {each.id: each for each in found}


@pytest.fixture
def alone(own_stage: Stage) -> Stage:
    return own_stage


def test_many_responses_in_order_and_none(stage: Stage) -> None:
    worker = ready(stage, REPEAT)
    many, none, one = [request(stage, count) for count in (500, 0, 1)]
    batch = stage.send(worker, many, none, one)
    found = responses(stage, worker, many, none, one)
    assert numbers(stage, found[many.id]) == [[number] for number in range(500)]
    assert [(each.final, each.outputs) for each in found[none.id]] == [(True, ())]
    assert [(each.index, each.final) for each in found[one.id]] == [(0, False), (1, True)]
    done = stage.done(batch)
    assert set(done.failed + done.undelivered + done.again) == set()
    opened = [each for position, each in enumerate((many, none, one)) if position in done.open]
    for each in closed(stage, *opened).values():
        assert (each.requester, each.attempt, each.failed, each.undelivered) == (stage.requester.id, 1, False, False)


def test_all_within_execute(stage: Stage) -> None:
    code = body("""
for request in requests:
    sender = request.get_response_sender()
    assert sender is request.get_response_sender()
    sender.send(answer(1))
    sender.send(answer(2), FINAL)
    assert not sender.is_cancelled()
    assert values(request) == [5]
""")
    worker = ready(stage, code)
    asked = request(stage, 5)
    batch = stage.send(worker, asked)
    found = responses(stage, worker, asked)[asked.id]
    assert numbers(stage, found) == [[1], [2]] and [each.final for each in found] == [False, True]
    assert stage.done(batch).open == ()
    assert not [message for _, message in stage.broker.heard if isinstance(message, Closed)]


def test_several_threads_at_once(stage: Stage) -> None:
    code = (
        HEAD
        + """
    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.all, args=(request.get_response_sender(),)).start()

    def all(self, sender):
        def some(first):
            for number in range(100):
                sender.send(answer(first, number))
        threads = [threading.Thread(target=some, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sender.send(flags=FINAL)
"""
    )
    worker = ready(stage, code)
    asked = [request(stage, 1) for _ in range(3)]
    stage.send(worker, *asked)
    for found in responses(stage, worker, *asked).values():
        sent = numbers(stage, found)
        for thread in range(4):
            assert [number for first, number in sent if first == thread] == list(range(100))
        assert len(sent) == 400
    closed(stage, *asked)


def test_a_slow_reader_stops_its_own_stream_only(stage: Stage) -> None:
    worker = ready(stage, REPEAT)
    slow, quick = request(stage, RESPONSES + 50), request(stage, 2 * RESPONSES)
    stage.send(worker, slow)
    for index in range(RESPONSES):
        assert stage.requester.response(worker).index == index
    stage.send(worker, quick)
    assert len(responses(stage, worker, quick)[quick.id]) == 2 * RESPONSES + 1  # and nothing of the other one
    closed(stage, quick)
    link = stage.requester.links[worker]
    link.send_nowait(Window(slow.id, 10))
    assert [stage.requester.response(worker).index for _ in range(10)] == list(range(RESPONSES, RESPONSES + 10))
    link.send_nowait(Window(slow.id, 40))
    assert [stage.requester.response(worker).final for _ in range(41)] == [False] * 40 + [True]
    closed(stage, slow)


def test_bytes_are_counted_too(stage: Stage) -> None:
    code = body("""
for request in requests:
    sender = request.get_response_sender()
    size, count = values(request)
    for number in range(count):
        sender.send(InferenceResponse([Tensor("OUT", np.full((1, size), number, np.int32))]))
    sender.send(flags=FINAL)
""")
    worker = ready(stage, code)
    size = NBYTES // 4 // 4
    asked = request(stage, size, 6)
    stage.send(worker, asked)
    for index in range(4):
        response = stage.requester.response(worker)
        assert response.index == index
        assert np.array_equal(stage.requester.outputs(response)["OUT"], np.full((1, size), index, np.int32))
    with pytest.raises(AssertionError, match="sends nothing"):
        stage.requester.response(worker, timeout_s=0.2)
    stage.requester.links[worker].send_nowait(Window(asked.id, 4))
    assert [stage.requester.response(worker).index for _ in range(3)] == [4, 5, 6]
    stage.broker.expect(Done)


@pytest.mark.parametrize("in_execute", [False, True])
def test_cancel_wakes_a_sender_that_waits(stage: Stage, in_execute: bool) -> None:
    code = REPEAT.replace("thread.start()", "thread.run()") if in_execute else REPEAT
    worker = ready(stage, code)
    asked = request(stage, RESPONSES + 50)
    batch = stage.send(worker, asked)
    for index in range(RESPONSES):
        assert stage.requester.response(worker).index == index
    stage.broker.to_control(worker, Cancel(stage.requester.id, asked.id))
    done = stage.done(batch)
    assert done.open == (() if in_execute else (0,))
    if not in_execute:
        closed(stage, asked)
    assert (stage.path / "models" / "stream" / "1" / "cancelled").exists()
    (stage.path / "models" / "stream" / "1" / "cancelled").unlink()
    another = request(stage, 1)
    stage.send(worker, another)
    assert len(responses(stage, worker, another)[another.id]) == 2  # and nothing of what was cancelled


def test_the_death_of_a_requester_wakes_a_sender_that_waits(stage: Stage) -> None:
    worker = ready(stage, REPEAT)
    other = FakeRequester(stage.run_dir)
    asked = other.request("stream", other.put("IN", ints(RESPONSES + 50)))
    stage.broker.to_data(worker, Batch(7, 1, (Dispatch(other.id, asked),)))
    for _ in range(RESPONSES):
        other.response(worker)
    other.close()
    stage.run_dir.requester_socket(other.id).unlink()
    assert stage.broker.expect(Closed).undelivered
    stage.broker.to_control(worker, Forget(other.id))
    asked = request(stage, 3)
    stage.send(worker, asked)
    assert len(responses(stage, worker, asked)[asked.id]) == 4


def test_errors_need_not_be_final(stage: Stage) -> None:
    code = body("""
for request in requests:
    sender = request.get_response_sender()
    sender.send(InferenceResponse(error=TritonError("not now", TritonError.UNAVAILABLE)))
    sender.send(answer(1))
    sender.send(InferenceResponse(error=TritonError("never")), FINAL)
""")
    worker = ready(stage, code)
    asked = request(stage, 1)
    batch = stage.send(worker, asked)
    first, second, third = responses(stage, worker, asked)[asked.id]
    assert first.error is not None and (first.error.kind, first.error.message) == ("Unavailable", "not now")
    assert second.error is None and third.error is not None and third.error.message == "never"
    assert stage.done(batch).failed == (0,)


def test_an_exception_answers_what_is_open(stage: Stage) -> None:
    code = body("""
first, second, third = [request.get_response_sender() for request in requests]
first.send(answer(1), FINAL)
second.send(answer(2))
self.kept = second
raise ValueError("Intentional Error")
""")
    worker = ready(stage, code)
    asked = [request(stage, 1) for _ in range(3)]
    batch = stage.send(worker, *asked)
    first, second, third = responses(stage, worker, *asked).values()
    assert errors(first) == [] and len(first) == 1
    for found, index in ((second, 1), (third, 0)):
        (error,) = errors(found)
        start = "Failed to process the request(s) for model 'stream_0_0', message: ValueError: Intentional Error"
        assert error.startswith(start)
        assert found[-1].index == index and found[-1].final
    done = stage.done(batch)
    assert (done.failed, done.open) == ((1, 2), ())


@pytest.mark.parametrize("returned", ["[answer(1)]", "[]", "[None]", "5"])
def test_execute_must_return_none(stage: Stage, returned: str) -> None:
    code = body(f"""
self.sender = requests[0].get_response_sender()
return {returned}
""")
    worker = ready(stage, code)
    asked = request(stage, 1)
    batch = stage.send(worker, asked)
    (error,) = errors(responses(stage, worker, asked)[asked.id])
    assert error == (
        "Failed to process the request(s) for model 'stream_0_0', message: Python model 'stream_0_0' is using the "
        "decoupled mode and the execute function must return None."
    )
    assert stage.done(batch).failed == (0,)


@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_sender_that_is_dropped(stage: Stage, when: str) -> None:
    code = body("""
for request in requests:
    sender = request.get_response_sender()
    sender.send(answer(1))
    def drop(sender):
        wait_for("drop")
    if values(request) == [1]:
        threading.Thread(target=drop, args=(sender,)).start()
""")
    worker = ready(stage, code)
    asked = request(stage, int(when == "later"))
    batch = stage.send(worker, asked)
    assert stage.done(batch).open == (0,)
    (stage.path / "models" / "stream" / "1" / "drop").touch()
    (error,) = errors(responses(stage, worker, asked)[asked.id])
    assert error == ("model 'stream' dropped its response sender without a final response; each request needs one")
    assert closed(stage, asked)[asked.id].failed
    (stage.path / "models" / "stream" / "1" / "drop").unlink()


def test_wrong_uses_of_a_sender(stage: Stage) -> None:
    code = body("""
for request in requests:
    sender = request.get_response_sender()
    texts = []
    def try_(*arguments):
        try:
            sender.send(*arguments)
        except pb_utils.TritonModelException as error:
            texts.append(str(error))
    try_(None, 0)
    try_(answer(1), 7)
    try_()
    sender.send(answer(1))
    sender.send(InferenceResponse([Tensor("OUT", np.array(texts, np.object_))]), FINAL)
    texts.clear()
    try_(answer(1))
    try_(None, FINAL)
    assert texts == ["Unable to send response. Response sender has been closed."] * 2, texts
    try:
        pb_utils.InferenceRequest(inputs=[], requested_output_names=[], model_name="x").get_response_sender()
        assert False
    except pb_utils.TritonModelException:
        pass
""")
    worker = ready(stage, code)
    asked = request(stage, 1)
    batch = stage.send(worker, asked)
    _, texts = responses(stage, worker, asked)[asked.id]
    assert [text.decode() for text in stage.requester.outputs(texts)["OUT"]] == [
        "Inference Response object must be provided when the response flags is set to zero.",
        "Unable to send response. Unsupported flag provided.",
        "Inference Response object must be provided when the response flags is set to zero.",
    ]
    assert stage.done(batch).failed == ()


def test_inputs_that_are_kept_are_copied_at_the_final_response(stage: Stage) -> None:
    code = (
        HEAD
        + """
    kept = []

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.later, args=(request, request.get_response_sender())).start()

    def later(self, request, sender):
        self.kept.append(request.inputs()[0])
        wait_for("go")
        sender.send(answer(*[int(tensor.as_numpy()[0, 0]) for tensor in self.kept[:-1]]), FINAL)
"""
    )
    worker = ready(stage, code)
    (stage.path / "models" / "stream" / "1" / "go").touch()
    for number in range(1, 4):
        asked = request(stage, number)
        stage.send(worker, asked)
        (response,) = responses(stage, worker, asked)[asked.id]
        assert numbers(stage, [response]) == ([[*range(1, number)]] if number > 1 else [[]])
        stage.broker.expect(Done)
        stage.requester.free(asked)  # and the next one overwrites it


# -------------------------------------------------------------------------------------------------- asynchronous


def test_coroutines_run_side_by_side(stage: Stage) -> None:
    code = (
        HEAD
        + """
    waiting = {}

    async def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            (number,) = values(request)
            if number in self.waiting:
                self.waiting.pop(number).set()
            else:
                self.waiting[-number] = asyncio.Event()
                await self.waiting[-number].wait()
            sender.send(answer(number), FINAL)
"""
    )
    worker = ready(stage, code)
    first, second = request(stage, 5), request(stage, -5)
    for each in (first, second):
        assert stage.done(stage.send(worker, each)).batch == stage.batches
    found = responses(stage, worker, first, second)
    assert numbers(stage, found[first.id]) == [[5]] and numbers(stage, found[second.id]) == [[-5]]


@pytest.mark.parametrize("end", ["raise ValueError('Intentional Error')", "return [None]"])
def test_a_coroutine_that_fails(stage: Stage, end: str) -> None:
    code = body(f"""
requests[0].get_response_sender().send(answer(1), FINAL)
await asyncio.sleep(0)
{end}
""").replace("def execute", "async def execute")
    worker = ready(stage, code)
    asked = [request(stage, 1) for _ in range(2)]
    batch = stage.send(worker, *asked)
    first, second = responses(stage, worker, *asked).values()
    assert errors(first) == []
    (error,) = errors(second)
    assert error.startswith("Failed to process the request(s) for model 'stream_0_0', message: ")
    assert ("Intentional Error" if "raise" in end else "must return None") in error
    assert 1 in (stage.done(batch).open or (1,))


# ------------------------------------------------------------------------------------------- senders, one response


def test_a_sender_of_a_model_that_is_not_decoupled(stage: Stage) -> None:
    code = body("""
responses = []
for request in requests:
    how = request.parameters()
    sender = None if "return" in how else request.get_response_sender()
    def later(sender, numbers):
        wait_for("go")
        sender.send(answer(*numbers))
        sender.send(flags=FINAL)
    if "now" in how:
        sender.send(answer(1))
        sender.send(flags=FINAL)
    elif "later" in how:
        threading.Thread(target=later, args=(sender, values(request))).start()
    responses.append(answer(2) if "return" in how else None)
return None if responses == [None] * len(responses) else responses
""")
    worker = stage.ready(stage.model("single", code))
    hows = ["now", "return", "later"]
    for some in (hows, ["later"], ["now"]):
        asked = [request(stage, 7, model="single", parameters={how: True}) for how in some]
        batch = stage.send(worker, *asked)
        done = stage.done(batch)
        assert done.open == tuple(position for position, how in enumerate(some) if how == "later")
        (stage.path / "models" / "single" / "1" / "go").touch()
        found = responses(stage, worker, *asked)
        for each, how in zip(asked, some, strict=True):
            assert numbers(stage, found[each.id]) == [[{"now": 1, "return": 2, "later": 7}[how]]]
            assert [(response.index, response.final) for response in found[each.id]] == [(0, True)]
        closed(stage, *[asked[position] for position in done.open])
        (stage.path / "models" / "single" / "1" / "go").unlink()


@pytest.mark.parametrize(
    ("code", "answered", "text"),
    [
        ("sender.send(answer(1)); sender.send(answer(2))", True, ""),
        ("sender.send(flags=FINAL)", False, "Non-decoupled model cannot send complete final before sending a response"),
        ("sender.send(answer(1), FINAL); responses = [answer(2)]", True, ""),
        ("sender = request = None; responses = None", False, "Expected a list in the execute return, found type"),
        ("sender = None; responses = [None]; requests[0]._sender = None", False, "found type 'NoneType'"),
    ],
)
def test_wrong_uses_of_a_single_sender(stage: Stage, code: str, answered: bool, text: str) -> None:
    taking = "requests[0].get_response_sender()" if "sender." in code else "None"
    worker = stage.ready(
        stage.model("single", body(f"responses = [None]\nsender = {taking}\n{code}\nreturn responses"))
    )
    asked = request(stage, 1, model="single")
    batch = stage.send(worker, asked)
    (response,) = responses(stage, worker, asked)[asked.id]
    if answered:
        assert numbers(stage, [response]) == [[1]]
    else:
        assert text in errors([response])[0]
    assert stage.done(batch).failed == (() if answered else (0,))


def test_a_loop_goes_on_between_batches(stage: Stage) -> None:
    code = (
        HEAD
        + """
    tasks = []

    async def execute(self, requests):
        for request in requests:
            self.tasks.append(asyncio.create_task(self.later(request.get_response_sender())))

    async def later(self, sender):
        await asyncio.sleep(0.001)
        sender.send(answer(1))
"""
    )
    worker = stage.ready(stage.model("single", code))
    for _ in range(3):
        asked = request(stage, 1, model="single")
        batch = stage.send(worker, asked)
        assert stage.done(batch).batch == batch
        assert numbers(stage, responses(stage, worker, asked)[asked.id]) == [[1]]


# ------------------------------------------------------------------------------------------------- rescheduling

AGAIN = """
responses = []
for request in requests:
    self.times = getattr(self, "times", 0) + 1
    if self.times % 3:
        request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        responses.append(None)
    else:
        responses.append(answer(self.times, *values(request)))
return responses
"""


def test_rescheduled_requests(stage: Stage) -> None:
    worker = stage.ready(stage.model("single", body(AGAIN), {"sequence_batching": {"iterative_sequence": True}}))
    asked = request(stage, 5, model="single")
    for _ in range(2):
        done = stage.done(stage.send(worker, asked))
        assert (done.again, done.open, done.failed) == ((0,), (), ())
    batch = stage.send(worker, asked)
    assert numbers(stage, responses(stage, worker, asked)[asked.id]) == [[3, 5]]
    assert stage.done(batch).again == ()


def test_rescheduled_requests_of_a_decoupled_model_count_their_responses_on(stage: Stage) -> None:
    code = body("""
for request in requests:
    self.left = getattr(self, "left", values(request)[0]) - 1
    if self.left:
        request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
    request.get_response_sender().send(answer(self.left), 0 if self.left else FINAL)
""")
    worker = ready(stage, code, sequence_batching={"iterative_sequence": True})
    asked = request(stage, 3)
    for again in ((0,), (0,), ()):
        assert stage.done(stage.send(worker, asked)).again == again
    assert numbers(stage, responses(stage, worker, asked)[asked.id]) == [[2], [1], [0]]


def test_rescheduling_needs_an_iterative_model(stage: Stage) -> None:
    worker = stage.ready(stage.model("single", body(AGAIN)))
    asked = request(stage, 5, model="single")
    batch = stage.send(worker, asked)
    assert errors(responses(stage, worker, asked)[asked.id]) == [
        "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to handle "
        "such a flag."
    ]
    assert stage.done(batch).failed == (0,)


# ---------------------------------------------------------------------------------------------- brokers and ends

#: waits before the final response
WAITING = (
    body("""
for request in requests:
    def later(sender, number):
        sender.send(answer(number))
        wait_for(str(number))
        sender.send(flags=FINAL)
    threading.Thread(target=later, args=(request.get_response_sender(), *values(request))).start()
""")
    + """
    def finalize(self):
        mark("finalized")
"""
)


def wait_for(stage: Stage, name: str) -> None:
    deadline = time.monotonic() + 10
    while not (stage.path / "models" / "stream" / "1" / name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def let(stage: Stage, number: int) -> None:
    (stage.path / "models" / "stream" / "1" / str(number)).touch()


def test_open_requests_over_a_brokers_restart(alone: Stage) -> None:
    stage = alone
    worker = ready(stage, WAITING)
    first, second, third = [request(stage, number) for number in (1, 2, 3)]
    done = stage.done(stage.send(worker, first, second, third))
    assert done.open == (0, 1, 2)
    stage.broker.close()
    let(stage, 1)
    while not (found := stage.requester.response(worker)).final:
        pass
    assert found.id == first.id
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    stage.broker.welcoming = False
    while not stage.broker.hellos:
        assert stage.broker.listen(10)
    listed = stage.broker.hellos[-1].running
    assert {(each.id, each.attempt, each.epoch, each.batch) for each in listed} == {
        (second.id, 1, 0, 0),
        (third.id, 1, 0, 0),
    }
    let(stage, 2)  # in doubt
    assert (found := stage.requester.response(worker)).id == second.id and found.final
    stage.broker.welcoming = True
    stage.broker.close()
    stage.broker = FakeBroker(stage.run_dir, epoch=9)
    stage.broker.expect(Ready)
    assert {each.id for each in stage.broker.hellos[-1].running} == {third.id}
    let(stage, 3)
    assert stage.broker.expect(Closed).id == third.id
    assert not [message for _, message in stage.broker.heard if isinstance(message, (Done, Closed))]


def test_done_comes_before_closed(alone: Stage) -> None:
    """Also if both happen while nobody can be told."""
    stage = alone
    code = body("""
mark("started")
wait_for("go")
for request in requests:
    def later(sender):
        while not sender._item.replies.open:
            time.sleep(0.001)
        sender.send(flags=FINAL)
    threading.Thread(target=later, args=(request.get_response_sender(),)).start()
""")
    worker = ready(stage, code)
    asked = request(stage, 1)
    batch = stage.send(worker, asked)
    wait_for(stage, "started")
    stage.broker.close()
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    stage.broker.welcoming = False
    while not stage.broker.hellos:
        assert stage.broker.listen(10)
    assert [(each.epoch, each.batch) for each in stage.broker.hellos[-1].running] == [(7, batch)]
    (stage.path / "models" / "stream" / "1" / "go").touch()
    assert len(responses(stage, worker, asked)[asked.id]) == 1
    stage.broker.to_control(worker, Welcome(1, 8))
    stage.broker.expect(Closed)
    told = [message for _, message in stage.broker.heard if isinstance(message, (Done, Closed))]
    assert [type(each) for each in told] == [Done]  # heard before


def test_sigterm_waits_for_open_requests(alone: Stage) -> None:
    stage = alone
    worker = ready(stage, WAITING)
    asked = request(stage, 1)
    assert stage.done(stage.send(worker, asked)).open == (0,)
    pid = next(hello.pid for hello in stage.broker.hellos if hello.worker == worker)
    os.kill(pid, signal.SIGTERM)
    another = request(stage, 1)
    stage.send(worker, another)  # it still answers
    stage.broker.expect(Done)
    assert not any(stage.requester.response(worker).final for _ in range(2))
    let(stage, 1)
    assert [stage.requester.response(worker).final for _ in range(2)] == [True, True]
    died = stage.broker.expect(Died)
    assert (died.worker, died.exit_code) == (worker, 0)
    closed(stage, asked, another)
    assert (stage.path / "models" / "stream" / "1" / "finalized").exists()


def test_drain_lets_finalize_wait_for_threads(stage: Stage) -> None:
    worker = ready(stage, REPEAT)
    asked = request(stage, 3)
    stage.send(worker, asked)
    assert len(responses(stage, worker, asked)[asked.id]) == 4
    stage.broker.expect(Closed)
    stage.broker.to_control(worker, Drain())
    assert stage.broker.expect(Died).exit_code == 0
    assert (stage.path / "models" / "stream" / "1" / "finalized").exists()


# -------------------------------------------------------------------------------------------- inputs that are lent

LARGE = np.arange(100_000, dtype=np.int32)[None]


@pytest.mark.parametrize("decoupled", [False, True])
def test_inputs_that_somebody_still_reads(stage: Stage, decoupled: bool) -> None:
    """As a request that the model has sent on would."""
    code = body(f"""
for request in requests:
    def read(hold):
        wait_for("read")
    lent = request.inputs()[0]._lent
    assert (lent.segment.number, lent.block.nbytes) == (lent.block.segment, 400_000)
    threading.Thread(target=read, args=(lent.hold,)).start()
    del lent
if not {decoupled}:
    return [answer(1)]
requests[0].get_response_sender().send(answer(1), FINAL)
""")
    worker = stage.ready(stage.model("stream", code, DECOUPLED if decoupled else None))
    for _ in range(2):
        asked = stage.requester.request("stream", stage.requester.put("IN", LARGE))
        batch = stage.send(worker, asked)
        (response,) = responses(stage, worker, asked)[asked.id]
        assert response.inputs_held and response.final
        assert stage.done(batch).open == (0,)
        (stage.path / "models" / "stream" / "1" / "read").touch()
        assert not closed(stage, asked)[asked.id].failed
        (stage.path / "models" / "stream" / "1" / "read").unlink()


@pytest.mark.parametrize(
    "answered", ["request.inputs()[0]", "Tensor('OUT', request.inputs()[0].as_numpy())", "Tensor('OUT', np.zeros(1))"]
)
def test_inputs_that_nobody_reads_any_more(stage: Stage, answered: str) -> None:
    code = body(f"""
self.kept = [requests, requests[0].inputs()[0]]
return [InferenceResponse([{answered}]) for request in requests]
""")
    if "np.zeros" not in answered:
        code = code.replace("self.kept = [requests, requests[0].inputs()[0]]", "pass")
    output = {"name": "IN" if answered.startswith("request") else "OUT", "data_type": "TYPE_INT32", "dims": [-1]}
    worker = stage.ready(stage.model("lends", code, {"output": [output]}))
    asked = stage.requester.request("lends", stage.requester.put("IN", LARGE))
    batch = stage.send(worker, asked)
    (response,) = responses(stage, worker, asked)[asked.id]
    assert response.error is None and not response.inputs_held
    assert stage.done(batch).open == ()
