"""Single steps of the dispatcher; ``test_interleavings`` plays them in any order."""

from typing import Any

import pytest

from broker.instructions import ToControl, ToData, ToPeer
from broker.scheduling.dispatcher import UNREACHABLE_S, Dispatcher
from conch.messages import (
    Batch,
    Cancel,
    ClientRegion,
    Done,
    Drain,
    Fault,
    Forget,
    Lost,
    OutputTarget,
    Rejected,
    Request,
    Retired,
)
from conch.model_config import DynamicBatching, ModelConfig, QueuePolicy

EPOCH = 5
BATCHING = DynamicBatching()
DEAD = Fault("WorkerDied", "dead")


class Bench:
    """A dispatcher with one model and a requester ``r``."""

    def __init__(self, workers: int = 1, batching: DynamicBatching | None = None) -> None:
        self.now = 10.0
        self.dispatcher = Dispatcher(EPOCH)
        self.dispatcher.add_model("m", 1, ModelConfig(name="m", max_batch_size=4, dynamic_batching=batching))
        self.dispatcher.startup_finished(self.now)
        self.dispatcher.requester_hello("r", ())
        for number in range(workers):
            self.add_worker(f"w{number}")

    def add_worker(self, name: str) -> None:
        self.dispatcher.worker_expected(name)
        assert self.dispatcher.worker_hello(name, "m", 1, (), self.now)
        self.dispatcher.worker_ready(name, "m", 1)

    def submit(self, *ids: int, attempt: int = 1, **more: Any) -> list[Any]:
        for id in ids:
            self.dispatcher.submit("r", Request(id, attempt, "m", 1, 1, "", inputs=(), **more), self.now)
        return self.dispatch()

    def dispatch(self) -> list[Any]:
        return list(self.dispatcher.dispatch(self.now))

    def done(self, worker: str, batch: Batch, took_s: float = 0.0, **more: Any) -> list[Any]:
        end = int(self.now * 1e9)
        start = end - int(took_s * 1e9)
        self.dispatcher.done(worker, Done(EPOCH, batch.id, start, start, end, end, **more), self.now)
        return self.dispatch()


def batches(instructions: list[Any]) -> list[tuple[str, list[int]]]:
    return [
        (each.worker, [item.request.id for item in each.message.items])
        for each in instructions
        if isinstance(each, ToData)
    ]


def only_batch(instructions: list[Any]) -> Batch:
    [instruction] = instructions
    assert isinstance(instruction, ToData)
    return instruction.message


def test_instances_are_used_in_turn() -> None:
    bench = Bench(workers=3)
    for expected in ("w0", "w1", "w2", "w0"):
        [instruction] = bench.submit(1)
        assert instruction.worker == expected
        assert bench.done(expected, instruction.message, took_s=1.0) == []


def test_a_slow_model_gets_one_batch_at_a_time_and_a_fast_one_two() -> None:
    for took_s, credit in ((0.0005, 2), (0.002, 1)):
        bench = Bench()
        bench.done("w0", only_batch(bench.submit(0)), took_s)
        assert batches(bench.submit(1, 2, 3)) == [("w0", [id]) for id in (1, 2, 3)[:credit]]


def test_a_batch_that_may_still_grow_does_not_wait_in_a_pipe() -> None:
    bench = Bench(batching=BATCHING)
    bench.done("w0", only_batch(bench.submit(0)), 0.0001)
    assert batches(bench.submit(1)) == [("w0", [1])]
    assert bench.submit(2, 3, 4) == []
    assert batches(bench.submit(5)) == [("w0", [2, 3, 4, 5])]
    assert bench.submit(6, 7, 8, 9) == []


def test_a_retried_request_runs_first_and_alone() -> None:
    bench = Bench(batching=BATCHING)
    bench.done("w0", only_batch(bench.submit(0)), 0.0001)
    [first] = bench.submit(1)
    assert bench.submit(2, 3, 4, 5, attempt=1) != []  # a second batch in the pipe
    assert bench.submit(6, attempt=2) == []
    assert bench.submit(7, 8, 9, 10) == []
    second = [jobs for jobs in bench.dispatcher._workers["w0"].batches if jobs != first.message.id]
    assert bench.done("w0", first.message) == []
    bench.dispatcher.done("w0", Done(EPOCH, int(str(second[0])), 0, 0, 0, 0), bench.now)
    retried = bench.dispatch()
    assert batches(retried) == [("w0", [6])]
    assert batches(bench.done("w0", retried[0].message)) == [("w0", [7, 8, 9, 10])]


