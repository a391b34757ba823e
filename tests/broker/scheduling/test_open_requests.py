"""Requests that go on after their batch, and requests that are to be run again."""

from typing import Any

import pytest

from broker.instructions import ToControl, ToPeer
from broker.scheduling.batches import ALONE_S
from conch.messages import Cancel, Closed, Done, Drain, Fault, Lost, Rejected, Retired, Running
from conch.model_config import DynamicBatching, QueuePolicy
from tests.broker.scheduling.test_dispatcher import BATCHING, DEAD, EPOCH, Bench, batches, only_batch

GONE = Fault("NotReady", "gone")


def close(bench: Bench, id: int, attempt: int = 1, worker: str = "w0", **more: bool) -> list[Any]:
    bench.dispatcher.closed(worker, Closed("r", id, attempt, **more), bench.now)
    return bench.dispatch()


def opened(bench: Bench, *ids: int) -> None:
    for id in ids:
        batch = only_batch(bench.submit(id))
        assert bench.done("w0", batch, 1.0, open=(0,)) == []


def test_an_open_request_takes_no_credit_and_counts_as_running() -> None:
    bench = Bench()
    opened(bench, 1, 2)
    assert bench.dispatcher.reports.load_of("m", 1) == (0, 2)
    assert bench.dispatcher.reports.work_of("w0", bench.now)[:2] == (True, 2)
    assert bench.dispatcher.reports.inflight_of("r") == 2
    assert close(bench, 1) == close(bench, 2) == []
    assert bench.dispatcher.is_idle and bench.dispatcher.reports.inflight_of("r") == 0
    assert close(bench, 2) == []  # not known any more
    [found] = bench.dispatcher.reports.statistics()
    assert (found.inference_count, found.execution_count, found.success.count) == (2, 2, 2)


def test_a_cancel_reaches_an_open_request_and_retires_it_at_its_end() -> None:
    bench = Bench()
    opened(bench, 1)
    bench.dispatcher.cancel("r", 1, bench.now)
    assert bench.dispatch() == [ToControl("w0", Cancel("r", 1))]
    assert close(bench, 1) == [ToPeer("r", Retired((1,)))]


def test_a_death_loses_open_requests_and_what_is_alone_is_alone() -> None:
    bench = Bench()
    opened(bench, 1, 2)
    bench.submit(3)
    bench.dispatcher.worker_lost("w0", DEAD, bench.now)
    [instruction] = bench.dispatch()
    assert instruction == ToPeer("r", Lost("w0", (3, 1, 2), False, DEAD, (1, 1, 1), 1))
    bench.add_worker("w0")
    opened(bench, 4)
    bench.dispatcher.worker_lost("w0", DEAD, bench.now)
    assert bench.dispatch() == [ToPeer("r", Lost("w0", (4,), True, DEAD, (1,), 2))]
    assert bench.dispatcher.is_idle


def test_what_is_undelivered_or_failed_after_its_batch() -> None:
    bench = Bench()
    opened(bench, 1, 2, 3)
    [instruction] = close(bench, 1, undelivered=True)
    assert isinstance(instruction, ToPeer) and isinstance(instruction.message, Lost)
    assert (instruction.message.ids, instruction.message.alone) == ((1,), False)
    assert close(bench, 2, failed=True) == []
    [instruction] = close(bench, 3, undelivered=True)
    assert isinstance(instruction, ToPeer) and isinstance(instruction.message, Lost) and instruction.message.alone
    assert bench.dispatcher.reports.statistics()[0].failures["BACKEND"] == 1


def test_a_worker_is_drained_after_its_last_open_request() -> None:
    bench = Bench()
    opened(bench, 1)
    bench.dispatcher.drain_model("m", 1, GONE)
    assert bench.dispatch() == []
    assert close(bench, 1) == [ToControl("w0", Drain())]


def test_a_worker_is_drained_although_it_still_has_inputs_of_what_was_answered() -> None:
    """Their requesters have cancelled them."""
    bench = Bench()
    opened(bench, 1, 2)
    bench.dispatcher.drain_model("m", 1, GONE)
    assert bench.dispatch() == []
    bench.dispatcher.cancel("r", 1, 1.0)
    assert bench.dispatch() == [ToControl("w0", Cancel("r", 1))]
    bench.dispatcher.cancel("r", 2, 1.0)
    assert bench.dispatch() == [ToControl("w0", Cancel("r", 2)), ToControl("w0", Drain())]
    assert bench.dispatcher.is_idle
    assert close(bench, 1) == [ToPeer("r", Retired((1,)))]


