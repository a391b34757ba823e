"""Triton's metric families (inventory 1.12), out of the broker's statistics and what the machine says."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from conch.messages import ModelStatistics
from frontends.metrics.machine import Machine

#: all four exist from the start, so that a rate over them never begins with a gap
FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


class Sample(NamedTuple):
    """``labels`` in alphabetical order of their names, as Triton writes them. ``suffix`` comes after the family's
    name."""

    labels: tuple[tuple[str, str], ...]
    value: int | float
    suffix: str = ""


class Family(NamedTuple):
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: tuple[Sample, ...]


class _PerModel(NamedTuple):
    """A family with one sample for each model version."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    value: Callable[[ModelStatistics], int]


_COUNTS = (
    _PerModel(
        "nv_inference_count",
        "counter",
        "Number of inferences performed (does not include cached requests)",
        lambda model: model.inference_count,
    ),
    _PerModel(
        "nv_inference_exec_count",
        "counter",
        "Number of model executions performed (does not include cached requests)",
        lambda model: model.execution_count,
    ),
)
_LATENCIES = (
    _PerModel(
        "nv_inference_request_duration_us",
        "counter",
        "Cumulative inference request duration in microseconds (includes cached requests)",
        lambda model: model.success.ns // 1000,
    ),
    _PerModel(
        "nv_inference_queue_duration_us",
        "counter",
        "Cumulative inference queuing duration in microseconds (includes cached requests)",
        lambda model: model.queue.ns // 1000,
    ),
    _PerModel(
        "nv_inference_compute_input_duration_us",
        "counter",
        "Cumulative compute input duration in microseconds (does not include cached requests)",
        lambda model: model.compute_input.ns // 1000,
    ),
    _PerModel(
        "nv_inference_compute_infer_duration_us",
        "counter",
        "Cumulative compute inference duration in microseconds (does not include cached requests)",
        lambda model: model.compute_infer.ns // 1000,
    ),
    _PerModel(
        "nv_inference_compute_output_duration_us",
        "counter",
        "Cumulative inference compute output duration in microseconds (does not include cached requests)",
        lambda model: model.compute_output.ns // 1000,
    ),
)
_SUCCESS = _PerModel(
    "nv_inference_request_success",
    "counter",
    "Number of successful inference requests, all batch sizes",
    lambda model: model.success.count,
)
_PENDING = _PerModel(
    "nv_inference_pending_request_count",
    "gauge",
    "Instantaneous number of pending requests awaiting execution per-model.",
    lambda model: model.pending_count,
)


def model_families(models: Iterable[ModelStatistics], latencies: bool) -> list[Family]:
    """In Triton's order. ``latencies``: whether the cumulative durations are among them."""
    models = list(models)
    families = [_per_model(_SUCCESS, models), _failures(models)]
    for family in (*_COUNTS, *(_LATENCIES if latencies else ()), _PENDING):
        families.append(_per_model(family, models))
    return families


def _per_model(family: _PerModel, models: Iterable[ModelStatistics]) -> Family:
    samples = tuple(
        Sample((("model", model.name), ("version", str(model.version))), family.value(model)) for model in models
    )
    return Family(family.name, family.kind, family.help, samples)


def _failures(models: Iterable[ModelStatistics]) -> Family:
    samples = tuple(
        Sample(
            (("model", model.name), ("reason", reason), ("version", str(model.version))),
            model.failures.get(reason, 0),
        )
        for model in models
        for reason in FAILURE_REASONS
    )
    return Family(
        "nv_inference_request_failure",
        "counter",
        "Number of failed inference requests, all batch sizes",
        samples,
    )


def machine_families(machine: Machine) -> list[Family]:
    return [
        _gauge("nv_cpu_utilization", "CPU utilization rate [0.0 - 1.0]", machine.utilization),
        _gauge("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", machine.memory_total_nbytes),
        _gauge("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", machine.memory_used_nbytes),
    ]


def _gauge(name: str, text: str, value: int | float) -> Family:
    return Family(name, "gauge", text, (Sample((), value),))