def test_a_death_names_what_was_held_and_whether_it_was_alone() -> None:
    bench = Bench(batching=BATCHING)
    bench.submit(1)
    assert bench.dispatcher.worker_lost("w0", DEAD, bench.now) == 1
    assert bench.dispatch() == [ToPeer("r", Lost("w0", (1,), True, DEAD, (1,), 1))]
    bench.add_worker("w1")
    bench.submit(2, 3)
    assert bench.dispatcher.worker_lost("w1", DEAD, bench.now) == 1
    assert bench.dispatch() == [ToPeer("r", Lost("w1", (2, 3), False, DEAD, (1, 1), 2))]
    bench.add_worker("w2")
    bench.submit(3, attempt=2)
    assert bench.dispatcher.worker_lost("w2", DEAD, bench.now) == 0, "perhaps every request ends it"


def test_of_a_model_that_answers_others_a_retried_request_takes_its_first_death_back() -> None:
    bench = Bench()
    bench.done("w0", only_batch(bench.submit(1)))
    bench.submit(2)
    assert bench.dispatcher.worker_lost("w0", DEAD, bench.now) == 1
    bench.add_worker("w1")
    bench.submit(2, attempt=2)
    assert bench.dispatcher.worker_lost("w1", DEAD, bench.now) == -1


@pytest.mark.parametrize("memory_fault", [False, True])
def test_a_client_that_cuts_its_memory_is_to_blame(memory_fault: bool) -> None:
    """Which takes no death before it back."""
    bench = Bench()
    bench.done("w0", only_batch(bench.submit(1)))
    bench.submit(1)
    assert bench.dispatcher.worker_lost("w0", DEAD, bench.now, memory_fault) == 1
    bench.add_worker("w1")
    bench.submit(2, targets=(OutputTarget("OUT", ClientRegion(1, 0, 4)),))
    assert bench.dispatcher.worker_lost("w1", DEAD, bench.now, memory_fault) == (0 if memory_fault else 1)


def test_an_unreachable_worker_costs_nothing() -> None:
    bench = Bench(workers=2, batching=BATCHING)
    [instruction] = bench.submit(1, 2)
    bench.dispatcher.unreachable(instruction.worker, instruction.message.id, bench.now)
    assert batches(bench.dispatch()) == [("w1", [1, 2])]
    assert bench.dispatcher.next_wakeup == bench.now + UNREACHABLE_S
    assert bench.submit(3) == []
    bench.now += UNREACHABLE_S
    assert batches(bench.dispatch()) == [("w0", [3])]
    assert bench.dispatcher.next_wakeup is None


def test_cancels_are_answered_when_nobody_reads_any_more() -> None:
    bench = Bench()
    batch = only_batch(bench.submit(1, 2))
    for id in (1, 2, 77):
        bench.dispatcher.cancel("r", id, bench.now)
    assert bench.dispatch() == [
        ToControl("w0", Cancel("r", 1)),
        ToPeer("r", Retired((2,))),
        ToPeer("r", Retired((77,))),
    ]
    assert bench.done("w0", batch) == [ToPeer("r", Retired((1,)))]


def test_what_could_not_be_delivered_is_lost() -> None:
    bench = Bench(batching=BATCHING)
    [instruction] = bench.done("w0", only_batch(bench.submit(1, 2)), undelivered=(1,))
    assert isinstance(instruction.message, Lost)
    assert (instruction.message.worker, instruction.message.ids, instruction.message.alone) == ("w0", (2,), False)


def test_positions_that_a_batch_does_not_have_say_nothing() -> None:
    bench = Bench(batching=BATCHING)
    batch = only_batch(bench.submit(1, 2))
    assert bench.done("w0", batch, failed=(5, -1), undelivered=(2,), open=(9,), again=(7,)) == []
    [statistics] = bench.dispatcher.reports.statistics()
    assert (statistics.success.count, statistics.fail.count) == (2, 0)
    assert len(only_batch(bench.submit(3)).items) == 1


