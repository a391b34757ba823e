"""Metrics of all workers together: sums, what the dead have counted, the gauge that was set last."""

from math import inf

from broker.custom_metrics import REPORT_WITHIN_S, CustomMetrics, MetricsCalls
from conch.messages import Answer, AskMetrics, MetricFamily, MetricKind, MetricSample, MetricsReport


def family(kind: MetricKind, *samples: MetricSample, name: str = "f", description: str = "text") -> MetricFamily:
    return MetricFamily(name, description, kind, samples)


def counter(value: float, name: str = "f", **labels: str) -> MetricFamily:
    return family("counter", MetricSample(labels, value), name=name)


def gauge(value: float, set_ns: int = 0, added: float = 0.0) -> MetricFamily:
    return family("gauge", MetricSample({}, value, (), set_ns, added))


def histogram(total: float, *buckets: tuple[float, int]) -> MetricFamily:
    return family("histogram", MetricSample({}, total, buckets))


def values(metrics: CustomMetrics) -> dict[str, list[tuple[dict[str, str], float]]]:
    return {family.name: [(sample.labels, sample.value) for sample in family.samples] for family in metrics.families()}


def only(metrics: CustomMetrics) -> float:
    ((sample,),) = [family.samples for family in metrics.families()]
    return sample.value


def test_instances_and_models_sum() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [counter(1, x="1"), counter(5, "g")])
    metrics.take("b", "model", [counter(2, x="1")])
    metrics.take("c", "other", [counter(4, x="1")])
    assert values(metrics) == {"f": [({"x": "1"}, 7)], "g": [({}, 5)]}
    metrics.take("b", "model", [counter(3, x="1")])
    assert values(metrics)["f"] == [({"x": "1"}, 8)]


def test_the_order_of_labels_does_not_matter() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [counter(1, x="1", y="2")])
    metrics.take("b", "model", [counter(2, y="2", x="1")])
    assert only(metrics) == 3


def test_what_the_dead_have_counted_stays() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [counter(1)])
    metrics.take("b", "model", [counter(2)])
    metrics.gone("a")
    metrics.gone("never seen")
    assert only(metrics) == 3
    metrics.gone("b")
    assert only(metrics) == 3
    metrics.take("c", "model", [counter(0)])
    metrics.take("c", "model", [counter(4)])
    assert only(metrics) == 7


def test_histograms_sum() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [histogram(1.5, (1, 1), (inf, 2))])
    metrics.take("b", "model", [histogram(0.5, (1, 1), (inf, 1))])
    metrics.gone("a")
    assert metrics.families() == [histogram(2.0, (1, 2), (inf, 3))]


def test_other_buckets_begin_anew() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [histogram(1.5, (1, 1), (inf, 2))])
    metrics.take("b", "model", [histogram(3.0, (5, 1), (inf, 1))])
    assert metrics.families() == [histogram(3.0, (5, 1), (inf, 1))]
    metrics.gone("a")
    metrics.take("b", "model", [histogram(4.0, (5, 2), (inf, 2))])
    assert metrics.families() == [histogram(4.0, (5, 2), (inf, 2))]


def test_what_is_freed_is_gone_once_nobody_has_it() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [counter(1)])
    metrics.take("b", "model", [counter(2)])
    metrics.take("a", "model", [])
    assert only(metrics) == 3
    metrics.take("b", "model", [])
    assert metrics.families() == []
    metrics.take("b", "model", [counter(0)])
    assert only(metrics) == 0


def test_one_of_two_metrics_is_freed() -> None:
    metrics = CustomMetrics()
    both = family("counter", MetricSample({"x": "1"}, 1), MetricSample({"x": "2"}, 2))
    metrics.take("a", "model", [both])
    metrics.take("a", "model", [counter(2, x="2")])
    assert values(metrics) == {"f": [({"x": "2"}, 2)]}


