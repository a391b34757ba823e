"""Version folders and which of them a version policy chooses."""

import logging
import os
import re

from broker.repository.config_file import ModelConfigMessage

logger = logging.getLogger("conch.broker.repository")

#: folders of a model that are no versions and need no remark
_OTHER_FOLDERS = frozenset({"warmup", "initial_state", "configs", "__pycache__"})
_VERSION = re.compile(r"[1-9][0-9]{0,18}")
_MAX_VERSION = (1 << 63) - 1


def version_folders(model_dir: str) -> tuple[int, ...]:
    """Versions that exist as folders, ascending: names of digits without a leading zero; 0 is none."""
    found = []
    with os.scandir(model_dir) as entries:
        for entry in entries:
            if entry.name in _OTHER_FOLDERS or entry.name.startswith(".") or not entry.is_dir():
                continue
            if _VERSION.fullmatch(entry.name) and int(entry.name) <= _MAX_VERSION:
                found.append(int(entry.name))
            elif entry.name.isdigit() and entry.name.startswith("0"):
                logger.warning("ignore version directory '%s': its name contains leading zeros", entry.name)
            else:
                logger.warning("ignore version directory '%s': its name fails to convert to an integer", entry.name)
    return tuple(sorted(found))


def choose_versions(config: ModelConfigMessage, existing: tuple[int, ...]) -> tuple[int, ...]:
    """The versions to load, ascending, perhaps none. A specific version without a folder is left out with a message."""
    policy = config.version_policy
    if policy.HasField("specific"):
        wanted = sorted(set(policy.specific.versions))
        for version in wanted:
            if version not in existing:
                logger.error(
                    "version %s is specified for model '%s', but the version directory is not present",
                    version,
                    config.name,
                )
        return tuple(version for version in wanted if version in existing)
    if policy.HasField("all"):
        return existing
    count = policy.latest.num_versions
    return existing[-count:] if count else ()
