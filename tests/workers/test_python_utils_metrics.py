"""``pb_utils.MetricFamily`` in one process: what it refuses and in which words, who shares what, and what is freed."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from conch.messages import MetricFamily as Reported
from conch.messages import MetricSample
from workers.python_utils import metric_values, metrics
from workers.python_utils.failures import TritonModelException
from workers.python_utils.metric_values import Registry
from workers.python_utils.metrics import Metric, MetricFamily

COUNTER, GAUGE, HISTOGRAM = MetricFamily.COUNTER, MetricFamily.GAUGE, MetricFamily.HISTOGRAM
GONE = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should "
    "be deleted AFTER its corresponding 'Metric' objects have been deleted."
)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """One of the test's own, as in a fresh worker."""
    registry = Registry()
    registry.instance_name = "m_0_0"
    monkeypatch.setattr(metrics, "REGISTRY", registry)
    yield registry
    gc.collect()


def counter(name: str = "c", labels: dict[str, str] | None = None) -> tuple[MetricFamily, Metric]:
    family = MetricFamily(name, "text", COUNTER)
    return family, family.Metric(labels)


def core(doing: str, reason: str) -> str:
    return f"{doing}: Failed to process the request for model 'm_0_0', message: {reason}"


# Triton 2.51's own words where it refuses the same
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "name": (
        lambda: MetricFamily("has space", "b", COUNTER),
        core("Error when creating MetricFamily", "Invalid metric name"),
    ),
    "no name": (
        lambda: MetricFamily("", "b", COUNTER),
        core("Error when creating MetricFamily", "Invalid metric name"),
    ),
    "reserved name": (
        lambda: MetricFamily("__x", "b", COUNTER),
        core("Error when creating MetricFamily", "Invalid metric name"),
    ),
    "other kind": (
        lambda: (MetricFamily("a", "b", COUNTER), MetricFamily("a", "b", GAUGE)),
        core("Error when creating MetricFamily", "Family name already exists with different type"),
    ),
    "server's name": (
        lambda: MetricFamily("nv_inference_count", "b", COUNTER),
        core(
            "Error when creating MetricFamily",
            "'nv_inference_count' is a metric of the server itself; choose another name",
        ),
    ),
    "labels": (
        lambda: counter("c", ["a"]),  # type: ignore[arg-type]
        "Failed to create metric. Labels must be a dictionary.",
    ),
    "label name": (
        lambda: counter("c", {"bad label": "1"}),
        core("Error when creating Metric", "Invalid label name"),
    ),
    "label name with colon": (
        lambda: counter("c", {"x:y": "1"}),
        core("Error when creating Metric", "Invalid label name"),
    ),
    "label value": (
        lambda: counter("c", {"x": 1}),  # type: ignore[dict-item]
        core("Error when creating Metric", "attempt to access JSON non-string as string: the label 'x' must be a str"),
    ),
    "bound as label": (
        lambda: MetricFamily("h", "b", HISTOGRAM).Metric({"le": "1"}, [1]),
        core("Error when creating Metric", "Invalid label name"),
    ),
    "buckets of a counter": (
        lambda: MetricFamily("c", "b", COUNTER).Metric({}, [1]),
        "Failed to create metric. Unexpected buckets found.",
    ),
    "no buckets": (
        lambda: MetricFamily("h", "b", HISTOGRAM).Metric(),
        "Failed to create metric. Missing required buckets.",
    ),
    "buckets no list": (
        lambda: MetricFamily("h", "b", HISTOGRAM).Metric({}, (1, 2)),  # type: ignore[arg-type]
        "Failed to create metric. Buckets must be a list.",
    ),
    "buckets descend": (
        lambda: MetricFamily("h", "b", HISTOGRAM).Metric({}, [2, 1]),
        core("Error when creating Metric", "Bucket Boundaries must be strictly sorted"),
    ),
    "buckets repeat": (
        lambda: MetricFamily("h", "b", HISTOGRAM).Metric({}, [1, 1]),
        core("Error when creating Metric", "Bucket Boundaries must be strictly sorted"),
    ),
    "bucket no number": (
        lambda: MetricFamily("h", "b", HISTOGRAM).Metric({}, [nan]),
        core("Error when creating Metric", "Bucket Boundaries must be strictly sorted"),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(TritonModelException) as raised:
        make()
    assert str(raised.value) == message


MISUSED: dict[tuple[str, str, float | None], str] = {
    ("COUNTER", "increment", -1): "can only be incremented monotonically by non-negative values.",
    ("COUNTER", "set", 1): "does not support Set",
    ("COUNTER", "observe", 1): "does not support Observe",
    ("GAUGE", "observe", 1): "does not support Observe",
    ("HISTOGRAM", "increment", 1): "does not support Increment",
    ("HISTOGRAM", "set", 1): "does not support Set",
    ("HISTOGRAM", "value", None): "does not support Value",
}


@pytest.mark.parametrize("case", MISUSED)
def test_what_a_kind_cannot_do(case: tuple[str, str, float | None]) -> None:
    kind, operation, value = case
    family = MetricFamily("f", "text", getattr(MetricFamily, kind))
    metric = family.Metric(buckets=[1] if kind == "HISTOGRAM" else None)
    with pytest.raises(TritonModelException) as raised:
        getattr(metric, operation)(*(() if value is None else (value,)))
    doing = f"Failed to {'get' if operation == 'value' else operation} metric value"
    assert str(raised.value) == core(doing, f"TRITONSERVER_METRIC_KIND_{kind} {MISUSED[case]}")


@pytest.mark.parametrize(
    "arguments", [(1, "b", COUNTER), (None, "b", COUNTER), ("a", None, COUNTER), ("a", "b", "COUNTER"), ("a", "b", 0)]
)
def test_types_of_a_family(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="of a MetricFamily must be"):
        MetricFamily(*arguments)


@pytest.mark.parametrize("value", ["1", b"1", None, [1.0], {}])
def test_values_that_are_no_numbers(value: Any) -> None:
    gauge = MetricFamily("g", "text", GAUGE)
    metric = gauge.Metric()
    for operation in (metric.increment, metric.set, metric.observe):
        with pytest.raises(TypeError, match="expects a number"):
            operation(value)


def test_all_kinds_of_numbers() -> None:
    gauge = MetricFamily("g", "text", GAUGE)
    metric = gauge.Metric()
    value: Any
    for value in (1, True, 1.5, np.float32(1), np.int64(1), np.array(2)):
        metric.increment(value)
    assert metric.value() == 7.5
    metric.increment(-8)
    assert metric.value() == -0.5
    metric.set(nan)
    assert metric.value() != metric.value()


def test_a_histogram(registry: Registry) -> None:
    family = MetricFamily("h", "text", HISTOGRAM)
    metric = family.Metric({"x": "y"}, [0.1, 1, inf])
    for value in (0.1, 0.05, 5, 1e30, -1):
        metric.observe(value)
    (reported,) = registry.report()
    (sample,) = reported.samples
    assert (sample.labels, sample.buckets) == ({"x": "y"}, ((0.1, 3), (1.0, 3), (inf, 5)))
    assert sample.value == pytest.approx(1e30)


def test_the_same_labels_are_the_same_metric(registry: Registry) -> None:
    family = MetricFamily("c", "first", COUNTER)
    again = MetricFamily("c", "second", COUNTER)
    one, other = family.Metric({"a": "1", "b": "2"}), again.Metric({"b": "2", "a": "1"})
    none, empty = family.Metric(), again.Metric({})
    one.increment(7.5)
    none.increment(1)
    assert (other.value(), empty.value()) == (7.5, 1)
    samples = (MetricSample({"a": "1", "b": "2"}, 7.5), MetricSample({}, 1.0))
    assert registry.report() == (Reported("c", "first", "counter", samples),)


def test_a_family_keeps_its_metrics(registry: Registry) -> None:
    family, metric = counter()
    del metric
    assert len(registry.report()[0].samples) == 1
    del family
    assert registry.report() == ()


def test_metrics_do_not_pile_up(registry: Registry) -> None:
    family, metric = counter()
    for _ in range(1000):
        family.Metric().increment(1)
    assert metric.value() == 1000
    assert sys.getrefcount(metric) < 10
    assert len(family._life.taken) == 1


def test_what_two_families_have_is_freed_with_the_second(registry: Registry) -> None:
    family, metric = counter()
    again, _ = counter()
    metric.increment(3)
    del family
    assert registry.report()[0].samples == (MetricSample({}, 3.0),)
    with pytest.raises(TritonModelException):
        metric.increment(1)
    del again
    assert registry.report() == ()
    # the name stays what it was
    with pytest.raises(TritonModelException, match="different type"):
        MetricFamily("c", "text", GAUGE)
    third, _ = counter()
    assert registry.report()[0].samples == (MetricSample({}, 0.0),)
    del third


def test_a_metric_without_its_family() -> None:
    gauge = MetricFamily("g", "text", GAUGE)
    metric = gauge.Metric()
    del gauge
    for doing, operation in (("increment", metric.increment), ("set", metric.set), ("observe", metric.observe)):
        with pytest.raises(TritonModelException) as raised:
            operation(10)
        assert str(raised.value) == f"Failed to {doing} metric value: {GONE}"
    with pytest.raises(TritonModelException) as raised:
        metric.value()
    assert str(raised.value) == f"Failed to get metric value: {GONE}"


def test_somebody_is_woken_once_for_all_changes(registry: Registry) -> None:
    woken: list[bool] = []
    registry.on_change = lambda: woken.append(registry.changed)
    family, metric = counter()
    metric.increment(1)
    assert woken == [True]
    registry.report()
    assert not registry.changed
    metric.increment(1)
    metric.increment(1)
    assert woken == [True, True]
    registry.report()
    del family
    assert len(woken) == 3


def test_what_is_set_and_added_is_told_apart(registry: Registry) -> None:
    gauge = MetricFamily("g", "text", GAUGE)
    metric = gauge.Metric()
    metric.increment(2)
    (before,) = registry.report()[0].samples
    assert (before.value, before.added, before.set_ns) == (2, 2, 0)
    metric.set(10)
    metric.increment(-1)
    (after,) = registry.report()[0].samples
    assert (after.value, after.added) == (9, 1)
    assert after.set_ns > 0


def test_texts_that_cannot_be_sent_are_made_so(registry: Registry) -> None:
    family = MetricFamily("c", "\udcff", COUNTER)
    family.Metric({"x": "\udcff"})
    (reported,) = registry.report()
    assert (reported.description, reported.samples[0].labels) == ("\\udcff", {"x": "\\udcff"})


def test_how_many_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_values, "MOST_SERIES", 2)
    family, _ = counter("c", {"x": "1"})
    family.Metric({"x": "2"})
    family.Metric({"x": "1"})
    with pytest.raises(TritonModelException, match="a model can have 2 metrics at most"):
        family.Metric({"x": "3"})


def test_threads(registry: Registry) -> None:
    """Families come and go, metrics are counted and reported, all at once."""
    kept = MetricFamily("c", "text", COUNTER)
    metric = kept.Metric()
    begin = threading.Barrier(5)

    def count() -> None:
        begin.wait()
        for number in range(3000):
            metric.increment(1)
            if number % 50 == 0:
                passing = MetricFamily("h", "text", HISTOGRAM)
                passing.Metric({"n": str(number)}, [1.0]).observe(0.5)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    begin.wait()
    last = 0.0
    while any(thread.is_alive() for thread in threads):
        (sample,) = next(family for family in registry.report() if family.name == "c").samples
        assert sample.value >= last
        last = sample.value
    assert metric.value() == 12_000
    assert [family.name for family in registry.report()] == ["c"]
