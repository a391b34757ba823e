"""Settings travel through the environment unchanged, and refuse what cannot work."""

import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.errors import InvalidArgument
from conch.settings import Settings, default_run_dir, parse_value, variable_name

_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\n"), min_size=1)


@given(
    run_dir=_TEXT,
    model_repository=st.lists(_TEXT).map(tuple),
    server_id=_TEXT,
    http_port=st.integers(1, 65535),
    metrics_port=st.just(70000),
    allow_metrics=st.just(False),
    allow_grpc=st.just(False),
    trace_config=st.lists(_TEXT).map(tuple),
    allow_client_shm=st.sampled_from(["auto", "true", "false"]),
    strict_readiness=st.booleans(),
    log_verbose=st.integers(-5, 5),
    backend_config=st.lists(_TEXT.map(lambda text: text + "=1")).map(tuple),
)
def test_the_environment_carries_settings_unchanged(**values: object) -> None:
    settings = msgspec.structs.replace(Settings(), **values)
    assert Settings.from_environ(settings.to_environ()) == settings


def test_defaults_are_triton_s_except_for_the_address() -> None:
    settings = Settings.from_environ({})
    assert (settings.http_address, settings.http_port, settings.metrics_port) == ("127.0.0.1", 8000, 8002)
    assert (settings.grpc_address, settings.grpc_port) == ("127.0.0.1", 8001)
    assert (settings.grpc_keepalive_time, settings.grpc_http2_max_ping_strikes) == (7_200_000, 2)
    assert (settings.server_id, settings.exit_timeout_secs) == ("triton", 30)
    assert (settings.strict_readiness, settings.exit_on_error) == (True, True)
    assert (settings.http_max_input_size, settings.model_control_mode) == (67108864, "none")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CONCH_HTTP_PORT": "web"}, "CONCH_HTTP_PORT must be a whole number, not 'web'"),
        ({"CONCH_HTTP_PORT": "8_000"}, "CONCH_HTTP_PORT must be a whole number"),
        ({"CONCH_HTTP_PORT": "0"}, "--http-port must be between 1 and 65535"),
        ({"CONCH_HTTP_PORT": "8002"}, "--http-port and --metrics-port are both 8002"),
        ({"CONCH_GRPC_PORT": "8000"}, "--http-port and --grpc-port are both 8000"),
        ({"CONCH_GRPC_PORT": "8002", "CONCH_METRICS_ADDRESS": "::"}, "--grpc-port and --metrics-port are both"),
        ({"CONCH_GRPC_PORT": "8000", "CONCH_HTTP_ADDRESS": "localhost"}, "--http-port and --grpc-port are both 8000"),
        ({"CONCH_GRPC_PORT": "70000"}, "--grpc-port must be between 1 and 65535"),
        ({"CONCH_HTTP_PROCESS_COUNT": "0"}, "--http-process-count must be at least 1"),
        ({"CONCH_GRPC_PROCESS_COUNT": "65"}, "--grpc-process-count must be at most 64"),
        ({"CONCH_HTTP_USE_SSL": "1"}, "--http-use-ssl needs --http-server-cert"),
        ({"CONCH_GRPC_USE_SSL": "1", "CONCH_GRPC_SERVER_CERT": "/c"}, "--grpc-use-ssl needs --grpc-server-key"),
        (
            {"CONCH_GRPC_USE_SSL_MUTUAL": "1", "CONCH_GRPC_SERVER_CERT": "/c", "CONCH_GRPC_SERVER_KEY": "/k"},
            "--grpc-use-ssl-mutual needs --grpc-root-cert",
        ),
        ({"CONCH_METRICS_CONFIG": "counter_latencies"}, "<setting>=<value>"),
        ({"CONCH_ALLOW_HTTP": "yes"}, "CONCH_ALLOW_HTTP must be true, false, 1 or 0"),
        ({"CONCH_MODEL_CONTROL_MODE": "auto"}, "must be one of none, poll, explicit"),
        ({"CONCH_HTTP_MAX_INPUT_SIZE": "0"}, "--http-max-input-size must be at least 1"),
        ({"CONCH_BACKEND_CONFIG": "python"}, "<backend>,<key>=<value>"),
        ({"CONCH_LOAD_MODEL": "a"}, "--load-model needs --model-control-mode=explicit"),
    ],
)
def test_what_cannot_work_is_refused_by_name(variables: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Settings.from_environ(variables)
    assert message in str(caught.value)


def test_the_port_of_a_disabled_endpoint_is_not_looked_at() -> None:
    settings = Settings.from_environ({"CONCH_ALLOW_METRICS": "false", "CONCH_METRICS_PORT": "8000"})
    assert settings.metrics_port == 8000
    assert [endpoint for endpoint, _, _ in settings.endpoints()] == ["http", "grpc"]


def test_one_port_on_two_addresses() -> None:
    settings = Settings.from_environ({"CONCH_METRICS_ADDRESS": "127.0.0.2", "CONCH_METRICS_PORT": "8000"})
    assert settings.endpoints()[2] == ("metrics", "127.0.0.2", 8000)


@pytest.mark.parametrize(
    ("variables", "allowed"),
    [
        ({}, True),
        ({"CONCH_HTTP_ADDRESS": "::1", "CONCH_GRPC_ADDRESS": "localhost"}, True),
        ({"CONCH_HTTP_ADDRESS": "127.8.9.10"}, True),
        ({"CONCH_METRICS_ADDRESS": "192.0.2.1"}, True),
        ({"CONCH_HTTP_ADDRESS": "192.0.2.1"}, False),
        ({"CONCH_GRPC_ADDRESS": "192.0.2.1"}, False),
        ({"CONCH_GRPC_ADDRESS": "192.0.2.1", "CONCH_ALLOW_GRPC": "false"}, True),
        ({"CONCH_GRPC_ADDRESS": "127.example.com"}, False),
        ({"CONCH_HTTP_ADDRESS": ""}, False),
        ({"CONCH_HTTP_ADDRESS": "192.0.2.1", "CONCH_ALLOW_CLIENT_SHM": "true"}, True),
        ({"CONCH_ALLOW_CLIENT_SHM": "false"}, False),
    ],
)
def test_clients_on_this_machine_may_register_memory(variables: dict[str, str], allowed: bool) -> None:
    assert Settings.from_environ(variables).client_shm_allowed is allowed


def test_every_field_has_a_variable_of_its_own() -> None:
    variables = [variable_name(field) for field in Settings.__struct_fields__]
    assert len(set(variables)) == len(variables)
    assert {"CONCH_ID", "CONCH_MODEL_REPOSITORY", "CONCH_RUN_DIR"} <= set(variables)


def test_numbers_of_other_scripts_are_no_numbers() -> None:
    with pytest.raises(InvalidArgument):
        parse_value("x", "١٢", int)


def test_run_directories_differ_by_port_and_prefer_the_runtime_directory(run_dir: Path) -> None:
    environ = {"XDG_RUNTIME_DIR": str(run_dir)}
    assert default_run_dir(8000, environ) == run_dir / "conch-8000"
    assert default_run_dir(8001, environ) == run_dir / "conch-8001"


def test_without_a_runtime_directory_the_default_is_still_ours_alone() -> None:
    path = default_run_dir(8000, {"XDG_RUNTIME_DIR": "/nowhere/at/all"})
    parent = path.parent if path.parent.exists() else path.parent.parent
    assert stat.S_ISDIR(parent.stat().st_mode)
    assert str(os.geteuid()) in str(path) or os.geteuid() == 0


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("CONCH_HTTP_RESTRICTED_API", "helth:key=value", "unknown restricted api 'helth'"),
        ("CONCH_GRPC_RESTRICTED_PROTOCOL", "health", "--grpc-restricted-protocol option format is"),
        ("CONCH_HTTP_HEADER_FORWARD_PATTERN", "(", "is not a regular expression"),
        ("CONCH_GRPC_HEADER_FORWARD_PATTERN", "[", "is not a regular expression"),
    ],
)
def test_access_that_cannot_be_understood(variable: str, value: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Settings.from_environ({variable: value})
    assert text in raised.value.message


def test_debugged_models() -> None:
    settings = Settings.from_environ({"CONCH_DEBUG": "a\nb:5678\na"})
    assert settings.debug_targets == {"a": 0, "b": 5678}
    for text in ("a:", ":5", "a:0", "a:65536", "a\na:5", "a:5\nb:5"):
        with pytest.raises(InvalidArgument, match="--debug"):
            Settings.from_environ({"CONCH_DEBUG": text})
