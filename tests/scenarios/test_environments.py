"""Models with environments of their own beside one without, in one server. Packages come from where pip gets them."""

import glob
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput

from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model

#: pip downloads and installs packages
pytestmark = pytest.mark.timeout(300)
LOAD_TIMEOUT_S = 240.0

VERSIONS = """
import sys

class TritonPythonModel:
    def execute(self, requests):
        versions = f"{sys.version_info[0]}.{sys.version_info[1]} {numpy.__version__} {os.environ.get('VIRTUAL_ENV')}"
        answer = numpy.array([versions.encode()], dtype=numpy.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", answer)]) for _ in requests]
"""
#: of NumPy: another one than the server's
PINNED = "1.26.4" if sys.version_info < (3, 13) else "2.1.3"
ENVIRONMENT = 'parameters {{ key: "EXECUTION_ENV_PATH", value: {{ string_value: "{}" }} }}'


def other_python() -> str | None:
    """An interpreter of another version than this one, that workers can run in."""
    found = [shutil.which(f"python3.{minor}") for minor in range(10, 14) if minor != sys.version_info[1]]
    found += sorted(glob.glob(os.path.expanduser("~/.pyenv/versions/3.1[0-9].*/bin/python")))
    probe = "import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14) or sys.version_info[1] == {})"
    for python in filter(None, found):
        command = [python, "-c", probe.format(sys.version_info[1])]
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0:
            return python
    return None


@pytest.fixture(scope="module")
def other_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with nothing in it."""
    python = other_python()
    if python is None:
        pytest.skip("there is no other Python from 3.10 to 3.13 on this machine")
    folder = tmp_path_factory.mktemp("environments") / "other"
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def server(models: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    write_model(models, "plain", VERSIONS, "STRING", [1])
    run_dir = make_run_dir()
    flags = ("--model-control-mode=explicit", "--load-model=plain", f"--environment-cache-dir={run_dir / 'cache'}")
    # what is compiled when it is imported is far less than everything
    with serving([models], run_dir, *flags, PIP_NO_COMPILE="1") as running:
        yield running


def load(server: Server, name: str) -> str:
    """Empty, or the reason why it cannot be loaded."""
    status, body = server.request("POST", f"/v2/repository/models/{name}/load", b"{}", timeout_s=LOAD_TIMEOUT_S)
    return "" if status == 200 else str(json.loads(body)["error"])


def load_with_packages(server: Server, name: str) -> None:
    """Skips the test where pip has nowhere to get packages from."""
    reason = load(server, name)
    if reason and not pip_finds_packages():
        pytest.skip("pip finds no index of packages here")
    assert reason == "", server.report()


def pip_finds_packages() -> bool:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        f"numpy=={PINNED}",
    ]
    return subprocess.run(command, stdout=subprocess.DEVNULL, timeout=LOAD_TIMEOUT_S).returncode == 0


def versions(server: Server, name: str) -> list[str]:
    """Of Python and NumPy, and where the environment lies."""
    with InferenceServerClient(server.url) as client:
        tensor = InferInput("INPUT0", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([b""], dtype=np.object_))
        answer = client.infer(name, [tensor]).as_numpy("OUTPUT0")
    assert answer is not None
    return str(answer[0].decode()).split(" ", 2)


def own_versions() -> list[str]:
    return [f"3.{sys.version_info[1]}", np.__version__]


def test_a_list_of_packages_that_conflicts_with_the_server_s(server: Server, models: Path) -> None:
    write_model(models, "pinned", VERSIONS, "STRING", [1], instances=2)
    (models / "pinned" / "requirements.txt").write_text(f"numpy=={PINNED}\n")
    load_with_packages(server, "pinned")
    python, numpy, folder = versions(server, "pinned")
    assert [python, numpy] == [own_versions()[0], PINNED] and PINNED != np.__version__
    assert "/cache/requirements-" in folder
    assert versions(server, "plain")[:2] == own_versions()


def test_an_environment_s_folder(server: Server, models: Path, other_environment: Path) -> None:
    write_model(models, "other", VERSIONS, "STRING", [1], extra=ENVIRONMENT.format(other_environment))
    load_with_packages(server, "other")
    python, _, folder = versions(server, "other")
    assert python != own_versions()[0]
    assert folder == str(other_environment)
    assert versions(server, "plain")[:2] == own_versions()


def test_a_packed_environment(server: Server, models: Path, other_environment: Path) -> None:
    extra = ENVIRONMENT.format("$$TRITON_MODEL_DIRECTORY/packed.tar.gz")
    write_model(models, "packed", VERSIONS, "STRING", [1], extra=extra)
    with tarfile.open(models / "packed" / "packed.tar.gz", "w:gz") as archive:
        archive.add(other_environment, arcname=".")
    load_with_packages(server, "packed")
    python, _, folder = versions(server, "packed")
    assert python != own_versions()[0]
    assert "/cache/archive-" in folder


def test_a_list_that_cannot_be_installed(server: Server, models: Path) -> None:
    write_model(models, "broken", VERSIONS, "STRING", [1])
    (models / "broken" / "1" / "requirements.txt").write_text("this is ! no requirement\n")
    reason = load(server, "broken")
    assert "unable to load model 'broken': its requirements.txt gives no environment" in reason
    assert "ERROR: Invalid requirement: " in reason
    assert "/" not in reason.replace("line 1 of", "")
    (models / "broken" / "1" / "requirements.txt").unlink()
    assert load(server, "broken") == ""
    assert versions(server, "broken")[:2] == own_versions()


def test_a_server_that_stops_while_an_environment_is_made(tmp_path: Path, run_dir: Path) -> None:
    extra = ENVIRONMENT.format("$$TRITON_MODEL_DIRECTORY/environment")
    write_model(tmp_path / "models", "slow", VERSIONS, "STRING", [1], extra=extra)
    python = tmp_path / "models" / "slow" / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\ntouch {tmp_path / 'asked'}\nsleep 600\n")
    python.chmod(0o700)
    flags = ("--model-control-mode=explicit", f"--environment-cache-dir={tmp_path / 'cache'}")
    server = Server([tmp_path / "models"], run_dir, flags)
    try:
        server.start()
        with ThreadPoolExecutor() as clients:
            loading = clients.submit(load, server, "slow")
            deadline = time.monotonic() + LOAD_TIMEOUT_S
            while not (tmp_path / "asked").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            _, index = server.request("POST", "/v2/repository/index", b"{}")
            assert [model.get("state") for model in json.loads(index)] == ["LOADING"]
            assert server.stop() == 0, server.report()
            assert loading.result() == "Server exiting"
        assert not server.leftovers()
    finally:
        server.kill_everything()
