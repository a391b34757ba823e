"""A worker between brokers and requesters that come and go."""

import os
import signal
import time

import numpy as np
import pytest

from conch.messages import (
    Batch,
    Cancel,
    Completed,
    Configured,
    Died,
    Dispatch,
    Done,
    Drain,
    Forget,
    Ready,
    Response,
    Unwelcome,
    Welcome,
)
from tests.workers.harness import FakeBroker, FakeRequester, Stage, ints
from tests.workers.test_python_model import ECHO, model
from workers.responses import SEGMENT_TIMEOUT_S

#: waits until a file with the number it was sent exists
WAITS = model("""
import time
name = os.path.join(os.path.dirname(__file__), str(x[0, 0]))
open(name + ".started", "w").close()
while not os.path.exists(name) and not request.is_cancelled():
    time.sleep(0.002)
response = InferenceResponse([Tensor("OUT", x * (-1 if request.is_cancelled() else 1))])
""")


@pytest.fixture
def stage(own_stage: Stage) -> Stage:
    return own_stage


def started(stage: Stage, number: int) -> None:
    path = stage.path / "models" / "waits" / "1" / f"{number}.started"
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def let(stage: Stage, number: int) -> None:
    (stage.path / "models" / "waits" / "1" / str(number)).touch()


def test_cancel_is_seen_by_the_model(stage: Stage) -> None:
    worker = stage.ready(stage.model("waits", WAITS))
    request = stage.requester.request("waits", stage.requester.put("IN", ints(7)))
    batch = stage.send(worker, request)
    started(stage, 7)
    stage.broker.to_control(worker, Cancel(stage.requester.id, request.id + 1))
    stage.broker.to_control(worker, Cancel(stage.requester.id, request.id))
    assert np.array_equal(stage.requester.outputs(stage.requester.response(worker))["OUT"], ints(-7))
    stage.done(batch)


def test_a_broker_that_restarts_while_a_batch_runs(stage: Stage) -> None:
    worker = stage.ready(stage.model("waits", WAITS))
    running, waiting, new = [
        stage.requester.request("waits", stage.requester.put("IN", ints(number))) for number in (1, 2, 3)
    ]
    first = stage.send(worker, running)
    started(stage, 1)
    stage.send(worker, waiting)
    stage.broker.close()
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    while not stage.broker.hellos:
        assert stage.broker.listen(10)
    (listed,) = stage.broker.hellos[-1].running
    assert (listed.id, listed.attempt, listed.epoch, listed.batch) == (running.id, 1, 7, first)
    assert stage.broker.hellos[-1].state == "ready"
    for number in (1, 2, 3):
        let(stage, number)
    done = stage.done(first)
    assert done.epoch == 7
    stage.broker.expect(Ready)
    third = stage.send(worker, new)
    assert stage.done(third).epoch == 8
    responses = [stage.requester.response(worker) for _ in range(2)]
    assert [response.id for response in responses] == [running.id, new.id]  # and not the one that only waited
    assert not (stage.path / "models" / "waits" / "1" / "2.started").exists()


def test_what_is_done_while_there_is_no_broker_is_not_reported_to_the_next(stage: Stage) -> None:
    worker = stage.ready(stage.model("waits", WAITS))
    request = stage.requester.request("waits", stage.requester.put("IN", ints(1)))
    done = stage.send(worker, request)
    started(stage, 1)
    stage.broker.close()
    let(stage, 1)
    assert stage.requester.response(worker).id == request.id
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    stage.broker.expect(Ready)
    hello = stage.broker.hellos[-1]
    if hello.running:  # the answer was quicker than what the worker does next
        assert stage.done(done).epoch == 7
    batch = stage.send(worker, stage.requester.request("waits", stage.requester.put("IN", ints(1))))
    stage.done(batch)
    assert not [message for _, message in stage.broker.heard if isinstance(message, Done)]


