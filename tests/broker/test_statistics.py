"""Statistics of one model version, of what workers report."""

import msgspec
import pytest

from broker.statistics import StatisticsKeeper
from conch.messages import Done


@pytest.mark.parametrize("times", [(0, 2**64 - 1, 0, 2**64 - 1), (2**64 - 1, 0, 2**64 - 1, 0), (-(2**63), 0, 0, -1)])
def test_times_of_a_worker_gone_wrong_can_be_told(times: tuple[int, int, int, int]) -> None:
    """Whoever asks for the statistics of all models gets them in one message."""
    keeper = StatisticsKeeper(0)
    for _ in range(5):
        keeper.executed(Done(1, 1, *times), 3, 3, 0.0, 3)
    report = keeper.report("m", 1, 0)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=type(report)) == report
    assert (report.success.count, report.execution_count) == (15, 5)
    for duration in (report.success, report.queue, report.compute_input, report.compute_infer, report.compute_output):
        assert 0 <= duration.ns < 2**63
