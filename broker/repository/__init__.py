"""Model repositories on disk: folders, ``config.pbtxt``, versions, labels, overrides, and what a model is made of.

Everything here blocks on the file system or is pure; nothing knows of sockets or processes. The shell runs
``Repository`` on a thread of its own, one call at a time, and hands the results (plain, frozen data) to the life cycle.
"""

from broker.repository.backend_settings import BackendSettings
from broker.repository.completion import complete, with_instances_of
from broker.repository.host import Host
from broker.repository.scan import Found, Repository
from broker.repository.snapshot import InstancePlan, Override, Snapshot

__all__ = [
    "BackendSettings",
    "Found",
    "Host",
    "InstancePlan",
    "Override",
    "Repository",
    "Snapshot",
    "complete",
    "with_instances_of",
]