def test_hello_again_when_the_broker_asks_for_it(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    hellos = len(stage.broker.hellos)
    stage.broker.to_control(worker, Unwelcome(stage.broker.epoch))
    stage.broker.expect(Ready)
    assert len(stage.broker.hellos) == hellos + 1
    assert np.array_equal(stage.ask(worker, "echo", ints(1)), ints(1))


def test_a_long_batch_on_the_control_socket_waits_for_the_welcome(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    stage.broker.close()
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    stage.broker.welcoming = False
    while not stage.broker.hellos:
        assert stage.broker.listen(10)
    request = stage.requester.request("echo", stage.requester.put("IN", ints(1)))
    batch = Batch(8, 1, (Dispatch(stage.requester.id, request),))
    stage.broker.to_control(worker, batch)
    with pytest.raises(AssertionError):
        stage.requester.response(worker, timeout_s=0.2)  # it waits for the Welcome
    stage.broker.to_control(worker, Welcome(1, 8))
    assert stage.requester.response(worker).id == request.id
    assert stage.done(1).epoch == 8


def test_completed_is_told_to_the_next_broker(stage: Stage) -> None:
    worker = stage.spawn(stage.model("echo", ECHO), complete=True)
    stage.broker.expect(Completed)
    stage.broker.close()
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    completed = stage.broker.expect(Completed)
    assert stage.broker.hellos[-1].state == "completing"
    stage.broker.to_control(worker, Configured(completed.config, "new hash"))
    stage.broker.expect(Ready)
    stage.broker.to_control(worker, Unwelcome(stage.broker.epoch))
    stage.broker.expect(Ready)
    assert stage.broker.hellos[-1].config_hash == "new hash"


def test_a_requester_that_is_gone(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    other = FakeRequester(stage.run_dir)
    stage.run_dir.requester_socket(other.id).unlink()
    items = (
        Dispatch(stage.requester.id, stage.requester.request("echo", stage.requester.put("IN", ints(1)))),
        Dispatch(other.id, other.request("echo", other.put("IN", ints(2)))),
        Dispatch(stage.requester.id, stage.requester.request("echo", stage.requester.put("IN", ints(3)))),
    )
    stage.broker.to_data(worker, Batch(stage.broker.epoch, 1, items))
    stage.requester.accept()
    assert stage.done(1).undelivered == (1,)
    values = [int(stage.requester.outputs(stage.requester.response(worker))["OUT"][0, 0]) for _ in range(2)]
    assert values == [1, 3]
    other.close()


def test_a_requester_that_is_stopped_is_waited_for_once(stage: Stage) -> None:
    """Others' requests wait meanwhile. What it was not sent it asks for again when it goes on, and is then answered."""
    worker = stage.ready(stage.model("echo", ECHO))
    other = FakeRequester(stage.run_dir)

    def ask(number: int) -> tuple[int, ...]:
        dispatch = Dispatch(other.id, other.request("echo", other.put("IN", ints(number))))
        stage.broker.to_data(worker, Batch(stage.broker.epoch, number, (dispatch,)))
        return stage.done(number).undelivered

    began_s = time.monotonic()
    assert [ask(number) for number in range(1, 6)] == [(0,)] * 5
    assert SEGMENT_TIMEOUT_S <= time.monotonic() - began_s < 3 * SEGMENT_TIMEOUT_S
    other.accept()
    assert ask(6) == ()
    assert int(other.outputs(other.response(worker))["OUT"][0, 0]) == 6
    other.close()


def test_a_requester_that_goes_while_its_request_runs(stage: Stage) -> None:
    worker = stage.ready(stage.model("waits", WAITS))
    other = FakeRequester(stage.run_dir)
    stage.broker.to_data(worker, Batch(7, 1, (Dispatch(other.id, other.request("waits", other.put("IN", ints(1)))),)))
    other.accept()
    started(stage, 1)
    other.close()
    stage.run_dir.requester_socket(other.id).unlink()
    let(stage, 1)
    assert stage.done(1).undelivered == (0,)
    stage.broker.to_control(worker, Forget(other.id))
    assert np.array_equal(stage.ask(worker, "waits", ints(1)), ints(1))


def test_forget_frees_what_was_leased(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    big = np.zeros((1, 10_000), np.int32)
    other = FakeRequester(stage.run_dir)

    def one(number: int) -> Response:
        request = other.request("echo", other.put("IN", big))
        stage.broker.to_data(worker, Batch(7, number, (Dispatch(other.id, request),)))
        response = other.response(worker)
        stage.done(number)
        other.free(request)
        return response

    kept = [one(number) for number in range(1, 4)]
    places = {(output.reference.segment, output.reference.offset) for each in kept for output in each.outputs}  # type: ignore[union-attr]
    assert len(places) == 3
    other.close()
    stage.broker.to_control(worker, Forget(other.id))
    stage.broker.to_control(worker, Unwelcome(stage.broker.epoch))
    stage.broker.expect(Ready)  # it was forgotten before this
    stage.batches = 10
    found = set()
    for _ in range(3):
        response = stage.infer(worker, "echo", IN=big)
        found |= {(output.reference.segment, output.reference.offset) for output in response.outputs}  # type: ignore[union-attr]
    assert found == places


def test_blocks_that_are_given_back_are_used_again(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    places = set()
    for _ in range(50):
        response = stage.infer(worker, "echo", IN=ints(1, 2, 3))
        places.add(response.outputs[0].reference)
        stage.requester.outputs(response)
    assert len(places) <= 3


def test_many_and_long_errors_fit_into_messages(stage: Stage) -> None:
    code = model("""response = InferenceResponse(error=TritonError("\\u00e9" * int(x[0, 0])))""")
    worker = stage.ready(stage.model("long", code))
    lengths = [10, 30_000, 200_000, 30_000, 30_000, 30_000]
    requests = [stage.requester.request("long", stage.requester.put("IN", ints(length))) for length in lengths]
    batch = stage.send(worker, *requests)
    for request, length in zip(requests, lengths, strict=True):
        response = stage.requester.response(worker)
        assert response.id == request.id
        assert response.error is not None
        if length == 200_000:
            assert response.error.message.endswith("\u00e9 …")
        else:
            assert len(response.error.message) == length
    assert stage.done(batch).failed == tuple(range(6))


def test_a_segment_that_arrives_late(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    stage.ask(worker, "echo", ints(1))
    big = np.arange(1_000_000, dtype=np.int32)[None]  # needs another segment, on a connection that stands
    assert np.array_equal(stage.ask(worker, "echo", big), big)


def test_drain_while_completing(stage: Stage) -> None:
    worker = stage.spawn(stage.model("echo", ECHO), complete=True)
    stage.broker.expect(Completed)
    stage.broker.to_control(worker, Drain())
    assert stage.broker.expect(Died).exit_code == 0


def test_a_worker_without_broker_and_launcher_ends(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    pid = next(hello.pid for hello in stage.broker.hellos if hello.worker == worker)
    descriptor = os.pidfd_open(pid)
    try:
        os.kill(stage.launchers[0].pid, signal.SIGKILL)
        stage.launchers[0].wait()
        stage.broker.close()
        import select

        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert not poll.poll(8000), "it did not wait"
        assert poll.poll(8000), "it did not end"
    finally:
        os.close(descriptor)
        stage.broker = FakeBroker(stage.run_dir)
    assert "neither broker nor launcher for 10 s" in stage.model_log("echo")
