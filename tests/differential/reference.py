"""A real Triton to compare with, where one is installed: the server inside the ``nvidia-pytriton`` wheel."""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenarios.harness import free_port

#: names a virtual environment that has the wheel; ``scripts/differential`` makes one
VARIABLE = "CONCH_TRITON_VENV"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0


class Triton:
    """One running server. ``alive`` tells whether it has survived what it was asked."""

    def __init__(self, process: "subprocess.Popen[bytes]", http_port: int, grpc_port: int, log: Path) -> None:
        self.process = process
        self.http_port = http_port
        self.grpc_port = grpc_port
        self.log = log

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def environment_folder() -> Path:
    """Skips the test where there is none."""
    folder = os.environ.get(VARIABLE, "")
    if not folder:
        pytest.skip(f"no Triton to compare with: run scripts/differential, which sets {VARIABLE}")
    return Path(folder)


@contextlib.contextmanager
def running_triton(repository: Path, work: Path, *flags: str) -> Iterator[Triton]:
    """A Triton with the Python backend that serves ``repository``. ``work`` is an empty folder for its files."""
    folder = environment_folder()
    site = next((folder / "lib").glob("python*/site-packages"))
    server = site / "pytriton" / "tritonserver"
    version = site.parent.name.removeprefix("python")
    backends = work / "backends"
    shutil.copytree(server / "backends" / "python", backends / "python")
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    http_port, grpc_port, metrics_port = free_port(), free_port(), free_port()
    command = [
        str(server / "bin" / "tritonserver"),
        *(f"--model-repository={repository}", f"--backend-directory={backends}"),
        *(f"--cache-directory={server / 'caches'}", f"--http-port={http_port}", f"--grpc-port={grpc_port}"),
        f"--metrics-port={metrics_port}",
        *flags,
    ]
    libraries = [sysconfig.get_config_var("LIBDIR"), str(site / "nvidia_pytriton.libs")]
    variables = {
        **os.environ,
        "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": ":".join(libraries),
    }
    log = work / "triton.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=variables, start_new_session=True)
    triton = Triton(process, http_port, grpc_port, log)
    try:
        _wait_until_ready(triton)
        yield triton
    finally:
        _stop(process)


def _wait_until_ready(triton: Triton) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not triton.ready():
        assert triton.alive and time.monotonic() < deadline, triton.log.read_text(errors="replace")[-4000:]
        time.sleep(0.1)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """It and the processes of its models, which are in its session."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
