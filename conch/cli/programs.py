"""The programs of ``supervisord.conf``, and how many processes of each a server has."""

from conch.settings import Settings


def process_count(program: str, settings: Settings) -> int:
    """0: it is not started."""
    match program:
        case "http":
            return settings.http_process_count if settings.allow_http else 0
        case "grpc":
            return settings.grpc_process_count if settings.allow_grpc else 0
        case "metrics":
            return int(settings.allow_metrics)
    return 1


def process_names(program: str, count: int) -> list[str]:
    """``http``, ``http-2``, ``http-3``: the names of its processes and of their log files."""
    return [program, *(f"{program}-{number}" for number in range(2, count + 1))][:count]


def all_process_names(settings: Settings) -> list[str]:
    return [
        name
        for program in ("launcher", "broker", "metrics", "grpc", "http")
        for name in process_names(program, process_count(program, settings))
    ]
