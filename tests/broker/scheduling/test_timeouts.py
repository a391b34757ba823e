"""Batches that run longer than their model allows."""

from math import inf

import pytest

from broker.scheduling.timeouts import Overdue
from conch.messages import Done, Lost, Running
from conch.model_config import DynamicBatching, ModelConfig, StringParameter
from tests.broker.scheduling.test_dispatcher import DEAD, EPOCH, Bench, only_batch

REASON = "ran longer than its EXECUTION_TIMEOUT_S of 2 s and was killed"


def config(timeout_s: str = "2") -> ModelConfig:
    return ModelConfig(
        name="m",
        max_batch_size=4,
        dynamic_batching=DynamicBatching(),
        parameters={"EXECUTION_TIMEOUT_S": StringParameter(timeout_s)} if timeout_s else {},
    )


class TimedBench(Bench):
    def __init__(self, workers: int = 1, timeout_s: str = "2") -> None:
        super().__init__(workers)
        self.dispatcher.add_model("m", 1, config(timeout_s))
        self.overdue_at(self.now)

    def overdue_at(self, now: float) -> list[Overdue]:
        """What the shell hears that is there at ``now``."""
        self.now = now
        timeouts = self.dispatcher.timeouts
        return timeouts.overdue(now) if timeouts.look_at <= now else []


def test_a_batch_that_runs_too_long_is_named_once() -> None:
    bench = TimedBench()
    bench.submit(1)
    assert bench.dispatcher.timeouts.look_at == 12.0
    assert bench.overdue_at(11.9) == []
    assert bench.overdue_at(12.0) == [Overdue("w0", REASON)]
    assert bench.dispatcher.timeouts.look_at == inf
    assert bench.overdue_at(20.0) == []


def test_without_a_time_out_nothing_is_ever_looked_at() -> None:
    bench = TimedBench(timeout_s="")
    bench.submit(1)
    assert bench.dispatcher.timeouts.look_at == inf


def test_a_model_in_a_debugger_has_none() -> None:
    bench = Bench()
    bench.dispatcher.timeouts._exempt = {"m": 0}
    bench.dispatcher.add_model("m", 1, config())
    bench.submit(1)
    assert bench.dispatcher.timeouts.look_at == inf


def test_every_batch_has_its_own_time() -> None:
    bench = TimedBench()
    for id in range(5):
        batch = only_batch(bench.submit(id))
        assert bench.overdue_at(bench.now + 1.5) == []
        bench.done("w0", batch)
    assert bench.overdue_at(bench.now + 10) == []


def test_a_batch_in_the_pipe_begins_when_the_one_before_it_ends() -> None:
    bench = TimedBench()
    bench.done("w0", only_batch(bench.submit(1)), took_s=0.0001)
    first, second = only_batch(bench.submit(2)), only_batch(bench.submit(3, 4, 5, 6))
    assert bench.overdue_at(bench.now + 1.5) == []
    bench.done("w0", first, took_s=1.5)
    began_at = bench.now
    assert bench.overdue_at(began_at + 1.9) == []
    assert second.id == first.id + 1
    assert bench.overdue_at(began_at + 2.0) == [Overdue("w0", REASON)]


def test_what_a_request_does_after_its_batch_is_not_timed() -> None:
    bench = TimedBench()
    bench.done("w0", only_batch(bench.submit(1)), open=(0,))
    assert bench.overdue_at(bench.now + 100) == []


def test_a_condemned_worker_gets_nothing_more() -> None:
    """What came in between is not lost with it, and its own requests are lost as with any death."""
    bench = TimedBench()
    batch = only_batch(bench.submit(1))
    assert bench.overdue_at(12.0)
    bench.done("w0", batch)
    assert bench.submit(2) == []
    assert bench.dispatcher.worker_lost("w0", DEAD, bench.now) == 1
    bench.add_worker("w1")
    assert [item.request.id for item in only_batch(bench.dispatch()).items] == [2]


def test_the_second_time_convicts_and_does_not_count() -> None:
    bench = TimedBench(workers=2)
    bench.submit(1)
    assert bench.overdue_at(12.0) == [Overdue("w0", REASON)]
    assert bench.dispatcher.worker_lost("w0", DEAD, bench.now) == 1
    [lost] = [instruction.message for instruction in bench.dispatch()]
    assert isinstance(lost, Lost) and lost.alone
    bench.submit(1, attempt=2)
    assert bench.overdue_at(14.0) == [Overdue("w1", REASON)]
    assert bench.dispatcher.worker_lost("w1", DEAD, bench.now) == 0


def test_what_a_former_broker_gave_it_counts_from_its_adoption() -> None:
    bench = TimedBench(workers=0)
    bench.now = 50.0
    bench.dispatcher.worker_expected("w0")
    running = (Running("r", 1, 1, EPOCH - 1, 7), Running("r", 2, 1, EPOCH - 1, 8))
    assert bench.dispatcher.worker_hello("w0", "m", 1, running, bench.now)
    bench.dispatcher.worker_ready("w0", "m", 1)
    assert bench.overdue_at(51.0) == []
    bench.dispatcher.done("w0", Done(EPOCH - 1, 7, 0, 0, 0, 0), bench.now)
    assert bench.overdue_at(52.9) == []
    assert bench.overdue_at(53.0) == [Overdue("w0", REASON)]


@pytest.mark.parametrize("known_first", [True, False])
def test_the_time_out_may_come_after_the_batch(known_first: bool) -> None:
    """A broker hears of a worker before it has read the model's configuration; a reload may change it."""
    bench = TimedBench(workers=1 if known_first else 0, timeout_s="")
    if known_first:
        bench.submit(1)
    else:
        bench.dispatcher.worker_expected("w0")
        bench.dispatcher.worker_hello("w0", "m", 1, (Running("r", 1, 1, EPOCH - 1, 7),), bench.now)
    bench.dispatcher.add_model("m", 1, config())
    assert bench.overdue_at(11.0) == []
    assert bench.overdue_at(12.0) == [Overdue("w0", REASON)]


def test_a_batch_that_never_arrived_is_not_overdue() -> None:
    bench = TimedBench()
    batch = only_batch(bench.submit(1))
    bench.dispatcher.unreachable("w0", batch.id, bench.now)
    assert bench.overdue_at(12.0) == []


def test_how_long_batches_have_run() -> None:
    """Of the worker that has been at it longest; nothing of versions without one."""
    bench = TimedBench(workers=2, timeout_s="")
    reports = bench.dispatcher.reports
    assert reports.busy_s(bench.now) == {}
    batch = only_batch(bench.submit(1))
    bench.now += 1
    bench.submit(2)
    bench.now += 2
    assert reports.busy_s(bench.now) == {("m", 1): 3.0}
    bench.done("w0", batch, 1.0)
    assert reports.busy_s(bench.now) == {("m", 1): 2.0}