def test_a_full_queue_and_a_late_request_are_rejected() -> None:
    policy = QueuePolicy(max_queue_size=1, default_timeout_microseconds=100_000)
    bench = Bench(batching=DynamicBatching(default_queue_policy=policy))
    batch = only_batch(bench.submit(1))
    assert bench.submit(2, 3) == [ToPeer("r", Rejected(3, 1, Fault("Overloaded", "Exceeds maximum queue size")))]
    wakeup = bench.dispatcher.next_wakeup
    assert wakeup == pytest.approx(bench.now + 0.1)
    bench.now = wakeup or 0.0
    assert bench.dispatch() == [ToPeer("r", Rejected(2, 1, Fault("QueueTimeout", "Request timeout expired")))]
    assert bench.done("w0", batch) == []
    [statistics] = bench.dispatcher.reports.statistics()
    assert statistics.failures["REJECTED"] == statistics.fail.count == 2


def test_an_unload_lets_the_queue_run_dry_before_it_drains() -> None:
    bench = Bench(workers=2)
    first, second = (each.message for each in bench.submit(1, 2, 3))
    gone = Fault("NotReady", "gone")
    bench.dispatcher.drain_model("m", 1, gone)
    assert bench.submit(4) == [ToPeer("r", Rejected(4, 1, gone))]
    third = only_batch(bench.done("w0", first, 1.0))
    assert bench.done("w1", second, 1.0) == [ToControl("w1", Drain())]
    assert bench.done("w0", third, 1.0) == [ToControl("w0", Drain())]


def test_a_removed_model_rejects_its_queue() -> None:
    bench = Bench(workers=0)
    gone = Fault("NotReady", "gone")
    assert bench.submit(1) == []
    bench.dispatcher.remove_model("m", 1, gone, bench.now)
    assert bench.dispatch() == [ToPeer("r", Rejected(1, 1, gone))]
    assert bench.submit(2) == [ToPeer("r", Rejected(2, 1, gone))]


def test_a_model_that_there_never_was() -> None:
    bench = Bench(workers=0)
    bench.dispatcher.submit("r", Request(1, 1, "x", 1, 1, "", inputs=()), bench.now)
    [instruction] = bench.dispatch()
    assert instruction.message.fault.message == "Request for unknown model: 'x' version 1 is not at ready state"


def test_a_dead_requester_is_told_nothing() -> None:
    bench = Bench()
    batch = only_batch(bench.submit(1, 2))
    bench.dispatcher.requester_gone("r")
    assert bench.dispatch() == [ToControl("w0", Cancel("r", 1)), ToControl("w0", Forget("r"))]
    assert bench.done("w0", batch) == []
    assert bench.dispatcher.is_idle


def test_statistics_of_a_batch() -> None:
    bench = Bench(batching=BATCHING)
    batch = only_batch(bench.submit(1, 2, 3))
    start = int(bench.now * 1e9) + 1000
    bench.dispatcher.done(
        "w0", Done(EPOCH, batch.id, start, start + 10, start + 30, start + 60, failed=(1,)), bench.now
    )
    [found] = bench.dispatcher.reports.statistics("m", 1)
    assert (found.inference_count, found.execution_count) == (2, 1)
    assert (found.success.count, found.fail.count, found.failures["BACKEND"]) == (2, 1, 1)
    assert (found.compute_input.ns, found.compute_infer.ns, found.compute_output.ns) == (20, 40, 60)
    assert found.queue.count == 2 and found.queue.ns == pytest.approx(2000, abs=10)
    assert found.success.ns == found.queue.ns + 120
    [size] = found.batches
    assert (size.batch_size, size.compute_infer.count, size.compute_infer.ns) == (3, 1, 20)
    assert bench.dispatcher.reports.statistics("other") == []


def test_what_nobody_waits_for_does_not_go_back_into_the_queue() -> None:
    bench = Bench(batching=BATCHING)
    batch = only_batch(bench.submit(1, 2))
    bench.dispatcher.cancel("r", 1, bench.now)
    bench.dispatcher.unreachable("w0", batch.id, bench.now)
    assert bench.dispatch() == [ToControl("w0", Cancel("r", 1)), ToPeer("r", Retired((1,)))]
    bench.now += UNREACHABLE_S
    assert batches(bench.dispatch()) == [("w0", [2])]
