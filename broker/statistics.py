"""Triton's statistics of one model version (inventory 1.12 and 2.12)."""

from conch.messages import BatchStatistics, Done, Duration, ModelStatistics

#: why a request failed, as metrics name it
REJECTED, CANCELED, BACKEND, OTHER = "REJECTED", "CANCELED", "BACKEND", "OTHER"
_NS = 1_000_000_000
_MOST_NS = 2**63 - 1


def _sum(ns: int) -> int:
    """What a worker gone wrong has reported may add up to less than nothing, or to more than a message holds."""
    return min(max(ns, 0), _MOST_NS)


class _Phases:
    __slots__ = ("count", "input_ns", "infer_ns", "output_ns")

    def __init__(self) -> None:
        self.count = self.input_ns = self.infer_ns = self.output_ns = 0

    def durations(self) -> tuple[Duration, Duration, Duration]:
        return (
            Duration(self.count, _sum(self.input_ns)),
            Duration(self.count, _sum(self.infer_ns)),
            Duration(self.count, _sum(self.output_ns)),
        )


class StatisticsKeeper:
    """Counts since the version was loaded. Phases of a batch count in full for each of its requests, and once for the
    size of the batch. ``wall_offset_ns`` is what the wall clock shows more than the monotonic one."""

    __slots__ = (
        "_wall_offset_ns",
        "_last_end_ns",
        "_inference_count",
        "_execution_count",
        "_success_ns",
        "_queue_ns",
        "_fail_count",
        "_fail_ns",
        "_requests",
        "_batches",
        "_failures",
    )

    def __init__(self, wall_offset_ns: int) -> None:
        self._wall_offset_ns = wall_offset_ns
        self._last_end_ns = 0
        self._inference_count = 0
        self._execution_count = 0
        self._success_ns = 0
        self._queue_ns = 0
        self._fail_count = 0
        self._fail_ns = 0
        self._requests = _Phases()
        self._batches: dict[int, _Phases] = {}
        self._failures = {REJECTED: 0, CANCELED: 0, BACKEND: 0, OTHER: 0}

    @property
    def has_succeeded(self) -> bool:
        return self._requests.count > 0

    def fail(self, reason: str, enqueued: float, now: float) -> None:
        """A request that had reached the queue failed; times in seconds on the monotonic clock."""
        self._failures[reason] += 1
        self._fail_count += 1
        self._fail_ns += max(0, int((now - enqueued) * _NS))

    def executed(self, done: Done, requests: int, units: int, enqueued_sum: float, successful_units: int) -> None:
        """One execution of ``units`` in all, of which ``requests`` requests (``successful_units``) succeeded; these had
        been queued at times that add up to ``enqueued_sum`` seconds."""
        ended_ns = done.ended_ns
        input_ns = done.infer_start_ns - done.started_ns
        infer_ns = done.infer_end_ns - done.infer_start_ns
        output_ns = ended_ns - done.infer_end_ns
        self._last_end_ns = ended_ns
        self._execution_count += 1
        phases = self._batches.get(units)
        if phases is None:
            phases = self._batches[units] = _Phases()
        phases.count += 1
        phases.input_ns += input_ns
        phases.infer_ns += infer_ns
        phases.output_ns += output_ns
        if not requests:
            return
        phases = self._requests
        phases.count += requests
        phases.input_ns += input_ns * requests
        phases.infer_ns += infer_ns * requests
        phases.output_ns += output_ns * requests
        self._inference_count += successful_units
        queued_ns = done.started_ns * requests - int(enqueued_sum * _NS)
        if queued_ns > 0:
            self._queue_ns += queued_ns
            self._success_ns += queued_ns
        self._success_ns += (ended_ns - done.started_ns) * requests

    def report(self, name: str, version: int, pending: int) -> ModelStatistics:
        compute_input, compute_infer, compute_output = self._requests.durations()
        return ModelStatistics(
            name=name,
            version=version,
            last_inference_ms=_sum(self._last_end_ns + self._wall_offset_ns) // 1_000_000 if self._last_end_ns else 0,
            inference_count=self._inference_count,
            execution_count=self._execution_count,
            success=Duration(self._requests.count, _sum(self._success_ns)),
            fail=Duration(self._fail_count, self._fail_ns),
            queue=Duration(self._requests.count, _sum(self._queue_ns)),
            compute_input=compute_input,
            compute_infer=compute_infer,
            compute_output=compute_output,
            cache_hit=Duration(),
            cache_miss=Duration(),
            batches=tuple(BatchStatistics(size, *phases.durations()) for size, phases in sorted(self._batches.items())),
            pending_count=pending,
            failures=dict(self._failures),
        )
