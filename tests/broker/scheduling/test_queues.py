"""Forming batches: the inventory's Appendix B, and queue policies."""

from collections.abc import Iterable
from typing import Any

import pytest

from broker.scheduling.job import RUNNING, Job
from broker.scheduling.queues import MAX_QUEUED, ModelQueue
from conch.messages import Request
from conch.model_config import DynamicBatching, ModelConfig, QueuePolicy, StringParameter


def queue(max_batch_size: int = 8, **batching: Any) -> ModelQueue:
    return ModelQueue(
        ModelConfig(name="m", max_batch_size=max_batch_size, dynamic_batching=DynamicBatching(**batching))
    )


def job(id: int, size: int = 1, shape: str = "", at: float = 0.0, **more: Any) -> Job:
    return Job("r", Request(id, 1, "m", 1, size, shape, inputs=(), **more), id, 1, at)


def fill(target: ModelQueue, jobs: Iterable[Job]) -> None:
    for each in jobs:
        assert target.push(each)


def take(target: ModelQueue, now: float = 0.0, full_only: bool = False) -> list[int]:
    expired: list[Job] = []
    taken = target.take(now, full_only, expired)
    assert not expired
    for each in taken or []:
        each.state = RUNNING
    return [each.id for each in taken or []]


def test_the_default_scheduler_merges_nothing() -> None:
    plain = ModelQueue(ModelConfig(name="m", max_batch_size=8))
    fill(plain, (job(id) for id in (1, 2)))
    assert [take(plain), take(plain), take(plain)] == [[1], [2], []]


def test_without_a_delay_everything_that_fits_leaves_at_once() -> None:
    q = queue()
    fill(q, (job(id) for id in range(10)))
    assert take(q) == list(range(8))
    assert take(q) == [8, 9]


def test_requests_are_never_split_and_never_overtaken() -> None:
    q = queue()
    fill(q, [job(1, 3), job(2, 4), job(3, 2), job(4, 1)])
    assert take(q) == [1, 2]
    assert take(q) == [3, 4]


def test_another_shape_closes_the_batch() -> None:
    q = queue(max_queue_delay_microseconds=1_000_000)
    fill(q, [job(1, shape="a"), job(2, shape="b"), job(3, shape="a")])
    assert take(q) == [1]
    assert take(q) == [2]
    assert take(q) == [], "the last one may still grow"


def test_a_delay_counts_from_the_oldest_request() -> None:
    q = queue(max_queue_delay_microseconds=100_000)
    fill(q, [job(1, at=1.0), job(2, at=1.05)])
    assert take(q, 1.06) == []
    assert q.next_wakeup() == pytest.approx(1.1)
    assert take(q, 1.099) == []
    assert take(q, q.next_wakeup()) == [1, 2]


def test_a_full_batch_does_not_wait() -> None:
    q = queue(4, max_queue_delay_microseconds=100_000)
    for id in range(4):
        assert take(q) == []
        fill(q, [job(id)])
    assert take(q) == [0, 1, 2, 3]


def test_a_preferred_size_leaves_at_once_and_the_largest_wins() -> None:
    q = queue(preferred_batch_size=(2, 4), max_queue_delay_microseconds=100_000)
    fill(q, (job(id) for id in range(5)))
    assert take(q) == [0, 1, 2, 3]
    assert take(q) == []
    assert take(q, 0.1) == [4]


def test_a_preferred_size_is_used_exactly_without_a_delay_too() -> None:
    q = queue(preferred_batch_size=(4,))
    fill(q, (job(id) for id in range(6)))
    assert take(q) == [0, 1, 2, 3]
    assert take(q) == [4, 5]


def test_past_every_preferred_size_what_was_pending_leaves() -> None:
    q = queue(preferred_batch_size=(4,), max_queue_delay_microseconds=100_000)
    fill(q, [job(1, 3), job(2, 3)])
    assert take(q) == [1]
    assert take(q) == []


def test_overdue_requests_take_all_along() -> None:
    q = queue(preferred_batch_size=(2,), max_queue_delay_microseconds=100_000)
    fill(q, (job(id) for id in range(5)))
    assert take(q, 0.2) == list(range(5))


def test_only_a_full_batch_may_wait_in_a_workers_pipe() -> None:
    q = queue(4)
    fill(q, (job(id) for id in range(3)))
    assert q.closes_early
    assert take(q, full_only=True) == []
    fill(q, [job(3)])
    assert take(q, full_only=True) == [0, 1, 2, 3]
    for batching in ({"max_queue_delay_microseconds": 1}, {"preferred_batch_size": (2,)}, {"priority_levels": 2}):
        assert not queue(4, **batching).closes_early