def test_a_gauge_is_what_was_set_last() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [gauge(5, 100)])
    metrics.take("b", "model", [gauge(7, 90)])
    assert only(metrics) == 5
    metrics.take("b", "model", [gauge(8, 110)])
    assert only(metrics) == 8
    metrics.gone("b")
    assert only(metrics) == 5
    metrics.gone("a")
    assert metrics.families() == []


def test_gauges_that_are_only_added_to_sum() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [gauge(3, 0, 3)])
    metrics.take("b", "model", [gauge(-1, 0, -1)])
    assert only(metrics) == 2
    metrics.gone("a")
    assert only(metrics) == -1


def test_a_gauge_that_is_set_and_then_added_to_by_all() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [gauge(0, 100)])
    metrics.take("b", "model", [gauge(0, 101)])
    metrics.take("a", "model", [gauge(2, 100, 2)])
    metrics.take("b", "model", [gauge(3, 101, 3)])
    assert only(metrics) == 5
    metrics.take("a", "model", [gauge(10, 200, 2)])  # what b added was before
    assert only(metrics) == 10
    metrics.take("b", "model", [gauge(4, 101, 4)])
    assert only(metrics) == 11
    metrics.take("a", "model", [gauge(0, 300, 2)])  # set by the same worker again
    assert only(metrics) == 0


def test_the_first_description_and_kind_count() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [counter(1)])
    metrics.take("b", "other", [family("counter", MetricSample({}, 1), description="other text")])
    metrics.take("c", "other", [gauge(9, 1)])
    metrics.take("c", "other", [gauge(9, 1)])
    assert metrics.families() == [family("counter", MetricSample({}, 2))]
    metrics.gone("a")
    metrics.gone("b")
    metrics.take("c", "other", [gauge(9, 1)])
    assert metrics.families() == [family("gauge", MetricSample({}, 9))]


def test_families_come_by_kind_and_name() -> None:
    metrics = CustomMetrics()
    metrics.take("a", "model", [histogram(0, (inf, 0)), counter(1, "z"), counter(1, "b")])
    assert [(family.kind, family.name) for family in metrics.families()] == [
        ("counter", "b"),
        ("counter", "z"),
        ("histogram", "f"),
    ]


class Calls:
    def __init__(self) -> None:
        self.answers: list[tuple[bytes, Answer]] = []
        self.calls = MetricsCalls(
            CustomMetrics(), lambda now: [], lambda peer, answer: self.answers.append((peer, answer))
        )


def test_a_call_waits_for_every_worker() -> None:
    around = Calls()
    assert around.calls.ask(b"p", AskMetrics(7), ["a", "b"], 10.0) == ["a", "b"]
    assert around.calls.ask(b"q", AskMetrics(1), ["a", "b"], 10.1) == []
    around.calls.reported(MetricsReport("a", (counter(1),)), "model", 10.2)
    around.calls.reported(MetricsReport("a", (counter(2),)), "model", 10.2)
    assert not around.answers
    around.calls.reported(MetricsReport("b", (counter(2),)), "model", 10.2)
    assert around.answers == [(b"p", Answer(7, None, [counter(4)])), (b"q", Answer(1, None, [counter(4)]))]
    assert around.calls.next_wakeup is None


def test_a_call_does_not_wait_for_the_dead_and_the_silent() -> None:
    around = Calls()
    around.calls.ask(b"p", AskMetrics(1), ["a"], 10.0)
    around.calls.gone("a", 10.2)
    assert len(around.answers) == 1
    around.calls.ask(b"p", AskMetrics(2), ["b"], 10.0)
    assert around.calls.next_wakeup == 10.0 + REPORT_WITHIN_S
    around.calls.tick(10.1)
    assert len(around.answers) == 1
    around.calls.tick(10.0 + REPORT_WITHIN_S)
    assert len(around.answers) == 2
    around.calls.reported(MetricsReport("b", ()), "model", 10.2)
    assert len(around.answers) == 2


def test_a_call_when_there_are_no_workers() -> None:
    around = Calls()
    assert around.calls.ask(b"p", AskMetrics(1), [], 10.0) == []
    assert around.answers == [(b"p", Answer(1, None, []))]
