"""The servers that are compared, each started for one run and stopped by itself."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import real_triton
from benchmarks.models import ROOT

START_WITHIN_S = 60
STOP_WITHIN_S = 30


@dataclass(frozen=True)
class Server:
    """``address`` and ``grpc_address`` are host:port; the second is empty if nobody knows it. ``pid``: of its topmost
    process, if it was started here."""

    name: str
    address: str
    grpc_address: str = ""
    pid: int = 0

    def ready(self) -> bool:
        """On both ports: they need not open in the same moment."""
        try:
            with urllib.request.urlopen(f"http://{self.address}/v2/health/ready", timeout=1) as response:
                ready: bool = response.status == 200
            if self.grpc_address:
                host, _, port = self.grpc_address.rpartition(":")
                socket.create_connection((host, int(port)), 1).close()
            return ready
        except OSError:
            return False

    def version(self) -> str:
        with urllib.request.urlopen(f"http://{self.address}/v2", timeout=5) as response:
            return str(json.loads(response.read())["version"])


class DoesNotStart(Exception):
    pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(server: Server, command: list[str], environment: dict[str, str]) -> Iterator[Server]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            deadline = time.monotonic() + START_WITHIN_S
            while not server.ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise DoesNotStart(f"{server.name} does not start:\n{log.read().decode(errors='replace')[-4000:]}")
                time.sleep(0.05)
            yield replace(server, pid=process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_WITHIN_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listening(name: str, ports: tuple[int, int] | None) -> tuple[Server, list[str]]:
    """The server to be, and its flags: on 127.0.0.1, on ``ports`` for HTTP and gRPC or on free ones."""
    http_port, grpc_port = ports or (free_port(), free_port())
    flags = [f"--http-port={http_port}", f"--grpc-port={grpc_port}", "--allow-metrics=false"]
    flags += ["--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    return Server(name, f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}"), flags


@contextlib.contextmanager
def conch(
    repositories: list[Path], flags: Sequence[str] = (), ports: tuple[int, int] | None = None
) -> Iterator[Server]:
    """Conch of this checkout, with this interpreter. Raises ``DoesNotStart``."""
    server, where = _listening("Conch", ports)
    run_dir = Path(tempfile.mkdtemp(prefix="conch-bench-", dir="/tmp"))
    command = [
        *(sys.executable, "-P", "-m", "conch", "serve", *where, f"--run-dir={run_dir}"),
        *("--drain-delay-secs=0", *(f"--model-repository={path}" for path in repositories), *flags),
    ]
    try:
        with _running(server, command, {**os.environ, "PYTHONPATH": str(ROOT)}) as running:
            yield running
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


@contextlib.contextmanager
def triton(
    repositories: list[Path], flags: Sequence[str] = (), ports: tuple[int, int] | None = None
) -> Iterator[Server]:
    """The real Triton of ``$CONCH_TRITON_VENV``. Raises ``DoesNotStart``."""
    installation = real_triton.installed()
    if installation is None:
        raise DoesNotStart(f"no Triton: ${real_triton.VARIABLE} names no virtual environment that has it")
    server, where = _listening("Triton", ports)
    arguments = [*where, *(f"--model-repository={path}" for path in repositories), *flags]
    with tempfile.TemporaryDirectory(prefix="conch-triton-") as work:
        start = installation.start(arguments, Path(work))
        with _running(server, start.command, start.environment) as running:
            yield running
