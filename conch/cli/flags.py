"""The flags of ``conch serve``: one table, from which parsing, the environment and ``--help`` follow.

Names and meanings are ``tritonserver``'s. A flag that Conch knows but does not act on yet is accepted with a warning
that says so, so that an existing command line starts; a flag that nobody knows is an error with the nearest match.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from conch.errors import InvalidArgument
from conch.settings import PREFIX, Settings, flag_name, format_value, parse_value, variable_name

Status = Literal["works", "accepted"]


class Flag(msgspec.Struct, frozen=True):
    """``field`` is the setting that the flag sets, or empty for one that sets nothing yet; ``kind`` is its value's
    type. ``status`` "accepted": known, but changes nothing so far."""

    group: str
    name: str
    help: str
    field: str = ""
    kind: Any = str
    status: Status = "works"

    @property
    def variable(self) -> str:
        return PREFIX + self.name.replace("-", "_").upper()


class Parsed(msgspec.Struct, frozen=True):
    """``warnings`` are for the log, in order."""

    settings: Settings
    warnings: tuple[str, ...]


class HelpWanted(Exception):
    """``--help`` was among the arguments."""


_KINDS: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Settings)}
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in msgspec.structs.fields(Settings)}


def _setting(group: str, field: str, text: str, status: Status = "works") -> Flag:
    return Flag(group, flag_name(field), text, field, _KINDS[field], status)


def _later(group: str, names: str, kind: Any, text: str) -> list[Flag]:
    return [Flag(group, name, text, "", kind, "accepted") for name in names.split()]


FLAGS: tuple[Flag, ...] = (
    # ------------------------------------------------------------------------------------------------------- server
    _setting("Server", "server_id", "name of this server in its metadata"),
    _setting("Server", "run_dir", "private directory for sockets, locks and logs; default: one per HTTP port"),
    _setting("Server", "exit_timeout_secs", "seconds that a graceful stop may take before the rest is cut off"),
    _setting("Server", "drain_delay_secs", "seconds from SIGTERM, and not ready, to the graceful stop"),
    # --------------------------------------------------------------------------------------------- model repository
    _setting("Model repository", "model_repository", "folder of models (required; may be repeated)"),
    Flag("Model repository", "model-store", "old name of --model-repository", "model_repository", tuple[str, ...]),
    _setting("Model repository", "exit_on_error", "stop if a model fails to load at start"),
    _setting("Model repository", "strict_readiness", "the server is ready only while every loaded model is"),
    _setting(
        "Model repository", "disable_auto_complete_config", "do not complete missing configuration from the model file"
    ),
    Flag(
        "Model repository",
        "strict-model-config",
        "old inverse spelling: true is --disable-auto-complete-config",
        "disable_auto_complete_config",
        bool,
    ),
    _setting(
        "Model repository",
        "model_control_mode",
        "none: load all at start; poll: follow the folder; explicit: on demand",
    ),
    _setting("Model repository", "load_model", "model to load at start in explicit mode, * for all (may be repeated)"),
    _setting("Model repository", "repository_poll_secs", "seconds between two looks in poll mode"),
    _setting("Model repository", "model_config_name", "use configs/NAME.pbtxt of each model"),
    _setting("Model repository", "model_load_thread_count", "models that load at the same time"),
    _setting("Model repository", "model_load_retry_count", "further attempts at a failed load"),
    *_later("Model repository", "model-namespacing", bool, "let two repositories hold models of the same name"),
    *_later("Model repository", "enable-peer-access", bool, "GPU peer access"),
    *_later("Model repository", "repoagent-directory", str, "repository agents are a C++ interface"),
    # --------------------------------------------------------------------------------------------------------- HTTP
    _setting("HTTP", "allow_http", "serve HTTP"),
    _setting("HTTP", "http_address", "address to listen on (Triton: 0.0.0.0)"),
    _setting("HTTP", "http_port", "port to listen on"),
    _setting("HTTP", "http_max_input_size", "largest request body in bytes"),
    _setting("HTTP", "reuse_http_port", "share the port with other servers (SO_REUSEPORT)"),
    _setting("HTTP", "http_process_count", "frontend processes that share the port"),
    _setting("HTTP", "http_header_forward_pattern", "regular expression of headers that become request parameters"),
    _setting("HTTP", "http_restricted_api", "APIS:HEADER=VALUE, a header that these APIs demand (may be repeated)"),
    _setting("HTTP", "http_use_ssl", "serve HTTPS, and HTTP no more"),
    _setting("HTTP", "http_use_ssl_mutual", "HTTPS, and clients must have a certificate too"),
    _setting("HTTP", "http_server_cert", "PEM file of the server's certificates"),
    _setting("HTTP", "http_server_key", "PEM file of the server's key"),
    _setting("HTTP", "http_root_cert", "PEM file of the certificates that clients' are checked against"),
    *_later("HTTP", "http-thread-count", int, "see --http-process-count"),
    # --------------------------------------------------------------------------------------------------------- gRPC
    _setting("gRPC", "allow_grpc", "serve gRPC"),
    _setting("gRPC", "grpc_address", "address to listen on (Triton: 0.0.0.0)"),
    _setting("gRPC", "grpc_port", "port to listen on"),
    _setting("gRPC", "reuse_grpc_port", "share the port with other servers (SO_REUSEPORT)"),
    _setting("gRPC", "grpc_process_count", "frontend processes that share the port"),
    _setting("gRPC", "grpc_engine", "http2: HTTP/2 of our own; aio: grpcio; auto: http2"),
    _setting("gRPC", "grpc_header_forward_pattern", "regular expression of metadata that become request parameters"),
    _setting(
        "gRPC", "grpc_restricted_protocol", "PROTOCOLS:KEY=VALUE, metadata that these APIs demand (may be repeated)"
    ),
    _setting("gRPC", "grpc_infer_response_compression_level", "compression of answers"),
    _setting("gRPC", "grpc_use_ssl", "serve TLS only"),
    _setting("gRPC", "grpc_use_ssl_mutual", "TLS, and clients must have a certificate too"),
    _setting("gRPC", "grpc_server_cert", "PEM file of the server's certificates"),
    _setting("gRPC", "grpc_server_key", "PEM file of the server's key"),
    _setting("gRPC", "grpc_root_cert", "PEM file of the certificates that clients' are checked against"),
    _setting("gRPC", "grpc_keepalive_time", "ms without activity after which a client is pinged"),
    _setting("gRPC", "grpc_keepalive_timeout", "ms that the answer to a ping may take"),
    _setting("gRPC", "grpc_keepalive_permit_without_calls", "ping also while there are no calls"),
    _setting("gRPC", "grpc_http2_max_pings_without_data", "pings in a row without data; 0: any number"),
    _setting("gRPC", "grpc_http2_min_recv_ping_interval_without_data", "ms between a client's pings without data"),
    _setting("gRPC", "grpc_http2_max_ping_strikes", "bad pings until a connection is closed; 0: any number"),
    _setting("gRPC", "grpc_max_connection_age", "ms until a connection is closed gently; 0: never"),
    _setting("gRPC", "grpc_max_connection_age_grace", "ms that its calls may take then; 0: any time"),
    *_later("gRPC", "grpc-infer-thread-count", int, "see --grpc-process-count"),
    *_later("gRPC", "grpc-infer-allocation-pool-size grpc-max-response-pool-size", int, "C++ memory pools"),
    # ------------------------------------------------------------------------------------------------------ metrics
    _setting("Metrics", "allow_metrics", "serve metrics"),
    _setting("Metrics", "metrics_address", "address to listen on; default: that of HTTP"),
    _setting("Metrics", "metrics_port", "port to listen on"),
    _setting("Metrics", "metrics_interval_ms", "milliseconds between two looks at the CPU"),
    _setting("Metrics", "allow_cpu_metrics", "metrics of the machine's processors and memory"),
    _setting("Metrics", "allow_gpu_metrics", "there are no GPU metrics", "accepted"),
    _setting("Metrics", "metrics_config", "SETTING=VALUE: counter_latencies=false (may be repeated)"),
    # ------------------------------------------------------------------------------------------------------ logging
    _setting("Logging", "log_verbose", "1 and more: show and log every step"),
    _setting("Logging", "log_info", "log information"),
    _setting("Logging", "log_warning", "log warnings"),
    _setting("Logging", "log_error", "log errors"),
    _setting("Logging", "log_format", "form of the time stamps: default or ISO8601"),
    *_later("Logging", "log-file", str, "each process logs to its own file below RUN_DIR/logs"),
    _setting("Logging", "trace_config", "its settings can be seen and changed, but no request is traced", "accepted"),
    *_later("Logging", "trace-file trace-level", str, "deprecated; request tracing"),
    *_later("Logging", "trace-rate trace-count trace-log-frequency", int, "deprecated; request tracing"),
    # ----------------------------------------------------------------------------------------------------- backends
    _setting("Backends", "backend_config", "BACKEND,KEY=VALUE (may be repeated)"),
    _setting("Backends", "environment_cache_dir", "folder for models' own environments; default: in the user's cache"),
    _setting("Backends", "backend_directory", "folder of Python-based backends: NAME/model.py serves models of NAME"),
    *_later("Backends", "cache-config cache-directory", str, "response cache"),
    *_later("Backends", "response-cache-byte-size", int, "deprecated; response cache"),
    *_later("Backends", "rate-limit rate-limit-resource", str, "rate limiter"),
    # -------------------------------------------------------------------------------------------------- development
    _setting("Development", "watch", "load a model again when its files change"),
    _setting("Development", "debug", "MODEL[:PORT], for 'conch debug', or debugpy on PORT (may be repeated)"),
    # ------------------------------------------------------------------------------------------- memory and devices
    _setting("Memory and devices", "frontend_arena_nbytes", "cap of one frontend's shared memory for inputs"),
    _setting("Memory and devices", "worker_arena_nbytes", "cap of one worker's shared memory for outputs"),
    _setting("Memory and devices", "max_inflight", "cap of the requests that one frontend holds at a time"),
    Flag(
        "Memory and devices",
        "allow-client-shm",
        "clients may register memory; auto: if HTTP and gRPC are on loopback",
        "allow_client_shm",
        bool,
    ),
    *_later("Memory and devices", "pinned-memory-pool-byte-size buffer-manager-thread-count", int, "C++ memory pools"),
    *_later("Memory and devices", "cuda-memory-pool-byte-size cuda-virtual-address-size", str, "C++ memory pools"),
    *_later("Memory and devices", "min-supported-compute-capability", str, "GPU selection"),
    *_later("Memory and devices", "host-policy model-load-gpu-limit", str, "GPU selection"),
    # ------------------------------------------------------------------------------------------------------- clouds
    *_later("Clouds", "allow-sagemaker allow-vertex-ai", bool, "endpoints of cloud platforms"),
    *_later("Clouds", "sagemaker-port sagemaker-thread-count vertex-ai-port vertex-ai-thread-count", int, "endpoints"),
    *_later("Clouds", "sagemaker-safe-port-range vertex-ai-default-model", str, "endpoints of cloud platforms"),
)

BY_NAME = {flag.name: flag for flag in FLAGS}

#: variables with our prefix that are not for the server
_OTHER_VARIABLES = frozenset({"CONCH_VENV", "CONCH_SERVE_PID"})


def parse(arguments: Sequence[str], environ: Mapping[str, str]) -> Parsed:
    """Settings from flags, which win, and from the environment. Raises ``InvalidArgument`` and ``HelpWanted``.

    Accepts ``--name=value`` and ``--name value``; a boolean flag without a value means true.
    """
    warnings: list[str] = []
    values = _from_environ(environ, warnings)
    given: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if argument in ("--help", "-h"):
            raise HelpWanted
        if not argument.startswith("--"):
            raise InvalidArgument(f"unexpected argument '{argument}'{_hint_bare(argument)}")
        name, equals, text = argument[2:].partition("=")
        flag = BY_NAME.get(name) or BY_NAME.get(name.replace("_", "-"))
        if flag is None:
            raise InvalidArgument(f"unknown flag --{name}{_hint(name)}")
        if not equals:
            if remaining and not remaining[0].startswith("--"):
                text = remaining.pop(0)
            elif flag.kind is bool:
                text = "true"
            else:
                raise InvalidArgument(f"--{flag.name} needs a value")
        _take(flag, f"--{flag.name}", text, given, warnings)
    values.update(given)
    # the same one twice counts once, as in Triton
    values["model_repository"] = tuple(dict.fromkeys(values.get("model_repository", ())))
    settings = Settings.from_environ({**_plain(environ), **Settings(**values).to_environ()})
    return Parsed(settings, tuple(warnings))


def _take(flag: Flag, source: str, text: str, values: dict[str, Any], warnings: list[str]) -> None:
    by_default = text == _DEFAULTS.get(flag.field)  # of a boolean that has a third value
    value = text if by_default else parse_value(source, text, flag.kind)
    switches_off = flag.kind is bool and flag.name.startswith("allow-") and not value
    if flag.status == "accepted" and not switches_off:
        warnings.append(f"{source} is accepted but has no effect yet ({flag.help})")
    if not flag.field:
        return
    if flag.name == "strict-model-config":
        values[flag.field] = value
        warnings.append("--strict-model-config is deprecated: use --disable-auto-complete-config")
    elif flag.kind is bool and _KINDS[flag.field] is not bool:
        values[flag.field] = format_value(value)
    elif isinstance(value, tuple):
        values[flag.field] = values.get(flag.field, ()) + value
    else:
        values[flag.field] = value


def _from_environ(environ: Mapping[str, str], warnings: list[str]) -> dict[str, Any]:
    by_variable = {flag.variable: flag for flag in FLAGS}
    values: dict[str, Any] = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable in _OTHER_VARIABLES:
            continue
        flag = by_variable.get(variable)
        if flag is None:
            warnings.append(f"{variable} in the environment is no setting{_hint_variable(variable, by_variable)}")
        else:
            _take(flag, variable, environ[variable], values, warnings)
    return values


def _plain(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in environ.items() if not name.startswith(PREFIX)}


def _hint(name: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(name.lstrip("-").replace("_", "-").lower(), BY_NAME, 1)
    return f"; did you mean --{nearest[0]}?" if nearest else "; 'conch serve --help' lists them"


def _hint_bare(argument: str) -> str:
    if os.path.isdir(argument):
        return f"; did you mean --model-repository={argument}?"
    return _hint(argument) if argument.startswith("-") else "; flags begin with --"


def _hint_variable(variable: str, by_variable: Mapping[str, Flag]) -> str:
    import difflib

    nearest = difflib.get_close_matches(variable, by_variable, 1)
    return f"; did you mean {nearest[0]}?" if nearest else ""


def environment(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` for the processes of a server: what is in ``settings`` and nothing of what was there before."""
    kept = _plain(environ)
    return {**kept, **settings.to_environ(), variable_name("run_dir"): settings.run_dir}


