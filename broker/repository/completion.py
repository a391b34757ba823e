"""Takes over what a model's backend found out about its configuration."""

from broker.repository import config_file
from broker.repository.normalise import normalise
from broker.repository.snapshot import Snapshot
from broker.repository.validate import check_supported, check_tensors
from conch.errors import Internal, InvalidArgument


def complete(snapshot: Snapshot, completed_json: str) -> str:
    """The final configuration, canonical JSON: the snapshot's with the batch size, tensors, scheduler and decoupling of
    ``completed_json``, which is what a backend may decide.

    Raises ``ConchError`` if the result is invalid; this is the reason why the model fails to load.
    """
    config = config_file.parse_json(snapshot.config_json)
    try:
        completed = config_file.parse_json(completed_json)
    except InvalidArgument as error:
        raise Internal(f"the backend completed the configuration of '{snapshot.name}' to: {error.message}") from error
    config.max_batch_size = completed.max_batch_size
    for field in ("input", "output"):
        config.ClearField(field)
        getattr(config, field).extend(getattr(completed, field))
    before, after = config.WhichOneof("scheduling_choice"), completed.WhichOneof("scheduling_choice")
    if before is None and after is not None:
        getattr(config, after).CopyFrom(getattr(completed, after))
    elif before != after:
        raise Internal(f"Cannot update scheduling choice from {before} to {after} when auto-completing.")
    if completed.HasField("model_transaction_policy"):
        config.model_transaction_policy.CopyFrom(completed.model_transaction_policy)
    normalise(config)
    finish(config)
    return config_file.to_json(config)


def finish(config: config_file.ModelConfigMessage) -> None:
    """The checks that need the whole configuration. Raises ``ConchError``."""
    if config.max_batch_size < 0:
        raise InvalidArgument(f"'max_batch_size' must be non-negative value for {config.name}")
    for size in config.dynamic_batching.preferred_batch_size if config.HasField("dynamic_batching") else ():
        if size > config.max_batch_size:
            raise InvalidArgument(f"dynamic batching preferred size must be <= max batch size for {config.name}")
    check_tensors(config)
    check_supported(config)


def with_instances_of(config_json: str, snapshot: Snapshot) -> str:
    """A completed configuration with the instance groups and version policy of a newer snapshot, canonical JSON."""
    config = config_file.parse_json(config_json)
    newer = config_file.parse_json(snapshot.config_json)
    config.ClearField("instance_group")
    config.instance_group.extend(newer.instance_group)
    config.version_policy.CopyFrom(newer.version_policy)
    return config_file.to_json(config)