def test_what_may_run_only_once_waits_in_the_broker() -> None:
    for text, waits_in_a_pipe in (("true", True), ("false", False)):
        config = ModelConfig(name="m", parameters={"IDEMPOTENT": StringParameter(text)})
        assert ModelQueue(config).closes_early is waits_in_a_pipe


def test_a_model_without_a_batch_dimension_runs_one_at_a_time() -> None:
    q = queue(0, max_queue_delay_microseconds=1_000_000)
    fill(q, (job(id) for id in (1, 2)))
    assert [take(q), take(q)] == [[1], [2]]


def test_priorities_are_strict_and_merge() -> None:
    q = queue(2, priority_levels=3, default_priority_level=2)
    fill(q, [job(1), job(2, priority=3), job(3, priority=1), job(4, priority=9)])
    assert take(q) == [3, 1]
    assert take(q) == [4, 2]


def test_the_size_of_a_queue_is_bounded_by_level() -> None:
    q = queue(priority_levels=2, default_priority_level=1, default_queue_policy=QueuePolicy(max_queue_size=2))
    fill(q, [job(1), job(2), job(3, priority=2)])
    assert not q.push(job(4))
    assert q.push(job(5, priority=2))
    take(q)
    assert q.push(job(6))


def test_every_queue_has_a_bound() -> None:
    q = queue()
    fill(q, (job(id) for id in range(MAX_QUEUED)))
    assert not q.push(job(0))


def test_a_time_out_rejects_even_while_no_instance_is_free() -> None:
    q = queue(default_queue_policy=QueuePolicy(default_timeout_microseconds=100_000))
    fill(q, [job(1, at=0.0), job(2, at=0.05)])
    assert q.next_wakeup() == pytest.approx(0.1)
    assert q.expire(0.09) == []
    assert [each.id for each in q.expire(0.1)] == [1]
    assert take(q, 0.1) == [2]
    assert q.live == q.units == 0


@pytest.mark.parametrize(
    ("override", "timeout_us", "expected"), [(True, 50_000, 0.05), (True, 500_000, 0.1), (False, 50_000, 0.1)]
)
def test_a_request_may_only_shorten_an_allowed_time_out(override: bool, timeout_us: int, expected: float) -> None:
    q = queue(default_queue_policy=QueuePolicy(default_timeout_microseconds=100_000, allow_timeout_override=override))
    fill(q, [job(1, timeout_us=timeout_us)])
    assert q.next_wakeup() == pytest.approx(expected)


def test_without_a_default_there_is_no_time_out_to_override() -> None:
    q = queue(default_queue_policy=QueuePolicy(allow_timeout_override=True))
    fill(q, [job(1, timeout_us=1)])
    assert take(q, 100.0) == [1]


def test_delay_moves_a_late_request_behind_all_others() -> None:
    policy = QueuePolicy(timeout_action="DELAY", default_timeout_microseconds=100_000)
    q = queue(1, default_queue_policy=policy)
    fill(q, [job(1, at=0.0), job(2, at=1.0), job(3, at=1.0)])
    assert q.expire(1.0) == []
    assert [take(q, 1.0), take(q, 1.0), take(q, 1.0)] == [[2], [3], [1]]


def test_a_passed_deadline_is_noticed_when_it_is_reached() -> None:
    q = queue()
    fill(q, [job(1, deadline=1.0), job(2)])
    expired: list[Job] = []
    taken = q.take(1.0, False, expired)
    assert [each.id for each in taken or []] == [2]
    assert [each.id for each in expired] == [1]
    assert q.live == 0


def test_what_left_out_of_turn_takes_no_memory() -> None:
    q = queue(default_queue_policy=QueuePolicy(default_timeout_microseconds=3_600_000_000))
    for id in range(10_000):
        each = job(id)
        fill(q, [each])
        q.discard(each)
    assert q.live == 0 and take(q) == []
    assert len(q.levels[0].active) < 1000 and len(q.levels[0].expiry) < 1000


def test_what_could_not_be_sent_goes_back_to_its_place() -> None:
    q = queue(2, priority_levels=2, default_priority_level=1)
    fill(q, [job(1), job(2, priority=2), job(3, priority=2)])
    taken = q.take(0.0, False, [])
    assert taken is not None
    q.push_back(taken)
    assert (q.live, q.units) == (3, 3)
    assert take(q) == [1, 2]
