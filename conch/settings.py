"""The settings of one server, the same in every process of it.

They travel in the environment and nowhere else, because supervisord hands that on unchanged: ``CONCH_`` plus the name
of the ``conch serve`` flag in capitals with ``_`` for ``-``. A repeatable flag's values are separated by newlines.
"""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from conch.errors import InvalidArgument

if TYPE_CHECKING:
    from conch.forwarding import HeaderForwarding
    from conch.restrictions import Restrictions

PREFIX = "CONCH_"
_GIB = 1024**3
#: fields whose flag has another name, as Triton calls it
_FLAG_NAMES = {"server_id": "id"}

Protocol = Literal["http", "grpc"]
ControlMode = Literal["none", "poll", "explicit"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """See ``conch serve --help`` for what the Triton flags mean.

    ``run_dir`` empty means the default for ``http_port``; ``from_environ`` fills it in. ``metrics_address`` empty means
    ``http_address``; ``environment_cache_dir`` empty, a folder in the user's cache. ``frontend_arena_nbytes`` and
    ``worker_arena_nbytes`` cap the shared memory that one frontend holds for inputs and one worker for outputs.
    ``max_inflight`` caps the requests that one frontend holds at a time. Times of gRPC are milliseconds; a
    ``grpc_max_connection_age`` of 0 is no limit.
    """

    run_dir: str = ""
    model_repository: tuple[str, ...] = ()
    server_id: str = "triton"

    allow_http: bool = True
    http_address: str = "127.0.0.1"
    http_port: int = 8000
    reuse_http_port: bool = False
    http_max_input_size: int = 64 * 1024 * 1024
    http_header_forward_pattern: str = ""
    http_restricted_api: tuple[str, ...] = ()
    http_process_count: int = 1
    http_use_ssl: bool = False
    http_use_ssl_mutual: bool = False
    http_server_cert: str = ""
    http_server_key: str = ""
    http_root_cert: str = ""

    allow_grpc: bool = True
    grpc_address: str = "127.0.0.1"
    grpc_port: int = 8001
    reuse_grpc_port: bool = False
    grpc_process_count: int = 1
    grpc_engine: Literal["auto", "aio", "http2"] = "auto"
    grpc_header_forward_pattern: str = ""
    grpc_restricted_protocol: tuple[str, ...] = ()
    grpc_infer_response_compression_level: Literal["none", "low", "medium", "high"] = "none"
    grpc_use_ssl: bool = False
    grpc_use_ssl_mutual: bool = False
    grpc_server_cert: str = ""
    grpc_server_key: str = ""
    grpc_root_cert: str = ""
    grpc_keepalive_time: int = 7_200_000
    grpc_keepalive_timeout: int = 20_000
    grpc_keepalive_permit_without_calls: bool = False
    grpc_http2_max_pings_without_data: int = 2
    grpc_http2_min_recv_ping_interval_without_data: int = 300_000
    grpc_http2_max_ping_strikes: int = 2
    grpc_max_connection_age: int = 0
    grpc_max_connection_age_grace: int = 0

    allow_client_shm: Literal["auto", "true", "false"] = "auto"

    allow_metrics: bool = True
    metrics_address: str = ""
    metrics_port: int = 8002
    metrics_interval_ms: int = 2000
    allow_cpu_metrics: bool = True
    allow_gpu_metrics: bool = True
    metrics_config: tuple[str, ...] = ()
    trace_config: tuple[str, ...] = ()

    strict_readiness: bool = True
    exit_on_error: bool = True
    exit_timeout_secs: int = 30
    drain_delay_secs: int = 5
    disable_auto_complete_config: bool = False
    model_control_mode: ControlMode = "none"
    repository_poll_secs: int = 15
    load_model: tuple[str, ...] = ()
    model_config_name: str = ""
    model_load_thread_count: int = 4
    model_load_retry_count: int = 0
    backend_config: tuple[str, ...] = ()
    backend_directory: str = ""
    watch: bool = False
    debug: tuple[str, ...] = ()

    environment_cache_dir: str = ""

    log_verbose: int = 0
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_format: Literal["default", "ISO8601"] = "default"

    frontend_arena_nbytes: int = 4 * _GIB
    worker_arena_nbytes: int = 4 * _GIB
    max_inflight: int = 8192

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Reads, checks and completes the settings. Raises ``InvalidArgument`` naming the variable."""
        values: dict[str, Any] = {}
        for field in msgspec.structs.fields(cls):
            variable = variable_name(field.name)
            text = environ.get(variable)
            if text is not None:
                values[field.name] = parse_value(variable, text, field.type)
        settings = cls(**values)
        if not settings.run_dir:
            run_dir = str(default_run_dir(settings.http_port, environ))
            settings = msgspec.structs.replace(settings, run_dir=run_dir)
        settings.check()
        return settings

    @property
    def environment_cache(self) -> str:
        """Where the environments that models ask for are kept once they are made."""
        if self.environment_cache_dir:
            return os.path.abspath(self.environment_cache_dir)
        return os.path.join(_user_cache_dir() or self.run_dir, "conch")

    def to_environ(self) -> dict[str, str]:
        """The variables that ``from_environ`` turns into these settings again; defaults are left out."""
        variables = {}
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            if value != field.default:
                variables[variable_name(field.name)] = format_value(value)
        return variables

    def check(self) -> None:
        """Raises ``InvalidArgument`` for values that cannot work, alone or together. The port of a disabled endpoint is
        not looked at, as in Triton."""
        endpoints = self.endpoints()
        for endpoint, _, port in endpoints:
            if not 0 < port < 65536:
                raise InvalidArgument(f"--{endpoint}-port must be between 1 and 65535, not {port}")
        for i, (endpoint, address, port) in enumerate(endpoints):
            for other, other_address, other_port in endpoints[:i]:
                if port == other_port and _overlap(address, other_address):
                    raise InvalidArgument(
                        f"--{other}-port and --{endpoint}-port are both {port}; "
                        f"they must differ, unless there is --allow-{endpoint}=false"
                    )
        for protocol in get_args(Protocol):
            self._check_certificates(protocol)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InvalidArgument(f"--{flag_name(name)} must be at least {least}, not {getattr(self, name)}")
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise InvalidArgument(f"--{flag_name(name)} must be at most {most}, not {getattr(self, name)}")
        for setting in self.backend_config:
            if "=" not in setting:
                raise InvalidArgument(f"--backend-config '{setting}' is not of the form <backend>,<key>=<value>")
        self.debug_targets  # noqa: B018 - raises
        if self.load_model and self.model_control_mode != "explicit":
            raise InvalidArgument("--load-model needs --model-control-mode=explicit")
        for setting in self.metrics_config:
            name, _, value = setting.partition("=")
            if not name or not value or "," in name:
                raise InvalidArgument(f"--metrics-config '{setting}' is not of the form <setting>=<value>")
        for protocol in get_args(Protocol):
            self.restrictions(protocol)
            self.forwarding(protocol)

    def _check_certificates(self, protocol: str) -> None:
        mutual = getattr(self, f"{protocol}_use_ssl_mutual")
        if not (mutual or getattr(self, f"{protocol}_use_ssl")):
            return
        for name in ("server_cert", "server_key", *(("root_cert",) if mutual else ())):
            if not getattr(self, f"{protocol}_{name}"):
                wanted_by = f"--{protocol}-use-ssl{'-mutual' if mutual else ''}"
                raise InvalidArgument(f"{wanted_by} needs --{flag_name(f'{protocol}_{name}')}, the path of a PEM file")

    def restrictions(self, protocol: Protocol) -> "Restrictions":
        """Which parts of the API only callers with a certain header may use. Raises ``InvalidArgument``."""
        from conch.restrictions import Restrictions  # every process imports this module, and few ask this

        if protocol == "http":
            return Restrictions.parse(self.http_restricted_api, "http-restricted-api")
        return Restrictions.parse(self.grpc_restricted_protocol, "grpc-restricted-protocol", "triton-grpc-protocol-")

    def forwarding(self, protocol: Protocol) -> "HeaderForwarding":
        """Which of a caller's headers become parameters; not those that open a restricted part of the API, which are
        no business of models. Raises ``InvalidArgument``."""
        from conch.forwarding import HeaderForwarding

        pattern = self.http_header_forward_pattern if protocol == "http" else self.grpc_header_forward_pattern
        return HeaderForwarding(pattern, f"{protocol}-header-forward-pattern", self.restrictions(protocol).headers)

    @property
    def debug_targets(self) -> dict[str, int]:
        """The models whose first instances run under a debugger, each with the port for that, or 0. Raises
        ``InvalidArgument``."""
        targets: dict[str, int] = {}
        for target in dict.fromkeys(self.debug):
            model, colon, text = target.rpartition(":") if ":" in target else (target, "", "0")
            if not (model and text.isascii() and text.isdigit() and bool(colon) <= int(text) < 65536):
                raise InvalidArgument(f"--debug must be MODEL or MODEL:PORT, not '{target}'")
            port = int(text)
            if model in targets or (port and port in targets.values()):
                raise InvalidArgument(f"--debug={target}: another --debug has that model or that port")
            targets[model] = port
        return targets

    def endpoints(self) -> list[tuple[str, str, int]]:
        """Those that are on: ``http``, ``grpc`` or ``metrics``, address and port."""
        endpoints = []
        if self.allow_http:
            endpoints.append(("http", self.http_address, self.http_port))
        if self.allow_grpc:
            endpoints.append(("grpc", self.grpc_address, self.grpc_port))
        if self.allow_metrics:
            endpoints.append(("metrics", self.metrics_address or self.http_address, self.metrics_port))
        return endpoints

    @property
    def client_shm_allowed(self) -> bool:
        """Whether clients may register memory. Unless said otherwise, only while all of them are on this machine: a
        region is named by a path or key here, so that a distant client could only name somebody else's memory."""
        if self.allow_client_shm != "auto":
            return self.allow_client_shm == "true"
        return all(_is_loopback(address) for endpoint, address, _ in self.endpoints() if endpoint != "metrics")


def _user_cache_dir() -> str:
    """Empty if there is none."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return given
    home = os.environ.get("HOME", "")
    return os.path.join(home, ".cache") if os.path.isdir(home) and os.access(home, os.W_OK) else ""


def _is_loopback(address: str) -> bool:
    import ipaddress  # every process imports this module, and few ask this

    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _overlap(first: str, second: str) -> bool:
    """Whether listeners on both addresses cannot have the same port."""
    everywhere = {"", "0.0.0.0", "::"}  # noqa: S104
    names = {"localhost": "127.0.0.1"}
    return bool({first, second} & everywhere) or names.get(first, first) == names.get(second, second)


_LEAST = {
    "http_max_input_size": 1,
    "exit_timeout_secs": 0,
    "drain_delay_secs": 0,
    "repository_poll_secs": 1,
    "model_load_thread_count": 1,
    "model_load_retry_count": 0,
    "metrics_interval_ms": 1,
    "frontend_arena_nbytes": 1024 * 1024,
    "worker_arena_nbytes": 1024 * 1024,
    "max_inflight": 1,
    "http_process_count": 1,
    "grpc_process_count": 1,
    "grpc_keepalive_time": 1,
    "grpc_keepalive_timeout": 1,
    "grpc_http2_max_pings_without_data": 0,
    "grpc_http2_min_recv_ping_interval_without_data": 0,
    "grpc_http2_max_ping_strikes": 0,
    "grpc_max_connection_age": 0,
    "grpc_max_connection_age_grace": 0,
}
_MOST = {"http_process_count": 64, "grpc_process_count": 64}


def flag_name(field: str) -> str:
    """The flag of ``conch serve``, without dashes in front."""
    return _FLAG_NAMES.get(field, field).replace("_", "-")


def withhold_secrets(environ: MutableMapping[str, str] = os.environ) -> None:
    """Takes the headers that open restricted APIs out of the environment that models' processes inherit."""
    for field in ("http_restricted_api", "grpc_restricted_protocol"):
        environ.pop(variable_name(field), None)


def variable_name(field: str) -> str:
    """The environment variable."""
    return PREFIX + _FLAG_NAMES.get(field, field).upper()


def parse_value(source: str, text: str, kind: Any) -> Any:
    """``text`` as ``kind``, one of the types that ``Settings`` has. Raises ``InvalidArgument`` naming ``source``."""
    if kind is str:
        return text
    if kind is bool:
        try:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        except KeyError:
            raise InvalidArgument(f"{source} must be true, false, 1 or 0, not '{text}'") from None
    if kind is int:
        # int() would also take "1_000" and digits of other scripts
        digits = text.strip().removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            raise InvalidArgument(f"{source} must be a whole number, not '{text}'")
        return int(text)
    if get_args(kind) == (str, ...):
        return tuple(line for line in text.split("\n") if line)
    choices = get_args(kind)
    if text not in choices:
        raise InvalidArgument(f"{source} must be one of {', '.join(choices)}, not '{text}'")
    return text


def format_value(value: Any) -> str:
    """Inverse of ``parse_value``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "\n".join(value)
    return str(value)


def run_dir_places(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Where default run directories lie, best place first: each entry plus the HTTP port is one."""
    places = []
    runtime_dir = environ.get("XDG_RUNTIME_DIR")
    if runtime_dir and os.path.isabs(runtime_dir):
        places.append(os.path.join(runtime_dir, "conch-"))
    if os.geteuid() == 0:
        places.append("/run/conch-")
    import tempfile  # imports much, and only the first process of a server has to look for a place

    places.append(os.path.join(tempfile.gettempdir(), f"conch-{os.geteuid()}", ""))
    return places


def default_run_dir(http_port: int, environ: Mapping[str, str] = os.environ) -> Path:
    """The run directory of a server that was given none: private to this user and different for each HTTP port."""
    for place in run_dir_places(environ):
        parent = os.path.dirname(place)
        if os.access(parent, os.W_OK | os.X_OK):
            return Path(f"{place}{http_port}")
    return Path(f"{run_dir_places(environ)[-1]}{http_port}")
