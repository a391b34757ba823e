"""Which models keep a server from being ready: Triton's strict readiness."""

from conch.messages import ModelEntry

#: reason that the repository index shows for a model that was unloaded on purpose
UNLOADED = "unloaded"


def lets_server_be_ready(entry: ModelEntry) -> bool:
    """READY and healthy, unloaded on purpose, or never touched."""
    match entry.state:
        case "READY":
            return entry.healthy
        case "UNAVAILABLE":
            return entry.reason == UNLOADED
        case "UNKNOWN":
            return True
        case _:
            return False
