"""Metrics that models make."""

from typing import Literal

from conch.messages.base import Message, Record

MetricKind = Literal["counter", "gauge", "histogram"]


class MetricSample(Record, frozen=True):
    """One metric of a family. ``value``: of a counter or gauge; of a histogram the sum of its observations.
    ``buckets``, of a histogram: upper bound, and how many observations are at most that; the last bound is infinite.

    Of a gauge in a worker's report: ``set_ns`` is when the worker set it last, on the system-wide monotonic clock, 0
    for never; ``added`` is the sum of all that the worker has ever incremented it by.
    """

    labels: dict[str, str]
    value: float
    buckets: tuple[tuple[float, int], ...] = ()
    set_ns: int = 0
    added: float = 0.0


class MetricFamily(Record, frozen=True):
    name: str
    description: str
    kind: MetricKind
    samples: tuple[MetricSample, ...] = ()


class AskMetrics(Message, frozen=True):
    """Observer to broker. The result is a list of ``MetricFamily``: what all models have made, by name. The broker asks
    the workers first, so that what a model counted before the call is in the answer."""

    call: int


class ReportMetrics(Message, frozen=True):
    """Broker to worker (control): send a ``MetricsReport`` now, whether anything has changed or not."""
