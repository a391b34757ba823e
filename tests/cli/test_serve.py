"""``conch serve`` and ``conch status``, each as its own process."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from typing import Any

import pytest

from conch.cli.ports import CannotServe
from conch.cli.serve import check_installation
from conch.process import hold_lock
from conch.run_dir import RunDir
from tests.certificates import make, needs_openssl
from tests.ports import free_port
from tests.scenarios.harness import EXAMPLE_MODELS, REPOSITORY_ROOT, Server, serving

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    """``run("serve", ...)``: one ``conch`` command that is expected to end by itself."""

    def run_command(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "conch", *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT), **variables},
        )

    return run_command


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "simple").symlink_to(EXAMPLE_MODELS / "simple")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def running(make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    with serving([EXAMPLE_MODELS], make_run_dir()) as server:
        yield server


def flags_for(repository: Path, run_dir: Path, port: int) -> tuple[str, ...]:
    ports = f"--http-port={port}", f"--grpc-port={free_port()}", f"--metrics-port={free_port()}"
    return f"--model-repository={repository}", f"--run-dir={run_dir}", *ports


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("path", [["site", str(REPOSITORY_ROOT)], ["", "site"]])
def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, path: list[str]) -> None:
    monkeypatch.setattr(sys, "path", path)
    monkeypatch.setattr(sys, "meta_path", [BuiltinImporter, FrozenImporter, PathFinder])
    if str(REPOSITORY_ROOT) in path:
        check_installation()
    else:
        with pytest.raises(CannotServe, match=r"Conch is not installed.* -m pip install -e /"):
            check_installation()


def test_no_repository(run: Run, run_dir: Path) -> None:
    done = run("serve", f"--run-dir={run_dir}")
    assert done.returncode == 1
    assert "--model-repository must be specified" in done.stderr


def test_a_repository_that_is_not_there(run: Run, run_dir: Path) -> None:
    done = run("serve", *flags_for(run_dir / "nowhere", run_dir, free_port()))
    assert done.returncode == 1
    assert "does not exist" in done.stderr


def test_a_port_that_is_taken(run: Run, repository: Path, run_dir: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        done = run("serve", *flags_for(repository, run_dir, port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize("endpoint", ["grpc", "metrics"])
def test_a_port_of_another_protocol_that_is_taken(
    run: Run, running: Server, repository: Path, run_dir: Path, endpoint: str
) -> None:
    taken = {"grpc": running.grpc_port, "metrics": running.metrics_port}[endpoint]
    done = run("serve", *flags_for(repository, run_dir, free_port()), f"--{endpoint}-port={taken}")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{taken}: a server runs there already" in done.stderr
    assert f"choose another --{endpoint}-port, or --allow-{endpoint}=false" in done.stderr


@pytest.mark.parametrize(
    ("key", "text"), [(None, "cannot be read: No such file"), ("other", "are not a certificate and")]
)
@needs_openssl
def test_certificates_that_do_not_serve(
    run: Run, repository: Path, run_dir: Path, tmp_path: Path, key: str | None, text: str
) -> None:
    server = make(tmp_path, "server")
    path = str(run_dir / "key.pem") if key is None else make(tmp_path, key).key
    files = "--http-use-ssl", f"--http-server-cert={server.certificate}", f"--http-server-key={path}"
    done = run("serve", *flags_for(repository, run_dir, free_port()), *files)
    assert done.returncode == 1
    assert text in done.stderr


def test_a_second_server_on_the_same_run_directory(run: Run, running: Server) -> None:
    done = run("serve", *flags_for(EXAMPLE_MODELS, running.run_dir, free_port()))
    assert done.returncode == 1
    assert f"HTTP 127.0.0.1:{running.http_port}" in done.stderr and "pid " in done.stderr
    assert running.ready()


def test_a_second_server_on_the_same_port(run: Run, running: Server, run_dir: Path) -> None:
    done = run("serve", *flags_for(EXAMPLE_MODELS, run_dir, running.http_port))
    assert done.returncode == 1
    assert f"a server runs there already (pid {running.program_pid('supervisord')}" in done.stderr
    assert running.ready()


def test_a_second_server_while_the_first_is_starting(run: Run, repository: Path, run_dir: Path) -> None:
    lock = hold_lock(RunDir(run_dir).serve_lock, "pid 4711, HTTP 127.0.0.1:8000")
    done = run("serve", *flags_for(repository, run_dir, free_port()))
    lock.release()
    assert done.returncode == 1
    assert "pid 4711, HTTP 127.0.0.1:8000" in done.stderr


def test_a_run_directory_whose_path_is_too_long(run: Run, repository: Path, run_dir: Path) -> None:
    done = run("serve", *flags_for(repository, run_dir / ("x" * 70), free_port()))
    assert done.returncode == 1
    assert "choose a shorter one with --run-dir" in done.stderr


def test_a_run_directory_that_cannot_be_made(run: Run, repository: Path, run_dir: Path) -> None:
    done = run("serve", *flags_for(repository, Path("/proc/conch"), free_port()))
    assert done.returncode == 1
    assert "cannot make the run directory /proc/conch" in done.stderr


def test_a_run_directory_that_others_use_is_left_alone(run: Run, repository: Path, run_dir: Path) -> None:
    shared = run_dir / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "a").touch()
    done = run("serve", *flags_for(repository, shared, free_port()))
    assert done.returncode == 1
    assert "holds other files and is open to other users" in done.stderr
    assert shared.stat().st_mode & 0o777 == 0o777 and os.listdir(shared) == ["a"]


def test_an_unknown_command(run: Run) -> None:
    done = run("srve")
    assert done.returncode == 2
    assert "unknown command 'srve'" in done.stderr and "usage: conch serve" in done.stderr


# ------------------------------------------------------------------------------------------------- a server's life


def test_three_models_are_listed_and_ready_in_time(running: Server) -> None:
    for name in ("simple", "simple_identity", "text_to_image"):
        assert any(name in line and "READY" in line for line in running.output.splitlines()), running.output
    for line in (
        f"Started GRPCInferenceService at 127.0.0.1:{running.grpc_port}",
        f"Started HTTPService at 127.0.0.1:{running.http_port}",
        f"Started Metrics Service at 127.0.0.1:{running.metrics_port}",
    ):
        assert line in running.output
    assert running.ready()


def test_sigterm_stops_with_zero_and_leaves_nothing(repository: Path, run_dir: Path) -> None:
    with serving([repository], run_dir) as server:
        begin = time.monotonic()
    assert time.monotonic() - begin < 10
    assert not server.ready()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_person_s_stop_is_graceful_and_not_delayed(repository: Path, run_dir: Path, number: signal.Signals) -> None:
    server = Server([repository], run_dir, ["--drain-delay-secs=60"])
    try:
        server.start()
        assert server.process is not None
        server.process.send_signal(number)
        assert server.wait(15) == 0, server.report()
        assert not server.leftovers()
    finally:
        server.kill_everything()
    assert "Signal received. Waiting up to 30 s for requests to finish" in server.output


def test_nohup_and_a_reader_that_is_gone(repository: Path, run_dir: Path) -> None:
    """It serves on, whatever happens to the terminal, and stops as ever."""
    server = Server([repository], run_dir, ["--log-verbose=1"])
    try:
        server.process = subprocess.Popen(
            ["nohup", *server.command()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)},
        )
        assert server.process.stdout is not None
        assert server.process.stdout.readline()
        server.process.stdout.close()
        wait_until(server.ready, server)
        server.process.send_signal(signal.SIGHUP)
        former = server.program_pid("http")
        os.kill(former, signal.SIGKILL)  # there is something to be shown
        wait_until(lambda: server.program_pids("http") not in ([former], [0], []), server)
        wait_until(server.ready, server)
        server.process.terminate()
        assert server.process.wait(15) == 0, server.report()
        assert not server.leftovers()
    finally:
        server.kill_everything()


def test_closed_standard_files(repository: Path, run_dir: Path) -> None:
    server = Server([repository], run_dir)
    try:
        server.process = subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *server.command()],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)},
        )
        wait_until(server.ready, server)
        server.process.terminate()
        assert server.process.wait(15) == 0, server.report()
        assert not server.leftovers()
    finally:
        server.kill_everything()


def write_broken(repository: Path) -> None:
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "config.pbtxt").write_text('backend: "python"\n')
    (repository / "broken" / "1" / "model.py").write_text("raise RuntimeError('out of order')\n")


def test_a_model_that_fails_stops_the_server(repository: Path, run_dir: Path) -> None:
    write_broken(repository)
    server = Server([repository], run_dir)
    try:
        with pytest.raises(AssertionError):
            server.start()
        assert server.wait(15) == 1, server.report()
        assert not server.leftovers()
    finally:
        server.kill_everything()
    assert "UNAVAILABLE" in server.output and "out of order" in server.output
    assert "failed to load all models" in server.output
    assert "--exit-on-error=false would serve the models that have loaded" in server.output


def test_a_model_in_the_place_of_its_repository(repository: Path, run_dir: Path) -> None:
    flags = ("--exit-on-error=false", "--backend-directory=/nowhere", "--debug=other")
    with serving([repository / "simple"], run_dir, *flags) as server:
        assert "looks like a model; the repository would be the folder around it" in server.output
        assert "there is no folder '/nowhere' with backends" in server.output
        assert "requests to 'other' wait while it is stopped in the debugger" in server.output


def test_a_repository_without_models(run_dir: Path, tmp_path: Path) -> None:
    with serving([tmp_path], run_dir) as server:
        assert f"there is no model in {tmp_path}" in server.output


def test_unless_exit_on_error_is_off(repository: Path, run_dir: Path) -> None:
    write_broken(repository)
    with serving([repository], run_dir, "--exit-on-error=false", "--strict-readiness=false") as server:
        assert "UNAVAILABLE" in server.output and "out of order" in server.output
        assert server.request("GET", "/v2/models/simple/ready")[0] == 200


def test_settings_may_come_from_the_environment(repository: Path, run_dir: Path) -> None:
    with serving([repository], run_dir, CONCH_ID="from-the-environment") as server:
        assert json.loads(server.request("GET", "/v2")[1])["name"] == "from-the-environment"


def test_a_killed_supervisord_ends_everything_with_one(repository: Path, run_dir: Path) -> None:
    server = Server([repository], run_dir)
    try:
        server.start()
        os.kill(server.program_pid("supervisord"), signal.SIGKILL)
        assert server.wait(15) == 1, server.report()
        assert not server.pids()
    finally:
        server.kill_everything()
    assert "supervisord ended by itself" in server.output


def test_a_killed_conch_serve_stops_everything_in_order(repository: Path, run_dir: Path) -> None:
    server = Server([repository], run_dir)
    try:
        server.start()
        assert server.process is not None
        server.process.kill()
        server.wait(15)
        deadline = time.monotonic() + 15
        while server.pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.pids(), server.report()
    finally:
        server.kill_everything()


SLEEPER = """
import time


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(60)
"""


@pytest.mark.parametrize(("flags", "signals"), [(["--exit-timeout-secs=1"], 1), ([], 2)])
def test_a_stop_that_takes_too_long_ends_with_one(
    repository: Path, run_dir: Path, flags: list[str], signals: int
) -> None:
    (repository / "sleeper" / "1").mkdir(parents=True)
    (repository / "sleeper" / "1" / "model.py").write_text(SLEEPER)
    (repository / "sleeper" / "config.pbtxt").write_text(
        'backend: "python"\ninput { name: "X" data_type: TYPE_INT32 dims: 1 }\n'
        'output { name: "Y" data_type: TYPE_INT32 dims: 1 }\n'
    )
    server = Server([repository], run_dir, flags)
    try:
        server.start()
        assert server.process is not None
        with http_connection(server) as connection:
            body = b'{"inputs": [{"name": "X", "shape": [1], "datatype": "INT32", "data": [1]}]}'
            connection.request("POST", "/v2/models/sleeper/infer", body)
            wait_until(lambda: any(row["state"] == "busy" for row in server.status()["instances"]), server)
            server.process.terminate()
            if signals == 2:
                server.read_output(time.monotonic() + 5, "Signal received")
                server.process.terminate()
            assert server.wait(15) == 1, server.report()
        assert not server.pids()
    finally:
        server.kill_everything()
    assert "Exit timeout expired. Exiting immediately." in server.output


def http_connection(server: Server) -> "contextlib.closing[http.client.HTTPConnection]":
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=20))


def wait_until(condition: Callable[[], bool], server: Server) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, server.report()
        time.sleep(0.02)


def test_sighup_starts_everything_anew(repository: Path, run_dir: Path) -> None:
    with serving([repository], run_dir) as server:
        supervisord, workers = server.program_pid("supervisord"), server.worker_pids("simple")
        os.kill(supervisord, signal.SIGHUP)
        wait_until(lambda: not set(workers) & set(server.pids()) and server.ready(), server)
        assert server.program_pid("supervisord") == supervisord
        assert len(server.worker_pids("simple")) == 1


@pytest.mark.parametrize("name", ["broker", "launcher", "http", "grpc", "metrics"])
def test_a_killed_program_comes_back(repository: Path, run_dir: Path, name: str) -> None:
    with serving([repository], run_dir) as server:
        before = server.program_pid(name)
        workers = server.worker_pids("simple")
        os.kill(before, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            rows = {row["name"]: row for row in server.status()["processes"]}
            if rows[name]["restarts"] == 1 and rows[name]["pid"] != before and server.ready():
                break
            time.sleep(0.05)
        else:
            raise AssertionError(server.report())
        assert rows[name]["last_error"] == "killed by SIGKILL"
        assert 0 <= rows[name]["since_death_s"] < 60
        assert server.worker_pids("simple") == workers


# ------------------------------------------------------------------------------------------------------------ status


def test_status_shows_one_worker_per_instance(running: Server) -> None:
    report = running.status()
    assert report["server"] == "ready"
    assert report["run_dir"] == str(running.run_dir)
    processes = {row["name"]: row for row in report["processes"]}
    assert {"supervisord", "launcher", "broker", "http", "grpc", "metrics"} <= set(processes)
    assert all(row["pid"] > 0 and row["memory_nbytes"] > 1_000_000 for row in report["processes"])
    states = {row["model"]: row for row in report["instances"]}
    assert set(states) == {"simple", "simple_identity", "text_to_image"}
    assert all(row["state"] == "ready" and row["restarts"] == 0 for row in report["instances"])
    pids = [row["pid"] for row in report["instances"]]
    assert len(set(pids)) == len(pids)
    queues: dict[str, Any] = {row["model"]: row for row in report["models"]}
    assert queues["simple"]["queued"] == 0 and queues["simple"]["state"] == "READY"


def test_status_as_tables(run: Run, running: Server) -> None:
    done = run("status", f"--run-dir={running.run_dir}")
    assert done.returncode == 0, done.stderr
    for word in ("Process", "broker", "MiB", "Instance", "simple", "Restarts", "Queued", "Last error"):
        assert word in done.stdout


def test_status_finds_the_server_by_its_port(run: Run, running: Server) -> None:
    done = run("status", "--http-port", str(running.http_port), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run_dir"] == str(running.run_dir)


def test_status_says_when_there_is_no_server(run: Run, run_dir: Path) -> None:
    done = run("status", f"--run-dir={run_dir}")
    assert done.returncode == 1 and "no server is running in" in done.stderr
    done = run("status", f"--http-port={free_port()}")
    assert done.returncode == 1 and "no server of yours is running with" in done.stderr
    assert run("status", "--jsn").returncode == 2
