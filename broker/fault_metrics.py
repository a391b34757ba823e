"""The server's own metrics of what went wrong: deaths of workers, what ran again because of them, and which models are
gone because of them."""

from collections import Counter
from collections.abc import Collection, Mapping

from broker.lifecycle.deaths import DeathKey
from broker.lifecycle.models import is_wanted
from broker.scheduling.recovery import ModelKey
from conch.messages import MetricFamily, MetricSample, ModelEntry

#: these exist for every model from its load, so that a rate over them does not begin with a gap; others may come
COMMON_CAUSES = ("SIGABRT", "SIGBUS", "SIGKILL", "SIGSEGV", "execution_timeout", "exit", "memory_limit")


def fault_families(
    entries: Collection[ModelEntry],
    deaths: Counter[DeathKey],
    retries: Counter[ModelKey],
    busy_s: Mapping[ModelKey, float],
) -> list[MetricFamily]:
    """Counters stay for models that are not loaded any more. ``busy_s``: how long the present batches have run."""
    loaded = {(entry.name, entry.version): entry for entry in entries if entry.config}
    all_causes = {(name, version, cause): 0 for name, version in loaded for cause in COMMON_CAUSES} | deaths
    all_busy_s = {**dict.fromkeys(loaded, 0.0), **busy_s}
    all_retries = dict.fromkeys(loaded, 0) | retries
    return [
        MetricFamily(
            "conch_worker_deaths_total",
            "Worker processes that died or were killed without having been told to end, by model and cause",
            "counter",
            tuple(
                MetricSample({"cause": cause, "model": name, "version": str(version)}, count)
                for (name, version, cause), count in sorted(all_causes.items())
            ),
        ),
        MetricFamily(
            "conch_inference_retries_total",
            "Requests that were run again because the worker that ran them died",
            "counter",
            _per_version(all_retries),
        ),
        MetricFamily(
            "conch_model_available",
            "Whether a model version is served (1) or should be (0): it loads, could not be loaded, or keeps crashing; "
            "version 0: the model could not even be read",
            "gauge",
            tuple(
                MetricSample(
                    {"model": entry.name, "version": str(entry.version)}, int(entry.state == "READY" and entry.healthy)
                )
                for entry in entries
                if is_wanted(entry.state, entry.reason)
            ),
        ),
        MetricFamily(
            "conch_model_busy_seconds",
            "For how long the longest-running of the present batches has been running; 0 if none is",
            "gauge",
            _per_version(all_busy_s),
        ),
    ]


def _per_version(values: Mapping[ModelKey, float]) -> tuple[MetricSample, ...]:
    return tuple(
        MetricSample({"model": name, "version": str(version)}, value)
        for (name, version), value in sorted(values.items())
    )
