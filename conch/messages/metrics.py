"""Metrics that models make."""

from typing import Literal

from conch.messages.base import Message, Record

MetricKind = Literal["counter", "gauge", "histogram"]


class MetricSample(Record, frozen=True):
    """One metric of a family. ``value``: of a counter or gauge; of a histogram the sum of its observations.
    ``buckets``, of a histogram: upper bound, and how many observations are at most that; the last bound is infinite."""

    labels: dict[str, str]
    value: float
    buckets: tuple[tuple[float, int], ...] = ()


class MetricFamily(Record, frozen=True):
    name: str
    description: str
    kind: MetricKind
    samples: tuple[MetricSample, ...] = ()


class AskMetrics(Message, frozen=True):
    """Observer to broker. The result is a list of ``MetricFamily``: what all models have made, by name."""

    call: int