def test_a_retried_request_waits_for_an_empty_worker_but_not_for_ever() -> None:
    bench = Bench(workers=2)
    opened(bench, 1)
    busy = only_batch(bench.submit(2))  # on w1
    assert bench.submit(3, attempt=2) == []
    wakeup = bench.dispatcher.next_wakeup
    assert wakeup == bench.now + ALONE_S
    [instruction] = bench.done("w1", busy, 1.0)
    assert (instruction.worker, instruction.message.items[0].request.id) == ("w1", 3)
    assert bench.dispatcher.next_wakeup is None
    assert bench.submit(4, attempt=2) == []
    bench.now += ALONE_S
    assert batches(bench.dispatch()) == [("w0", [4])]


def test_a_retried_request_that_stays_open_has_its_worker_to_itself_for_a_while() -> None:
    bench = Bench()
    for end in ("closed", "time"):
        batch = only_batch(bench.submit(1, attempt=2))
        assert bench.done("w0", batch, 1.0, open=(0,)) == []
        assert bench.submit(2) == []
        if end == "closed":
            following = only_batch(close(bench, 1, attempt=2))
        else:
            bench.now = bench.dispatcher.next_wakeup or 0.0
            following = only_batch(bench.dispatch())
        assert [item.request.id for item in following.items] == [2]
        assert bench.done("w0", following, 1.0) == []


def test_again_goes_to_the_end_of_the_queue() -> None:
    bench = Bench(batching=DynamicBatching(default_queue_policy=QueuePolicy(max_queue_size=1)))
    batch = only_batch(bench.submit(1))
    assert bench.submit(2) == []
    assert batches(bench.done("w0", batch, 1.0, again=(0,))) == [("w0", [2, 1])]
    [found] = bench.dispatcher.reports.statistics()
    assert (found.inference_count, found.execution_count, found.success.count, found.pending_count) == (0, 1, 0, 0)


def test_again_after_a_cancel_or_an_unload() -> None:
    bench = Bench(workers=2)
    first, second = (each.message for each in bench.submit(1, 2))
    bench.dispatcher.cancel("r", 1, bench.now)
    bench.dispatch()
    assert bench.done("w0", first, 1.0, again=(0,)) == [ToPeer("r", Retired((1,)))]
    bench.dispatcher.drain_model("m", 1, GONE)
    bench.dispatch()
    assert bench.done("w1", second, 1.0, again=(0,)) == [ToPeer("r", Rejected(2, 1, GONE)), ToControl("w1", Drain())]
    assert bench.dispatcher.is_idle and bench.dispatcher.reports.inflight_of("r") == 0


@pytest.mark.parametrize("batch", [0, 7])
def test_a_restarted_broker_adopts_open_requests(batch: int) -> None:
    """``batch`` 0: open at the HELLO. Otherwise its batch ends afterwards."""
    bench = Bench(workers=0)
    bench.dispatcher.worker_expected("w0")
    running = (Running("r", 1, 1, EPOCH - 1 if batch else 0, batch),)
    assert bench.dispatcher.worker_hello("w0", "m", 1, running, bench.now)
    bench.dispatcher.worker_ready("w0", "m", 1)
    if batch:
        assert bench.submit(2) == []
        bench.dispatcher.done("w0", Done(EPOCH - 1, batch, 1, 1, 1, 1_000_000_000, open=(0,)), bench.now)
        assert batches(bench.dispatch()) == [("w0", [2])]
    else:
        assert batches(bench.submit(2)) == [("w0", [2])]
    bench.dispatcher.cancel("r", 1, bench.now)
    assert bench.dispatch() == [ToControl("w0", Cancel("r", 1))]
    assert close(bench, 1) == [ToPeer("r", Retired((1,)))]


def test_an_open_request_of_a_dead_requester_is_cancelled() -> None:
    bench = Bench(batching=BATCHING)
    opened(bench, 1)
    bench.dispatcher.requester_gone("r")
    assert ToControl("w0", Cancel("r", 1)) in bench.dispatch()
    assert close(bench, 1) == []
    assert bench.dispatcher.is_idle
