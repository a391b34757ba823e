"""Names of the metrics that the server itself prints, which a model cannot give to a metric of its own."""

BUILT_IN = frozenset(
    {
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_count",
        "nv_inference_exec_count",
        "nv_inference_request_duration_us",
        "nv_inference_queue_duration_us",
        "nv_inference_compute_input_duration_us",
        "nv_inference_compute_infer_duration_us",
        "nv_inference_compute_output_duration_us",
        "nv_inference_pending_request_count",
        "nv_cpu_utilization",
        "nv_cpu_memory_total_bytes",
        "nv_cpu_memory_used_bytes",
    }
)
#: everything that begins with it
OURS = "conch_"
#: what a histogram's lines are called, after its name
HISTOGRAM_SUFFIXES = ("_count", "_sum", "_bucket")


def is_taken(name: str, histogram: bool) -> bool:
    """Whether a model's family of this name would be mixed up with one of the server's."""
    printed = [name, *(name + suffix for suffix in HISTOGRAM_SUFFIXES)] if histogram else [name]
    return name.startswith(OURS) or not BUILT_IN.isdisjoint(printed)
