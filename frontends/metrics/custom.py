"""Metrics that models have made, as Triton prints them: a histogram's count and sum come before its buckets."""

from collections.abc import Iterable

from conch.messages import MetricFamily, MetricSample
from frontends.metrics.exposition import number
from frontends.metrics.families import Family, Sample


def custom_families(families: Iterable[MetricFamily]) -> list[Family]:
    return [
        Family(
            family.name,
            family.kind,
            family.description,
            tuple(line for sample in family.samples for line in _lines(sample)),
        )
        for family in families
    ]


def _lines(sample: MetricSample) -> list[Sample]:
    labels = tuple(sorted(sample.labels.items()))
    if not sample.buckets:
        return [Sample(labels, sample.value)]
    return [
        Sample(labels, sample.buckets[-1][1], "_count"),
        Sample(labels, sample.value, "_sum"),
        *(Sample((*labels, ("le", number(bound))), count, "_bucket") for bound, count in sample.buckets),
    ]
