"""``pb_utils.MetricFamily``: metrics that a model makes, next to the server's own.

::

    MetricFamily ──keeps──► Metric ──► Series (one per labels; shared by all metrics with these labels)
         │                    │
         └────► _Life ◄───────┘   ends with the MetricFamily object, which takes its metrics along, as in Triton

Values live here, in the worker; ``workers.metrics_reports`` takes them to the broker, which adds up those of all
workers. A model may use its metrics from any thread. Families are freed by the garbage collector, in any thread and at
any point, so that is only noted (``_Life.end``) and carried out by whoever next has the lock.
"""

import enum
import itertools
import math
import re
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, cast

from conch.messages import MetricFamily as ReportedFamily
from conch.messages import MetricKind as KindName
from conch.messages import MetricSample
from conch.metric_names import is_taken
from workers.python_utils.failures import TritonModelException

_FAMILY_NAME = re.compile(r"(?!__)[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)
#: all of them go to the broker with every report
MOST_SERIES = 10_000
_FAMILY_GONE = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should "
    "be deleted AFTER its corresponding 'Metric' objects have been deleted."
)


class MetricKind(enum.IntEnum):
    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


Labels = tuple[tuple[str, str], ...]


class _Series:
    """The values of one set of labels. ``value`` and the others are as in ``MetricSample``; ``counts`` are not
    cumulative. ``users``: metrics that share it."""

    __slots__ = ("added", "bounds", "counts", "labels", "set_ns", "users", "value")

    def __init__(self, labels: Labels, bounds: list[float]) -> None:
        self.labels = labels
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.value = 0.0
        self.added = 0.0
        self.set_ns = 0
        self.users = 0

    def sample(self, kind: MetricKind) -> MetricSample:
        labels = dict(self.labels)
        if kind is MetricKind.GAUGE:
            return MetricSample(labels, self.value, (), self.set_ns, self.added)
        if kind is MetricKind.COUNTER:
            return MetricSample(labels, self.value)
        buckets = []
        total = 0
        for bound, count in zip([*self.bounds, math.inf], self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return MetricSample(labels, self.value, tuple(buckets))


class _Named:
    """What all ``MetricFamily`` objects of one name are. It stays when they are gone, so that a name never changes its
    kind or its description."""

    __slots__ = ("description", "kind", "name", "series")

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        self.name = name
        self.description = description
        self.kind = kind
        self.series: dict[Labels, _Series] = {}


class _Life:
    """Of one ``MetricFamily`` object, and what it has taken of ``named``."""

    __slots__ = ("alive", "named", "registry", "taken")

    def __init__(self, registry: "Registry", named: _Named) -> None:
        self.alive = True
        self.registry = registry
        self.named = named
        self.taken: list[_Series] = []

    def end(self) -> None:
        self.alive = False
        self.registry.ended.append(self)
        self.registry.change()


class Registry:
    """All metrics of this process. ``changed``: something is not reported yet; ``on_change`` is called when it becomes
    true, on whichever thread that happens, possibly while that thread has ``lock``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.changed = False
        self.on_change: Callable[[], None] = lambda: None
        self.instance_name = ""
        self.ended: deque[_Life] = deque()
        self._named: dict[str, _Named] = {}
        self._series_count = 0

    def change(self) -> None:
        if not self.changed:
            self.changed = True
            self.on_change()

    @property
    def has_series(self) -> bool:
        return self._series_count > 0

    def refusal(self, doing: str, reason: str) -> TritonModelException:
        return TritonModelException(
            f"{doing}: Failed to process the request for model '{self.instance_name}', message: {reason}"
        )

    def family(self, name: str, description: str, kind: MetricKind) -> _Life:
        """Raises ``TritonModelException``."""
        doing = "Error when creating MetricFamily"
        if _FAMILY_NAME.fullmatch(name) is None:
            raise self.refusal(doing, "Invalid metric name")
        if is_taken(name, kind is MetricKind.HISTOGRAM):
            raise self.refusal(doing, f"'{name}' is a metric of the server itself; choose another name")
        with self.lock:
            named = self._named.get(name)
            if named is None:
                named = self._named[name] = _Named(name, _sendable(description), kind)
        if named.kind is not kind:
            raise self.refusal(doing, "Family name already exists with different type")
        return _Life(self, named)

    def series(self, life: _Life, labels: Labels, bounds: list[float]) -> _Series:
        """Raises ``TritonModelException``."""
        with self.lock:
            self._carry_out_ends()
            series = life.named.series.get(labels)
            if series is None:
                if self._series_count >= MOST_SERIES:
                    raise self.refusal("Error when creating Metric", f"a model can have {MOST_SERIES} metrics at most")
                series = life.named.series[labels] = _Series(labels, bounds)
                self._series_count += 1
            series.users += 1
            life.taken.append(series)
        self.change()
        return series

    def report(self) -> tuple[ReportedFamily, ...]:
        """Everything, as it is now. ``changed`` is false afterwards, or something has changed meanwhile."""
        self.changed = False
        with self.lock:
            self._carry_out_ends()
            return tuple(
                [
                    ReportedFamily(
                        named.name,
                        named.description,
                        cast(KindName, named.kind.name.lower()),
                        tuple([series.sample(named.kind) for series in named.series.values()]),
                    )
                    for named in self._named.values()
                    if named.series
                ]
            )

    def _carry_out_ends(self) -> None:
        while self.ended:
            life = self.ended.popleft()
            for series in life.taken:
                series.users -= 1
                if not series.users:
                    del life.named.series[series.labels]
                    self._series_count -= 1


REGISTRY = Registry()


class Metric:
    """Made by ``MetricFamily.Metric``. Every method raises ``TritonModelException`` where its family's kind has no such
    operation, and when the family is gone; ``TypeError`` for what is no number."""

    __slots__ = ("__weakref__", "_kind", "_life", "_lock", "_series")

    def __init__(self, life: _Life, series: _Series) -> None:
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
        if not isinstance(name, str) or not isinstance(description, str) or not isinstance(kind, MetricKind):
            raise TypeError(
                "MetricFamily expects a str name, a str description, and a kind: MetricFamily.COUNTER, "
                f"MetricFamily.GAUGE or MetricFamily.HISTOGRAM; got {name!r}, {description!r}, {kind!r}"
            )
        self._life = REGISTRY.family(name, description, kind)
        self._metrics: list[Metric] = []

    def __del__(self) -> None:
        life: _Life | None = getattr(self, "_life", None)
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
        metric = Metric(life, life.registry.series(life, checked, _checked_bounds(life, buckets or ())))
        self._metrics.append(metric)
        return metric


def _checked_labels(life: _Life, labels: dict[Any, Any]) -> Labels:
    refusal = life.registry.refusal
    doing = "Error when creating Metric"
    for name, value in labels.items():
        if not isinstance(value, str):
            raise refusal(doing, f"attempt to access JSON non-string as string: the label '{name}' must be a str")
        # of a histogram's lines, "le" is the bound
        reserved = name == "le" and life.named.kind is MetricKind.HISTOGRAM
        if not isinstance(name, str) or _LABEL_NAME.fullmatch(name) is None or reserved:
            raise refusal(doing, "Invalid label name")
    return tuple(sorted((name, _sendable(value)) for name, value in labels.items()))


def _checked_bounds(life: _Life, buckets: Iterable[Any]) -> list[float]:
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


def _sendable(text: str) -> str:
    """Without what cannot be written as UTF-8."""
    return text.encode(errors="backslashreplace").decode()
