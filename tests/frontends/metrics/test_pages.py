"""What a page of metrics says and how: Triton's families, in Triton's words and number format."""

from math import inf, nan

import pytest
from prometheus_client.parser import text_string_to_metric_families

from conch.errors import InvalidArgument
from conch.messages import Duration, MetricFamily, MetricSample, ModelStatistics
from conch.metric_names import BUILT_IN, is_taken
from frontends.metrics.custom import custom_families
from frontends.metrics.exposition import exposition
from frontends.metrics.families import Family, Sample, machine_families, model_families
from frontends.metrics.machine import (
    CpuTime,
    Machine,
    MachineMeter,
    parse_cpu_time,
    parse_memory,
    utilization,
)
from frontends.metrics.options import MetricsOptions


def statistics(name: str = "simple", version: int = 1, failures: dict[str, int] | None = None) -> ModelStatistics:
    return ModelStatistics(
        name=name,
        version=version,
        last_inference_ms=0,
        inference_count=8,
        execution_count=2,
        success=Duration(5, 123_456_789_999),
        fail=Duration(0, 0),
        queue=Duration(5, 1_999),
        compute_input=Duration(5, 2_000),
        compute_infer=Duration(5, 3_000),
        compute_output=Duration(5, 4_000),
        cache_hit=Duration(),
        cache_miss=Duration(),
        batches=(),
        pending_count=3,
        failures=failures or {},
    )


def test_a_page_is_triton_s_letter_by_letter() -> None:
    page = exposition([*model_families([statistics(failures={"BACKEND": 1})], latencies=True)]).decode()
    assert page.splitlines() == [
        "# HELP nv_inference_request_success Number of successful inference requests, all batch sizes",
        "# TYPE nv_inference_request_success counter",
        'nv_inference_request_success{model="simple",version="1"} 5',
        "# HELP nv_inference_request_failure Number of failed inference requests, all batch sizes",
        "# TYPE nv_inference_request_failure counter",
        'nv_inference_request_failure{model="simple",reason="REJECTED",version="1"} 0',
        'nv_inference_request_failure{model="simple",reason="CANCELED",version="1"} 0',
        'nv_inference_request_failure{model="simple",reason="BACKEND",version="1"} 1',
        'nv_inference_request_failure{model="simple",reason="OTHER",version="1"} 0',
        "# HELP nv_inference_count Number of inferences performed (does not include cached requests)",
        "# TYPE nv_inference_count counter",
        'nv_inference_count{model="simple",version="1"} 8',
        "# HELP nv_inference_exec_count Number of model executions performed (does not include cached requests)",
        "# TYPE nv_inference_exec_count counter",
        'nv_inference_exec_count{model="simple",version="1"} 2',
        "# HELP nv_inference_request_duration_us Cumulative inference request duration in microseconds "
        "(includes cached requests)",
        "# TYPE nv_inference_request_duration_us counter",
        'nv_inference_request_duration_us{model="simple",version="1"} 123456789',
        "# HELP nv_inference_queue_duration_us Cumulative inference queuing duration in microseconds "
        "(includes cached requests)",
        "# TYPE nv_inference_queue_duration_us counter",
        'nv_inference_queue_duration_us{model="simple",version="1"} 1',
        "# HELP nv_inference_compute_input_duration_us Cumulative compute input duration in microseconds "
        "(does not include cached requests)",
        "# TYPE nv_inference_compute_input_duration_us counter",
        'nv_inference_compute_input_duration_us{model="simple",version="1"} 2',
        "# HELP nv_inference_compute_infer_duration_us Cumulative compute inference duration in microseconds "
        "(does not include cached requests)",
        "# TYPE nv_inference_compute_infer_duration_us counter",
        'nv_inference_compute_infer_duration_us{model="simple",version="1"} 3',
        "# HELP nv_inference_compute_output_duration_us Cumulative inference compute output duration in microseconds "
        "(does not include cached requests)",
        "# TYPE nv_inference_compute_output_duration_us counter",
        'nv_inference_compute_output_duration_us{model="simple",version="1"} 4',
        "# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution "
        "per-model.",
        "# TYPE nv_inference_pending_request_count gauge",
        'nv_inference_pending_request_count{model="simple",version="1"} 3',
    ]
    assert page.endswith("\n")


def test_metrics_of_the_machine() -> None:
    page = exposition(machine_families(Machine(1 / 3, 25276514304, 1010720768))).decode()
    assert "nv_cpu_utilization 0.3333333333333333\n" in page
    assert "# HELP nv_cpu_utilization CPU utilization rate [0.0 - 1.0]\n# TYPE nv_cpu_utilization gauge\n" in page
    assert "nv_cpu_memory_total_bytes 25276514304\n" in page
    assert "nv_cpu_memory_used_bytes 1010720768\n" in page


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.0, "0"), (1.0, "1"), (2**53, "9007199254740992"), (0.015, "0.015")]
)
def test_numbers(value: float, text: str) -> None:
    family = Family("f", "gauge", "help", (Sample((), value),))
    assert exposition([family]).decode().splitlines()[-1] == f"f {text}"


