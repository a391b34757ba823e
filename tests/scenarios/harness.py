"""A real server for the scenarios: ``conch serve`` in a process of its own, and what it must leave behind: nothing."""

import contextlib
import fcntl
import http.client
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conch.process import lock_holder
from conch.run_dir import RunDir
from shm.segment import SHARED_MEMORY_FOLDER, name_prefix
from tests.ports import free_port
from tests.processes import all_processes, command_line, environment, is_gone

REPOSITORY_ROOT = Path(__file__).parents[2]
EXAMPLE_MODELS = REPOSITORY_ROOT / "examples" / "model_repository"

#: what a server prints for each of its services, the last line of a start last
STARTED = {
    "allow-grpc": "Started GRPCInferenceService",
    "allow-http": "Started HTTPService",
    "allow-metrics": "Started Metrics Service",
}


@dataclass
class Server:
    """One life of a server. ``start`` returns when it says that it has started, or has ended."""

    repositories: Sequence[Path]
    run_dir: Path
    flags: Sequence[str] = ()
    http_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    variables: dict[str, str] = field(default_factory=dict)
    output: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    # ----------------------------------------------------------------------------------------- starting and stopping

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "conch", "serve"),
            *(f"--model-repository={path}" for path in self.repositories),
            *(f"--http-port={self.http_port}", f"--grpc-port={self.grpc_port}"),
            *(f"--metrics-port={self.metrics_port}", f"--run-dir={self.run_dir}"),
            "--drain-delay-secs=0",  # unless the test's flags say otherwise
            *self.flags,
        ]

    def start(self, timeout_s: float = 20.0) -> None:
        """Raises ``AssertionError`` with the server's output if it does not start in time, or ends."""
        deadline = time.monotonic() + timeout_s
        self.process = subprocess.Popen(
            self.command(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT), **self.variables},
            cwd=self.run_dir.parent,
        )
        self.read_output(deadline, self.started_line())
        assert self.started_line() in self.output, self.report()

    def started_line(self) -> str:
        """The last line of a start."""
        return [line for flag, line in STARTED.items() if f"--{flag}=false" not in self.flags][-1]

    def read_output(self, deadline: float, until: str | None = None) -> None:
        """Reads until ``until`` has been printed, the server closes its output, or ``time.monotonic()`` is
        ``deadline``. The rest of the output is read when the server is stopped."""
        assert self.process is not None and self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline - time.monotonic())):
                chunk = os.read(self.process.stdout.fileno(), 65536)
                self.output += chunk.decode(errors="replace")
                if not chunk or (until is not None and until in self.output):
                    return

    def wait(self, timeout_s: float) -> int:
        """The exit status, once the server has ended by itself."""
        assert self.process is not None and self.process.stdout is not None
        self.read_output(time.monotonic() + timeout_s)
        try:
            return self.process.wait(timeout_s)
        finally:
            self.process.stdout.close()

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; returns the exit status. Whatever hangs is killed, and that fails the test."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_everything()
            raise AssertionError(f"did not stop within {timeout_s} s\n{self.report()}") from None

    def pids(self) -> list[int]:
        """Every process of this server, by the run directory in its environment; also those without a parent."""
        found = []
        for pid, status in all_processes().items():
            if pid == os.getpid() or status.state == "Z":
                continue
            is_serve = self.process is not None and pid == self.process.pid
            if is_serve or environment(pid).get("CONCH_RUN_DIR") == str(self.run_dir):
                found.append(pid)
        return found

    def kill_everything(self) -> None:
        """SIGKILL for all, until nothing is left that could start something again."""
        deadline = time.monotonic() + 5
        killed = set()
        while pids := self.pids():
            killed.update(pids)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.process is not None:
                self.process.poll()
            assert time.monotonic() < deadline, self.report()
        while not all(map(is_gone, killed)):
            assert time.monotonic() < deadline, self.report()
            time.sleep(0.005)
        if self.process is not None and self.process.stdout is not None:
            self.process.wait(5)
            self.process.stdout.close()

    # ---------------------------------------------------------------------------------------------- looking at it

    def status(self) -> dict[str, Any]:
        """What ``conch status --json`` prints."""
        command = [sys.executable, "-m", "conch", "status", f"--run-dir={self.run_dir}", "--json"]
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=20)
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    def program_pid(self, name: str) -> int:
        """Of ``broker``, ``launcher``, ``http``, ``http-2``, ``grpc``, ``metrics`` or ``supervisord``."""
        pids = self.program_pids(name)
        assert len(pids) == 1, (name, pids)
        return pids[0]

    def program_pids(self, *names: str) -> list[int]:
        """0 for one that is not running at the moment."""
        return [int(row["pid"]) for row in self.status()["processes"] if row["name"] in names]

    def worker_pids(self, model: str) -> list[int]:
        return [row["pid"] for row in self.status()["instances"] if row["model"] == model and row["pid"]]

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = 10.0,
    ) -> tuple[int, bytes]:
        """Status and body of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout_s)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ready(self) -> bool:
        try:
            return self.request("GET", "/v2/health/ready")[0] == 200
        except OSError:
            return False

    def report(self) -> str:
        """Everything that helps to see why a scenario failed."""
        parts = [f"--- serve\n{self.output}"]
        for path in sorted(RunDir(self.run_dir).logs.rglob("*.log")):
            parts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}")
        parts += [f"--- alive: {pid} {command_line(pid)}" for pid in self.pids()]
        return "\n".join(parts)

    # ------------------------------------------------------------------------------------------ what it leaves behind

    def leftovers(self) -> list[str]:
        """Processes, segments, sockets and locks of a server that is gone."""
        found = [f"process {pid}: {command_line(pid)}" for pid in self.pids()]
        found += [f"segment {name}" for name in orphans()]
        paths = RunDir(self.run_dir)
        found += [f"socket {path.name}" for path in paths.requesters.glob("*")]
        found += [f"worker file {path.name}" for path in paths.workers.glob("*")]
        found += [f"lock {path.name}" for path in self.run_dir.glob("*.lock") if lock_holder(path) is not None]
        return found


def orphans() -> list[str]:
    """Segments in /dev/shm of this user whose owner is gone: nobody holds the lock."""
    found = []
    for name in sorted(os.listdir(SHARED_MEMORY_FOLDER)):
        if not name.startswith(name_prefix()):
            continue
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            with open(os.path.join(SHARED_MEMORY_FOLDER, name), "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.append(name)
    return found


@contextlib.contextmanager
def serving(repositories: Sequence[Path], run_dir: Path, *flags: str, **variables: str) -> Iterator[Server]:
    """A server that has started; afterwards it is stopped, with exit status 0 and nothing left behind."""
    with running(Server(repositories, run_dir, flags, variables=variables)) as server:
        yield server


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """``serving`` for one that the caller has made."""
    try:
        server.start()
        yield server
        assert server.stop() == 0, server.report()
        leftovers = server.leftovers()
        assert not leftovers, "\n".join([*leftovers, server.report()])
    except BaseException:
        print(server.report())
        raise
    finally:
        server.kill_everything()
