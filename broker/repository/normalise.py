"""Defaults that Triton writes into every configuration, so that nobody after this has to know them."""

from typing import Any

from broker.repository.config_file import ModelConfigMessage
from broker.repository.host import Host
from broker.repository.snapshot import InstancePlan
from conch.errors import Internal, InvalidArgument

DEFAULT_SEQUENCE_IDLE_US = 1_000_000

#: backends of which Triton runs two CPU instances unless told otherwise: one call does not fill the machine
_DEFAULT_CPU_COUNTS = {"onnxruntime": 2}

#: more than any machine runs; a larger count in a configuration is a slip that would fork until nothing is left
MAX_INSTANCES = 4096


def normalise(config: ModelConfigMessage) -> None:
    """Fills, in place, every default that does not depend on the machine. Idempotent."""
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    if config.HasField("dynamic_batching"):
        _fill_preferred_sizes(config.dynamic_batching, config.max_batch_size)
    if config.HasField("sequence_batching"):
        batching = config.sequence_batching
        if not batching.max_sequence_idle_microseconds:
            batching.max_sequence_idle_microseconds = DEFAULT_SEQUENCE_IDLE_US
        if batching.HasField("oldest"):
            _fill_preferred_sizes(batching.oldest, config.max_batch_size)
    if not config.HasField("ensemble_scheduling"):
        for memory in ("input_pinned_memory", "output_pinned_memory"):
            if not config.optimization.HasField(memory):
                getattr(config.optimization, memory).enable = True


def normalise_instance_groups(config: ModelConfigMessage, host: Host) -> None:
    """Fills names, kinds, counts and devices in place, and adds the one group that every model has. Idempotent."""
    if config.HasField("ensemble_scheduling"):
        return
    gpus = host.gpus_for(config.backend)
    if not config.instance_group:
        config.instance_group.add().name = config.name
    for index, group in enumerate(config.instance_group):
        if not group.name:
            group.name = f"{config.name}_{index}"
        if group.kind == group.KIND_AUTO:
            group.kind = group.KIND_GPU if gpus and set(group.gpus) <= set(gpus) else group.KIND_CPU
        if group.count < 1:
            group.count = _DEFAULT_CPU_COUNTS.get(config.backend, 1) if group.kind == group.KIND_CPU else 1
        if group.kind == group.KIND_GPU and not group.gpus:
            group.gpus.extend(gpus)


def check_instance_groups(config: ModelConfigMessage, host: Host) -> None:
    """Raises ``InvalidArgument`` with Triton's reason if a group cannot run on this machine."""
    if config.HasField("ensemble_scheduling"):
        return
    for group in config.instance_group:
        what = f"instance group {group.name} of model {config.name}"
        if group.kind == group.KIND_GPU:
            _check_gpus(group, what, host.gpus)
        elif group.kind == group.KIND_MODEL and group.gpus:
            raise InvalidArgument(f"{what} has kind KIND_MODEL but specifies one or more GPUs")
        elif group.kind == group.KIND_CPU and group.gpus:
            raise InvalidArgument(f"{what} has kind KIND_CPU but specifies one or more GPUs")
        elif group.kind not in (group.KIND_MODEL, group.KIND_CPU):
            raise Internal(f"{what} has unexpected kind KIND_AUTO")
        if group.profile and config.platform != "tensorrt_plan":
            raise InvalidArgument(
                f"{what} and platform {config.platform} specifies profile field which is only supported for TensorRT "
                "models"
            )
    total = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
    if total > MAX_INSTANCES:
        raise InvalidArgument(f"model {config.name} asks for {total} instances, {MAX_INSTANCES} are allowed")


def instance_plans(config: ModelConfigMessage) -> tuple[InstancePlan, ...]:
    """The instances that a normalised configuration asks for, named ``<group>_<index>``."""
    plans: list[InstancePlan] = []
    for group in config.instance_group:
        kind = group.Kind.Name(group.kind).removeprefix("KIND_")
        for index in range(group.count):
            devices = group.gpus if group.kind == group.KIND_GPU else (0,)
            plans.extend(InstancePlan(f"{group.name}_{index}", kind, device) for device in devices)
    return tuple(plans)


def _fill_preferred_sizes(batching: Any, max_batch_size: int) -> None:
    if not batching.preferred_batch_size and max_batch_size > 0:
        batching.preferred_batch_size.append(max_batch_size)


def _check_gpus(group: Any, what: str, gpus: tuple[int, ...]) -> None:
    if not group.gpus:
        missing = "specifies no GPUs" if gpus else "no GPUs are available"
        raise InvalidArgument(f"{what} has kind KIND_GPU but {missing}")
    for gpu in group.gpus:
        if gpu not in gpus:
            available = ", ".join(map(str, gpus)) or "none"
            raise InvalidArgument(
                f"{what} specifies invalid or unsupported gpu id {gpu}. Available GPUs are: {available}"
            )
