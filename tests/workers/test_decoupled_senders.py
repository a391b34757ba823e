"""Response senders in coroutines, in models with one response, and of requests that are rescheduled."""

import pytest

from tests.workers.decoupled import HEAD, body, closed, errors, numbers, ready, request, responses
from tests.workers.harness import Stage

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
