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
