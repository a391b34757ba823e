"""The values of a model's metrics, and who has them.

::

    MetricFamily ──keeps──► Metric ──► Series (one per labels; shared by all metrics with these labels)
         │                    │
         └────► Life ◄────────┘    ends with the MetricFamily object, which takes its metrics along, as in Triton

A model may use its metrics from any thread. Families are freed by the garbage collector, in any thread and at any
point, so that is only noted (``Life.end``) and carried out by whoever next has the lock.
"""

import enum
import math
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import cast

from conch.messages import MetricFamily as ReportedFamily
from conch.messages import MetricKind as KindName
from conch.messages import MetricSample
from conch.metric_names import is_taken
from workers.python_utils.failures import TritonModelException

_FAMILY_NAME = re.compile(r"(?!__)[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
#: all of them go to the broker with every report
MOST_SERIES = 10_000


class MetricKind(enum.IntEnum):
    COUNTER = 0
    GAUGE = 1
    HISTOGRAM = 2


Labels = tuple[tuple[str, str], ...]


class Series:
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
        self.series: dict[Labels, Series] = {}


class Life:
    """Of one ``MetricFamily`` object, and what it has taken of ``named``."""

    __slots__ = ("alive", "named", "registry", "taken")

    def __init__(self, registry: "Registry", named: _Named) -> None:
        self.alive = True
        self.registry = registry
        self.named = named
        self.taken: list[Series] = []

    def end(self) -> None:
        self.alive = False
        if self.taken:
            self.registry.ended.append(self)
            self.registry.change()


class Registry:
    """All metrics of this process. ``changed``: something is not reported yet; ``on_change`` is called when it becomes
    true, on whichever thread that happens, possibly while that thread has ``lock``."""

    def __init__(self) -> None:
        # of the kind that its holder may take again: a garbage collection may run code of the model that counts
        self.lock = threading.RLock()
        self.changed = False
        self.on_change: Callable[[], None] = lambda: None
        self.instance_name = ""
        self.ended: deque[Life] = deque()
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

    def family(self, name: str, description: str, kind: MetricKind) -> Life:
        """Raises ``TritonModelException``."""
        doing = "Error when creating MetricFamily"
        if _FAMILY_NAME.fullmatch(name) is None:
            raise self.refusal(doing, "Invalid metric name")
        if is_taken(name, kind is MetricKind.HISTOGRAM):
            raise self.refusal(doing, f"'{name}' is a metric of the server itself; choose another name")
        with self.lock:
            named = self._named.get(name)
            if named is None:
                named = self._named[name] = _Named(name, sendable(description), kind)
        if named.kind is not kind:
            raise self.refusal(doing, "Family name already exists with different type")
        return Life(self, named)

    def series(self, life: Life, labels: Labels, bounds: list[float]) -> Series:
        """Raises ``TritonModelException``."""
        with self.lock:
            self._carry_out_ends()
            series = life.named.series.get(labels)
            if series is None:
                if self._series_count >= MOST_SERIES:
                    raise self.refusal("Error when creating Metric", f"a model can have {MOST_SERIES} metrics at most")
                series = life.named.series[labels] = Series(labels, bounds)
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


def sendable(text: str) -> str:
    """Without what cannot be written as UTF-8."""
    return text.encode(errors="backslashreplace").decode()
