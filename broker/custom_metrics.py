"""Metrics that models make, of all workers together. Pure: reports and deaths in, families out.

As in Triton, all families of one name are one, whichever models made them, and so are metrics with the same labels:

- counters and histograms are summed. What a worker that has ended had counted stays while this broker lives, so that a
  sum goes down neither when a worker dies nor when its model is unloaded; a model that is loaded again counts on.
- a gauge is what some worker set last, and what others have added since. It goes with the workers that have it.
- what a model has freed is gone once no worker has it any more.
"""

import logging
from collections.abc import Callable, Iterable

from conch.messages import Answer, AskMetrics, MetricFamily, MetricKind, MetricSample, MetricsReport

logger = logging.getLogger("conch.broker.custom_metrics")

#: how long a call waits for the workers' reports; one whose model keeps the interpreter may not answer
REPORT_WITHIN_S = 0.25

Labels = tuple[tuple[str, str], ...]
#: upper bounds, and how many are at most that
Buckets = tuple[tuple[float, int], ...]


class _Series:
    """One set of labels. ``living``: the last samples of workers that live. ``kept``: of those that do not, summed.

    Of a gauge, ``setter`` is who set it last, at ``set_ns``, and ``base`` what was in the others' ``added`` then.
    """

    __slots__ = ("base", "kept", "living", "set_ns", "setter")

    def __init__(self) -> None:
        self.living: dict[str, MetricSample] = {}
        self.kept: MetricSample | None = None
        self.setter = ""
        self.set_ns = 0
        self.base: dict[str, float] = {}

    def take(self, worker: str, sample: MetricSample) -> None:
        if self.kept is not None and _bounds(self.kept) != _bounds(sample):
            self.kept = None  # the model has other buckets now
        self.living[worker] = sample
        if sample.set_ns > self.set_ns:
            self.setter = worker
            self.set_ns = sample.set_ns
            self.base = {other: sample.added for other, sample in self.living.items() if other != worker}

    def end(self, worker: str, keep: bool) -> None:
        """The worker has it no more."""
        sample = self.living.pop(worker, None)
        if sample is not None and keep:
            self.kept = sample if self.kept is None else _sum(self.kept, sample)
        self.base.pop(worker, None)
        if worker == self.setter:
            setters = [(sample.set_ns, other) for other, sample in self.living.items() if sample.set_ns]
            self.set_ns, self.setter = max(setters, default=(0, ""))
            if not setters:
                self.base = {}

    def total(self) -> MetricSample | None:
        """Of a counter or histogram. While workers have different buckets, those of the latest count."""
        total = self.kept
        for sample in reversed(self.living.values()):
            if total is None:
                total = sample
            elif _bounds(total) == _bounds(sample):
                total = _sum(total, sample)
        return total

    def gauge(self) -> MetricSample | None:
        if not self.living:
            return None
        setter = self.living.get(self.setter)
        value = 0.0 if setter is None else setter.value
        for worker, sample in self.living.items():
            if worker != self.setter:
                value += sample.added - self.base.get(worker, 0.0)
        return MetricSample(next(iter(self.living.values())).labels, value)


class _Family:
    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        self.name = name
        self.description = description
        self.kind = kind
        self.series: dict[Labels, _Series] = {}
        #: workers that have it, and those whose family of this name is of another kind
        self.workers: set[str] = set()
        self.refused: set[str] = set()

    def take(self, worker: str, samples: Iterable[MetricSample]) -> None:
        self.workers.add(worker)
        found = {tuple(sorted(sample.labels.items())): sample for sample in samples}
        for labels, sample in found.items():
            self.series.setdefault(labels, _Series()).take(worker, sample)
        for labels in [labels for labels, series in self.series.items() if worker in series.living]:
            if labels not in found:
                self._end(labels, worker, freed=True)

    def end(self, worker: str, freed: bool) -> None:
        self.workers.discard(worker)
        self.refused.discard(worker)
        for labels in list(self.series):
            self._end(labels, worker, freed)

    def _end(self, labels: Labels, worker: str, freed: bool) -> None:
        series = self.series[labels]
        if worker not in series.living:
            return
        series.end(worker, keep=self.kind != "gauge")
        if not series.living and (freed or self.kind == "gauge"):
            del self.series[labels]

    def merged(self) -> MetricFamily:
        samples = [series.gauge() if self.kind == "gauge" else series.total() for series in self.series.values()]
        return MetricFamily(
            self.name, self.description, self.kind, tuple(sample for sample in samples if sample is not None)
        )


