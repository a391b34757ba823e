"""Parameters with almost the name of one that Conch acts on."""

import re
from pathlib import Path

import pytest

from broker.repository.parameters import misspelt
from tests.broker.repository.models import TENSORS, found, repository, write_model

ROOT = Path(__file__).parents[3]
#: how the code reads a parameter
READ = re.compile(r"(?:\.parameter\(|_threads\(config, |_boolean\(config, )\"(\w+)\"")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("EXECUTION_TIMEOUT", "EXECUTION_TIMEOUT_S"),
        ("execution_timeout_s", "EXECUTION_TIMEOUT_S"),
        ("EXECUTION_TIMEOUT_MS", "EXECUTION_TIMEOUT_S"),
        ("LOAD_TIMEOUT", "LOAD_TIMEOUT_S"),
        ("MEM_LIMIT_MIB", "MEMORY_LIMIT_MIB"),
        ("MEMORY_LIMIT_MB", "MEMORY_LIMIT_MIB"),
        ("idempotent", "IDEMPOTENT"),
        ("READ_ONLY_INPUTS", "READ_ONLY_INPUT_TENSORS"),
        ("EXECUTION_ENVIRONMENT_PATH", "EXECUTION_ENV_PATH"),
    ],
)
def test_what_is_meant(name: str, meant: str) -> None:
    assert misspelt([name], "python") == {name: meant}
    assert misspelt([name, meant], "python") == {}


def test_a_backends_own() -> None:
    assert misspelt(["enable_mem_area"], "onnxruntime") == {"enable_mem_area": "enable_mem_arena"}
    assert misspelt(["enable_mem_area"], "python") == {}


@pytest.mark.parametrize(
    "name", ["FORCE_CPU_ONLY_INPUT_TENSORS", "execution_mode", "weights", "temperature", "timeout", "", "é" * 1000]
)
def test_what_may_be_a_models_own(name: str) -> None:
    assert misspelt([name], "python") == {}


def test_everything_that_the_code_reads_is_known() -> None:
    files = [file for part in ("conch", "broker", "workers") for file in (ROOT / part).rglob("*.py")]
    read = {name for file in files for name in READ.findall(file.read_text())}
    assert {"IDEMPOTENT", "execution_mode", "intra_op_thread_count"} <= read
    for name in read:
        backend = "onnxruntime" if name.islower() else "python"
        assert misspelt([f"{name}_"], backend) == {f"{name}_": name}


def test_the_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = f'backend: "python"{TENSORS}parameters {{ key: "EXECUTION_TIMEOUT" value {{ string_value: "2" }} }}'
    write_model(tmp_path, "m", config)
    assert found(repository(tmp_path).poll("m")).fault is None
    assert (
        "model 'm' has parameter 'EXECUTION_TIMEOUT', which Conch does not know; is EXECUTION_TIMEOUT_S meant?"
        in caplog.messages
    )
