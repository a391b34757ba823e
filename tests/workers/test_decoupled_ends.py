"""Open requests over restarts of brokers and ends of workers, and their inputs."""

import os
import signal
import time

import numpy as np
import pytest

from conch.messages import (
    Closed,
    Died,
    Done,
    Drain,
    Ready,
    Welcome,
)
from tests.workers.decoupled import DECOUPLED, HEAD, REPEAT, body, closed, numbers, ready, request, responses
from tests.workers.harness import FakeBroker, Stage


@pytest.fixture
def alone(own_stage: Stage) -> Stage:
    return own_stage


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
    while not (found := stage.requester.response(worker)).final:
        pass
    assert found.id == second.id
    stage.broker.welcoming = True
    stage.broker.close()
    stage.broker = FakeBroker(stage.run_dir, epoch=9)
    stage.broker.expect(Ready)
    assert {each.id for each in stage.broker.hellos[-1].running} == {third.id}
    let(stage, 3)
    assert stage.broker.expect(Closed).id == third.id
    assert not [message for _, message in stage.broker.heard if isinstance(message, (Done, Closed))]


def test_a_finalizer_may_send_whatever_it_interrupts(stage: Stage) -> None:
    """A garbage collection can run it while the same thread holds the worker's lock."""
    code = body("""
for request in requests:
    sender = request.get_response_sender()
    with sender._item.replies._desk.lock:
        sender.send(answer(1))
        sender.send(answer(2), FINAL)
""")
    worker = ready(stage, code)
    asked = request(stage, 1)
    stage.send(worker, asked)
    assert [numbers(stage, [response]) for response in responses(stage, worker, asked)[asked.id]] == [[[1]], [[2]]]
    closed(stage, asked)


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
    if stage.broker.expect(Done).open:  # unless its thread was quicker
        stage.broker.expect(Closed)
    stage.broker.to_control(worker, Drain())
    assert stage.broker.expect(Died).exit_code == 0
    assert (stage.path / "models" / "stream" / "1" / "finalized").exists()


# ----------------------------------------------------------------------------------------------------- their inputs


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