def help_text() -> str:
    """``--help``: the flags by group, those without effect at the end of each."""
    lines = [
        "usage: conch serve --model-repository DIR [--FLAG=VALUE ...]",
        "",
        "Flags are tritonserver's. Each can also be given in the environment: --http-port=80 is CONCH_HTTP_PORT=80.",
    ]
    for group in dict.fromkeys(flag.group for flag in FLAGS):
        lines += ["", f"{group}:"]
        flags = [flag for flag in FLAGS if flag.group == group]
        for flag in flags:
            if flag.status == "works":
                lines += _help_of(flag)
        later = [f"--{flag.name}" for flag in flags if flag.status == "accepted"]
        if later:
            lines += _wrapped("accepted, without effect so far: " + " ".join(later), "  ")
    return "\n".join(lines) + "\n"


def _help_of(flag: Flag) -> list[str]:
    spelling = f"  --{flag.name} {_KIND_WORDS.get(flag.kind) or '|'.join(get_args(flag.kind))}"
    default = _DEFAULTS.get(flag.field)
    text = flag.help
    if flag.name == flag_name(flag.field) and default not in ("", (), None):
        text += f" [{format_value(default)}]"
    if len(spelling) > 38:
        return [spelling, " " * 40 + text]
    return [f"{spelling:<40}{text}"]


_KIND_WORDS: dict[Any, str] = {bool: "true|false", int: "N", str: "TEXT", tuple[str, ...]: "TEXT"}


def _wrapped(text: str, indent: str) -> list[str]:
    import textwrap

    return textwrap.wrap(
        text,
        110,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