def test_prometheus_reads_it_back() -> None:
    models = [statistics("simple"), statistics('odd "name"\\ of\nlines', 7)]
    page = exposition(model_families(models, latencies=True)).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert len(families) == 10
    samples = families["nv_inference_count"].samples
    assert [(sample.labels["model"], sample.labels["version"], sample.value) for sample in samples] == [
        ("simple", "1", 8.0),
        ('odd "name"\\ of\nlines', "7", 8.0),
    ]


def test_without_models_there_are_no_families() -> None:
    assert exposition(model_families([], latencies=True)) == b""


def test_latencies_can_be_left_out() -> None:
    page = exposition(model_families([statistics()], latencies=False)).decode()
    assert "duration_us" not in page
    assert "nv_inference_count" in page and "nv_inference_pending_request_count" in page


def test_options() -> None:
    assert MetricsOptions.parse(()) == (True, ())
    parsed = MetricsOptions.parse(["counter_latencies=false", "summary_latencies=true"])
    assert parsed == (False, ("summary_latencies",))
    with pytest.raises(InvalidArgument, match="there is counter_latencies"):
        MetricsOptions.parse(["counter_latency=false"])
    with pytest.raises(InvalidArgument, match="must be true, false, 1 or 0"):
        MetricsOptions.parse(["counter_latencies=no"])


def test_what_proc_says() -> None:
    time = parse_cpu_time("cpu  10 20 30 400 50 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    assert time == CpuTime(busy=10 + 20 + 30 + 6 + 7 + 8, idle=450)
    memory = parse_memory(
        "MemTotal:       24684096 kB\nMemFree: 1 kB\nMemAvailable:   23000000 kB\nHugePages_Total: 0\n"
    )
    assert memory == (24684096 * 1024, 1684096 * 1024)


@pytest.mark.parametrize(
    ("now", "share"), [(CpuTime(15, 105), 0.5), (CpuTime(10, 100), 0.0), (CpuTime(20, 90), 1.0), (CpuTime(5, 110), 0.0)]
)
def test_utilization(now: CpuTime, share: float) -> None:
    assert utilization(CpuTime(10, 100), now) == share


def test_this_machine() -> None:
    machine = MachineMeter().look()
    assert 0 <= machine.utilization <= 1
    assert 0 < machine.memory_used_nbytes < machine.memory_total_nbytes


def lines_of(*families: MetricFamily) -> list[str]:
    return exposition(custom_families(families)).decode().splitlines()


def test_a_model_s_histogram_is_triton_s_letter_by_letter() -> None:
    buckets = ((0.1, 1), (1.0, 1), (2.5, 2), (1e20, 3), (inf, 3))
    samples = (MetricSample({"b": "1", "a": "2"}, 7.55, buckets), MetricSample({}, 0.0, ((inf, 0),)))
    assert lines_of(MetricFamily("h", "of a model", "histogram", samples)) == [
        "# HELP h of a model",
        "# TYPE h histogram",
        'h_count{a="2",b="1"} 3',
        'h_sum{a="2",b="1"} 7.55',
        'h_bucket{a="2",b="1",le="0.1"} 1',
        'h_bucket{a="2",b="1",le="1"} 1',
        'h_bucket{a="2",b="1",le="2.5"} 2',
        'h_bucket{a="2",b="1",le="1e+20"} 3',
        'h_bucket{a="2",b="1",le="+Inf"} 3',
        "h_count 0",
        "h_sum 0",
        'h_bucket{le="+Inf"} 0',
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (nan, "Nan"),
        (inf, "+Inf"),
        (-inf, "-Inf"),
        (0.0, "0"),
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        (1e15, "1000000000000000"),
        (1e17, "1e+17"),
        (123456789012345678.0, "1.234567890123457e+17"),
        (1e-7, "1e-07"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_are_triton_s(value: float, shown: str) -> None:
    assert lines_of(MetricFamily("g", "", "gauge", (MetricSample({}, value),))) == ["# TYPE g gauge", f"g {shown}"]


def test_what_models_write_cannot_break_the_page() -> None:
    made = MetricFamily("c", "two\nlines \\", "counter", (MetricSample({"x": 'we"ird\n\\é'}, 1.0),))
    assert lines_of(made) == ["# HELP c two\\nlines \\\\", "# TYPE c counter", 'c{x="we\\"ird\\n\\\\é"} 1']
    (family,) = text_string_to_metric_families("\n".join(lines_of(made)) + "\n")
    assert family.documentation == made.description
    assert [sample.labels for sample in family.samples] == [made.samples[0].labels]


def test_models_cannot_take_the_server_s_names() -> None:
    families = [*model_families([statistics()], latencies=True), *machine_families(Machine(0.5, 2, 1))]
    assert {family.name for family in families} == BUILT_IN
    assert is_taken("nv_inference", histogram=True) and not is_taken("nv_inference", histogram=False)
    assert is_taken("conch_copied_bytes_total", histogram=False)
    assert not is_taken("vllm:prompt_tokens_total", histogram=False)
