"""``pb_utils.MetricFamily``: metrics that a model makes, next to the server's own.

Their values live in the worker (``workers.python_utils.metric_values``). ``workers.metrics_reports`` takes them to the
broker, which adds up those of all workers.
"""

import itertools
import math
import re
import time
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, NoReturn

from workers.python_utils.failures import TritonModelException
from workers.python_utils.metric_values import REGISTRY, Labels, Life, MetricKind, Series, sendable
from workers.python_utils.texts import text

_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
_FAMILY_GONE = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should "
    "be deleted AFTER its corresponding 'Metric' objects have been deleted."
)


class Metric:
    """Made by ``MetricFamily.Metric``. Every method raises ``TritonModelException`` where its family's kind has no such
    operation, and when the family is gone; ``TypeError`` for what is no number."""

    __slots__ = ("__weakref__", "_kind", "_life", "_lock", "_series")

    def __init__(self, life: Life, series: Series) -> None:
        self._life = life
        self._series = series
        self._kind = life.named.kind
        self._lock = life.registry.lock

    def increment(self, value: float, /) -> None:
        """Of a counter or gauge."""
        if type(value) is not float:
            value = _number("increment", value)
        if not self._life.alive:
            self._fail("increment", _FAMILY_GONE)
        series = self._series
        if self._kind is MetricKind.COUNTER:
            if value < 0.0:
                self._refuse("increment", "can only be incremented monotonically by non-negative values.")
            with self._lock:
                series.value += value
        elif self._kind is MetricKind.GAUGE:
            with self._lock:
                series.value += value
                series.added += value
        else:
            self._refuse("increment", "does not support Increment")
        self._life.registry.change()

    def set(self, value: float, /) -> None:
        """Of a gauge."""
        if type(value) is not float:
            value = _number("set", value)
        if not self._life.alive:
            self._fail("set", _FAMILY_GONE)
        if self._kind is not MetricKind.GAUGE:
            self._refuse("set", "does not support Set")
        series = self._series
        with self._lock:
            series.value = value
            series.set_ns = time.monotonic_ns()
        self._life.registry.change()

    def observe(self, value: float, /) -> None:
        """Of a histogram."""
        if type(value) is not float:
            value = _number("observe", value)
        if not self._life.alive:
            self._fail("observe", _FAMILY_GONE)
        if self._kind is not MetricKind.HISTOGRAM:
            self._refuse("observe", "does not support Observe")
        series = self._series
        with self._lock:
            series.value += value
            series.counts[bisect_left(series.bounds, value)] += 1
        self._life.registry.change()

    def value(self) -> float:
        """Of a counter or gauge: what this worker has made of it. Other instances of the model are not in it."""
        if not self._life.alive:
            self._fail("get", _FAMILY_GONE)
        if self._kind is MetricKind.HISTOGRAM:
            self._refuse("get", "does not support Value")
        return self._series.value

    def _fail(self, operation: str, reason: str) -> NoReturn:
        raise TritonModelException(f"Failed to {operation} metric value: {reason}")

    def _refuse(self, operation: str, reason: str) -> NoReturn:
        reason = f"TRITONSERVER_METRIC_KIND_{self._kind.name} {reason}"
        raise self._life.registry.refusal(f"Failed to {operation} metric value", reason)


class MetricFamily:
    """All families of one name are one: they share metrics with the same labels, and the first one's description. A
    family keeps its metrics; when it is deleted they are, too, unless another one has the same."""

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE
    HISTOGRAM = MetricKind.HISTOGRAM

    __slots__ = ("__weakref__", "_life", "_metrics")

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        name = text(name, "the name of a MetricFamily")
        description = text(description, "the description of a MetricFamily")
        if not isinstance(kind, MetricKind):
            raise TypeError(
                "the kind of a MetricFamily must be MetricFamily.COUNTER, MetricFamily.GAUGE or "
                f"MetricFamily.HISTOGRAM, got {kind!r}"
            )
        self._life = REGISTRY.family(name, description, kind)
        self._metrics: dict[Labels, Metric] = {}

    def __del__(self) -> None:
        life: Life | None = getattr(self, "_life", None)
        if life is not None:
            life.end()

    def Metric(self, labels: dict[str, str] | None = None, buckets: list[float] | None = None) -> Metric:
        """``labels``: the metric's name within the family. ``buckets``: upper bounds, ascending; a histogram's only.
        Raises ``TritonModelException``."""
        life = self._life
        kind = life.named.kind
        if labels is not None and not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        if buckets is not None and not isinstance(buckets, list):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        if buckets is not None and kind is not MetricKind.HISTOGRAM:
            raise TritonModelException("Failed to create metric. Unexpected buckets found.")
        if buckets is None and kind is MetricKind.HISTOGRAM:
            raise TritonModelException("Failed to create metric. Missing required buckets.")
        checked = _checked_labels(life, labels or {})
        bounds = _checked_bounds(life, buckets or ())
        metric = self._metrics.get(checked)
        if metric is None:  # one for each set of labels, or a model that asks for it at each request would pile them up
            metric = self._metrics[checked] = Metric(life, life.registry.series(life, checked, bounds))
        return metric


def _checked_labels(life: Life, labels: dict[Any, Any]) -> Labels:
    refusal = life.registry.refusal
    doing = "Error when creating Metric"
    for name, value in labels.items():
        if not isinstance(value, str):
            raise refusal(doing, f"attempt to access JSON non-string as string: the label '{name}' must be a str")
        # of a histogram's lines, "le" is the bound
        reserved = name == "le" and life.named.kind is MetricKind.HISTOGRAM
        if not isinstance(name, str) or _LABEL_NAME.fullmatch(name) is None or reserved:
            raise refusal(doing, "Invalid label name")
    return tuple(sorted((name, sendable(value)) for name, value in labels.items()))


def _checked_bounds(life: Life, buckets: Iterable[Any]) -> list[float]:
    bounds = [_number("MetricFamily.Metric", bound) for bound in buckets]
    ascending = all(low < high for low, high in itertools.pairwise(bounds))
    if not ascending or any(map(math.isnan, bounds)):
        raise life.registry.refusal("Error when creating Metric", "Bucket Boundaries must be strictly sorted")
    if bounds and bounds[-1] == math.inf:
        del bounds[-1]  # that bucket is always there
    return bounds


def _number(function: str, value: Any) -> float:
    if isinstance(value, (str, bytes, bytearray)) or not (hasattr(value, "__float__") or hasattr(value, "__index__")):
        raise TypeError(f"{function}() expects a number, got {type(value)}")
    return float(value)
