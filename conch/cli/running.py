"""Which servers of this user are running, and where."""

import os

import msgspec

from conch.errors import InvalidArgument
from conch.process import lock_holder
from conch.run_dir import RunDir
from conch.settings import Settings, variable_name

_TITLES = {"http": "HTTP", "grpc": "gRPC", "metrics": "metrics"}


class NoServer(Exception):
    """Which server is meant cannot be told, or it is not there; for people."""


class RunningServer(msgspec.Struct, frozen=True):
    """``description`` is what the holder of its lock wrote there: pid, addresses and ports. ``ports`` are those that it
    listens on."""

    run_dir: str
    http_port: int
    ports: tuple[int, ...]
    description: str


def describe(settings: Settings) -> str:
    """What the lock files of this server say about it."""
    places = [f"{_TITLES[endpoint]} {address}:{port}" for endpoint, address, port in settings.endpoints()]
    return ", ".join([f"pid {os.getpid()}", *places])


def server_in(run_dir: str) -> str | None:
    """The description of the server that runs in ``run_dir``, or None."""
    return lock_holder(RunDir(run_dir).supervisor_lock)


def running_servers() -> list[RunningServer]:
    """Found by the environment of this user's processes, so a run directory may be anywhere, and by the lock in there,
    so that a finished server is not found."""
    found: dict[str, RunningServer] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        environ = _environ(pid)
        run_dir = environ.get(variable_name("run_dir"), "")
        if not os.path.isabs(run_dir) or run_dir in found:
            continue
        description = server_in(run_dir)
        if description is not None:
            try:
                settings = Settings.from_environ(environ)
            except InvalidArgument:
                continue
            ports = tuple(port for _, _, port in settings.endpoints())
            found[run_dir] = RunningServer(run_dir, settings.http_port, ports, description)
    return sorted(found.values(), key=lambda server: server.http_port)


def find_server(run_dir: str = "", http_port: int = 0) -> RunningServer:
    """The one that is meant: by either, or the only one that is running. Raises ``NoServer``."""
    if run_dir:
        description = server_in(run_dir)
        if description is None:
            raise NoServer(f"no server is running in {run_dir}")
        return RunningServer(run_dir, http_port, (), description)
    servers = running_servers()
    if http_port:
        servers = [server for server in servers if server.http_port == http_port]
        if not servers:
            raise NoServer(f"no server of yours is running with --http-port={http_port}")
    if not servers:
        raise NoServer("no server of yours is running")
    if len(servers) > 1:
        found = "\n".join(f"  --run-dir={server.run_dir}  ({server.description})" for server in servers)
        raise NoServer(f"several servers are running; say which one:\n{found}")
    return servers[0]


def _environ(pid: str) -> dict[str, str]:
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return {}
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = file.read().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if pair.startswith("CONCH_") and "=" in pair)