class CustomMetrics:
    def __init__(self) -> None:
        self._families: dict[str, _Family] = {}

    def take(self, worker: str, model: str, reported: Iterable[MetricFamily]) -> None:
        """``worker`` runs ``model`` and has these, and no others."""
        names = set()
        for family in reported:
            names.add(family.name)
            known = self._families.get(family.name)
            if known is None or (known.kind != family.kind and known.workers <= {worker}):
                known = _Family(family.name, family.description, family.kind)
                self._families[family.name] = known
            if known.kind == family.kind:
                known.take(worker, family.samples)
            elif worker not in known.refused:
                known.refused.add(worker)
                logger.error(
                    "model '%s' makes a %s '%s', which is a %s of another model: it is not shown",
                    *(model, family.kind, family.name, known.kind),
                )
        for name in [name for name, family in self._families.items() if worker in family.workers]:
            if name not in names:
                self._end(name, worker, freed=True)

    def gone(self, worker: str) -> None:
        for name in list(self._families):
            self._end(name, worker, freed=False)

    def families(self) -> list[MetricFamily]:
        """By kind and name, as Triton has them."""
        merged = (self._families[name].merged() for name in sorted(self._families))
        return sorted((family for family in merged if family.samples), key=lambda family: family.kind)

    def _end(self, name: str, worker: str, freed: bool) -> None:
        family = self._families[name]
        family.end(worker, freed)
        if not family.series and not family.workers:
            del self._families[name]


class MetricsCalls:
    """Calls for metrics wait for a report of every worker, but not long. Those that come meanwhile wait along.
    ``more`` gives the broker's own metrics at a time."""

    def __init__(
        self,
        metrics: CustomMetrics,
        more: Callable[[float], list[MetricFamily]],
        tell: Callable[[bytes, Answer], None],
    ) -> None:
        self._metrics = metrics
        self._more = more
        self._tell = tell
        self._callers: list[tuple[bytes, int]] = []
        self._awaited: set[str] = set()
        self._answer_by: float | None = None

    @property
    def next_wakeup(self) -> float | None:
        return self._answer_by

    def ask(self, peer: bytes, call: AskMetrics, workers: Iterable[str], now: float) -> list[str]:
        """The workers that are to be asked now, of those that there are."""
        self._callers.append((peer, call.call))
        if self._answer_by is not None:
            return []
        self._answer_by = now + REPORT_WITHIN_S
        self._awaited = set(workers)
        self._answer_if_complete(now)
        return sorted(self._awaited)

    def reported(self, report: MetricsReport, model: str, now: float) -> None:
        self._metrics.take(report.worker, model, report.families)
        self._heard(report.worker, now)

    def gone(self, worker: str, now: float) -> None:
        self._metrics.gone(worker)
        self._heard(worker, now)

    def tick(self, now: float) -> None:
        if self._answer_by is not None and now >= self._answer_by:
            self._awaited.clear()
            self._answer_if_complete(now)

    def _heard(self, worker: str, now: float) -> None:
        if self._answer_by is not None:
            self._awaited.discard(worker)
            self._answer_if_complete(now)

    def _answer_if_complete(self, now: float) -> None:
        if self._awaited:
            return
        self._answer_by = None
        callers, self._callers = self._callers, []
        families = self._metrics.families() + self._more(now)
        for peer, call in callers:
            self._tell(peer, Answer(call, None, families))


def _bounds(sample: MetricSample) -> list[float]:
    return [bound for bound, _ in sample.buckets]


def _sum(one: MetricSample, other: MetricSample) -> MetricSample:
    buckets = zip(one.buckets, other.buckets, strict=True)
    return MetricSample(
        one.labels,
        one.value + other.value,
        tuple((bound, count + more) for (bound, count), (_, more) in buckets),
    )
