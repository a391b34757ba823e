"""Models that answer a request any number of times, while its batch runs or later."""

import numpy as np
import pytest

from conch.messages import Batch, Cancel, Closed, Dispatch, Done, Forget, Window
from conch.windows import NBYTES, RESPONSES
from tests.workers.decoupled import HEAD, REPEAT, body, closed, errors, numbers, ready, request, responses
from tests.workers.harness import FakeRequester, Stage, ints


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
