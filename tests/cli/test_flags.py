"""``conch serve``'s flags: tritonserver's names, the environment, and what is said about wrong ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conch.cli.flags import BY_NAME, FLAGS, HelpWanted, environment, help_text, parse
from conch.errors import InvalidArgument
from conch.settings import Settings

ROOT = Path(__file__).parents[2]

#: inventory 1.14, F-01 to F-17
TRITON_FLAGS = """
id exit-timeout-secs model-repository model-store exit-on-error disable-auto-complete-config strict-readiness
model-control-mode repository-poll-secs load-model model-config-name model-load-thread-count model-load-retry-count
model-namespacing enable-peer-access allow-http http-address http-port reuse-http-port http-header-forward-pattern
http-thread-count http-max-input-size http-restricted-api allow-grpc grpc-address grpc-port reuse-grpc-port
grpc-header-forward-pattern grpc-infer-thread-count grpc-infer-allocation-pool-size grpc-max-response-pool-size
grpc-infer-response-compression-level grpc-restricted-protocol grpc-use-ssl grpc-use-ssl-mutual grpc-server-cert
grpc-server-key grpc-root-cert grpc-keepalive-time grpc-keepalive-timeout grpc-keepalive-permit-without-calls
grpc-http2-max-pings-without-data grpc-http2-min-recv-ping-interval-without-data grpc-http2-max-ping-strikes
grpc-max-connection-age grpc-max-connection-age-grace log-verbose log-info log-warning log-error log-format log-file
allow-metrics allow-gpu-metrics allow-cpu-metrics metrics-address metrics-port metrics-interval-ms metrics-config
trace-config backend-directory backend-config cache-config cache-directory repoagent-directory rate-limit
rate-limit-resource pinned-memory-pool-byte-size cuda-memory-pool-byte-size cuda-virtual-address-size
min-supported-compute-capability buffer-manager-thread-count host-policy model-load-gpu-limit allow-client-shm
allow-sagemaker sagemaker-port sagemaker-safe-port-range sagemaker-thread-count allow-vertex-ai vertex-ai-port
vertex-ai-thread-count vertex-ai-default-model strict-model-config response-cache-byte-size trace-file trace-level
trace-rate trace-count trace-log-frequency
""".split()


def settings_of(*arguments: str, environ: dict[str, str] | None = None) -> Settings:
    return parse(arguments, environ or {}).settings


@pytest.mark.parametrize("name", TRITON_FLAGS)
def test_every_flag_of_tritonserver_is_known(name: str) -> None:
    assert name in BY_NAME


def test_every_setting_has_a_flag() -> None:
    assert {flag.field for flag in FLAGS} - {""} == set(Settings.__struct_fields__)


def test_both_spellings() -> None:
    settings = settings_of("--http-port=9000", "--id", "mine", "--model-repository", "/a", "--exit-on-error", "0")
    assert (settings.http_port, settings.server_id, settings.exit_on_error) == (9000, "mine", False)
    assert settings.model_repository == ("/a",)


def test_repeatable_flags_add_up_under_both_names() -> None:
    settings = settings_of("--model-repository=/a", "--model-store=/b", "--backend-config=python,x=1")
    assert settings.model_repository == ("/a", "/b")


def test_the_same_repository_twice_counts_once() -> None:
    settings = settings_of("--model-repository=/a", "--model-repository=/b", "--model-repository=/a")
    assert settings.model_repository == ("/a", "/b")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_booleans(text: str, value: bool) -> None:
    assert settings_of(f"--strict-readiness={text}").strict_readiness is value


def test_a_boolean_flag_alone_means_true() -> None:
    assert settings_of("--disable-auto-complete-config", "--http-port=9000").disable_auto_complete_config
    assert settings_of("--disable-auto-complete-config").disable_auto_complete_config


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "auto"),
        (("--allow-client-shm",), "true"),
        (("--allow-client-shm=1",), "true"),
        (("--allow-client-shm", "false"), "false"),
        (("--allow-client-shm=auto",), "auto"),
    ],
)
def test_a_boolean_with_a_third_value(arguments: tuple[str, ...], wanted: str) -> None:
    assert settings_of(*arguments).allow_client_shm == wanted


def test_repeatable_flags_keep_their_order() -> None:
    settings = settings_of(
        "--http-restricted-api=health:a=b",
        "--http-restricted-api=inference,model-repository:c=d",
        "--grpc-restricted-protocol=health:a=b",
        "--metrics-config=counter_latencies=false",
        "--trace-config=rate=100",
        "--trace-config",
        "level=TIMESTAMPS",
    )
    assert settings.http_restricted_api == ("health:a=b", "inference,model-repository:c=d")
    assert settings.grpc_restricted_protocol == ("health:a=b",)
    assert settings.metrics_config == ("counter_latencies=false",)
    assert settings.trace_config == ("rate=100", "level=TIMESTAMPS")


def test_strict_model_config_is_the_old_spelling() -> None:
    assert settings_of("--strict-model-config=true").disable_auto_complete_config
    assert not settings_of("--strict-model-config=false").disable_auto_complete_config


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--http-prt=1", "unknown flag --http-prt; did you mean --http-port?"),
        ("--modelrepository=/a", "did you mean --model-repository?"),
        ("--completely-else", "conch serve --help"),
        ("/models", "unexpected argument '/models'; flags begin with --"),
        ("/", "unexpected argument '/'; did you mean --model-repository=/?"),
        ("-http-port=1", "unexpected argument '-http-port=1'; did you mean --http-port?"),
        ("--http-port=8002", "they must differ, unless there is --allow-metrics=false"),
        ("--http-port", "--http-port needs a value"),
        ("--http-port=x", "--http-port must be a whole number, not 'x'"),
        ("--grpc-port=x", "--grpc-port must be a whole number"),
        ("--grpc-port=8000", "--http-port and --grpc-port are both 8000"),
        ("--grpc-infer-thread-count=x", "--grpc-infer-thread-count must be a whole number"),
        ("--allow-client-shm=maybe", "--allow-client-shm must be true, false, 1 or 0"),
        ("--exit-on-error=maybe", "--exit-on-error must be true, false, 1 or 0"),
    ],
)
def test_what_is_wrong_is_said(argument: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        settings_of(argument)
    assert message in str(caught.value)


def test_known_but_not_there_yet_is_a_warning() -> None:
    accepted = ["--grpc-infer-thread-count=4", "--cache-config", "local,size=1", "--trace-rate=100"]
    parsed = parse([*accepted, "--grpc-port=9001", "--allow-sagemaker=false", "--allow-gpu-metrics=false"], {})
    assert [warning.split()[0] for warning in parsed.warnings] == [
        "--grpc-infer-thread-count",
        "--cache-config",
        "--trace-rate",
    ]
    assert all("no effect yet" in warning for warning in parsed.warnings)


def test_the_environment_sets_what_flags_do_not() -> None:
    environ = {"CONCH_ID": "mine", "CONCH_HTTP_PORT": "9000", "CONCH_MODEL_REPOSITORY": "/a\n/b"}
    settings = settings_of("--http-port=9001", environ=environ)
    assert (settings.server_id, settings.http_port, settings.model_repository) == ("mine", 9001, ("/a", "/b"))


def test_a_flag_back_to_the_default_wins_over_the_environment() -> None:
    settings = settings_of("--http-port=8000", environ={"CONCH_HTTP_PORT": "9000"})
    assert settings.http_port == 8000
    assert "CONCH_HTTP_PORT" not in environment(settings, {"CONCH_HTTP_PORT": "9000", "HOME": "/"})


def test_the_environment_is_checked_too() -> None:
    parsed = parse([], {"CONCH_HTTP_PROT": "1", "CONCH_HTTP_THREAD_COUNT": "8", "HOME": "/"})
    assert len(parsed.warnings) == 2
    assert any("did you mean CONCH_HTTP_PORT?" in warning for warning in parsed.warnings)


def test_the_processes_get_the_same_settings() -> None:
    settings = settings_of("--model-repository=/a", "--http-port=9000", "--log-verbose=1")
    assert Settings.from_environ(environment(settings, {"PATH": "/bin"})) == settings


def test_help_names_every_flag() -> None:
    with pytest.raises(HelpWanted):
        settings_of("--help")
    words = set(help_text().split())
    assert all(f"--{flag.name}" in words for flag in FLAGS)
    assert max(map(len, help_text().splitlines())) <= 120
    assert {"none|poll|explicit", "none|low|medium|high", "auto|aio|http2", "default|ISO8601"} <= words


def test_the_command_says_it_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "conch", "serve", "--http-prt=1"],
        capture_output=True,
        text=True,
        timeout=20,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode != 0
    assert "did you mean --http-port?" in done.stderr
