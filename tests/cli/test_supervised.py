"""A server under plain supervisord, as a service runs it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.processes import environment
from tests.scenarios.harness import EXAMPLE_MODELS, REPOSITORY_ROOT, Server

COMMAND = [sys.executable, "-m", "supervisor.supervisord", "-c", str(REPOSITORY_ROOT / "supervisord.conf")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "simple").symlink_to(EXAMPLE_MODELS / "simple")
    return tmp_path / "models"


def variables(run_dir: Path, port: int, **others: str) -> dict[str, str]:
    """The environment of supervisord; ``others`` without ``CONCH_``."""
    ports = {"HTTP_PORT": str(port), "GRPC_PORT": str(free_port()), "METRICS_PORT": str(free_port())}
    settings = {"RUN_DIR": str(run_dir), "DRAIN_DELAY_SECS": "0", **ports, **others}
    named = {f"CONCH_{name}": value for name, value in settings.items()}
    return {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT), **named}


def start(repository: Path, run_dir: Path, environ: dict[str, str]) -> Server:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ)
    return Server([repository], run_dir, http_port=int(environ["CONCH_HTTP_PORT"]), process=process)


def refused(environ: dict[str, str]) -> str:
    """What it says when it does not start."""
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=20, env=environ)
    assert done.returncode != 0
    return done.stderr


def wait_until(condition: Callable[[], bool], server: Server) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline, server.report()
        time.sleep(0.02)


def test_it_runs_the_same_thing(repository: Path, run_dir: Path) -> None:
    path = run_dir / "made" / "by" / "it"
    environ = variables(path, free_port(), MODEL_REPOSITORY=str(repository), DRAIN_DELAY_SECS="60")
    server = start(repository, path, {**environ, "PATH": "/usr/bin:/bin"})
    assert server.process is not None
    pid = server.process.pid
    try:
        wait_until(server.ready, server)
        rows = {row["name"]: row for row in server.status()["processes"]}
        assert {"supervisord", "launcher", "broker", "http", "grpc", "metrics"} == set(rows)
        assert all(environment(rows[name]["pid"])["CONCH_RUN_DIR"] == str(path) for name in ("broker", "http"))
        second = subprocess.run(
            [sys.executable, "-m", "conch", "serve", f"--model-repository={repository}"],
            capture_output=True,
            text=True,
            timeout=20,
            env=variables(path, free_port()),
        )
        assert second.returncode == 1 and f"pid {pid}" in second.stderr
        assert (path / "supervisord.pid").read_text().strip() == str(pid)
        server.process.send_signal(signal.SIGINT)  # Ctrl-C, which does without the delay
        assert server.wait(20) == 0
        assert not server.leftovers()
        # as root supervisord can delete whatever its configuration names
        assert not (path / "supervisord.pid").exists()
        assert Path(os.devnull).is_char_device()
    finally:
        server.kill_everything()


def test_nothing_lives_on_without_it(repository: Path, run_dir: Path) -> None:
    """Nor for the time of the delay: once the broker has gone there is nothing to serve."""
    environ = variables(run_dir, free_port(), MODEL_REPOSITORY=str(repository), DRAIN_DELAY_SECS="60")
    server = start(repository, run_dir, environ)
    assert server.process is not None
    try:
        wait_until(server.ready, server)
        server.process.kill()
        wait_until(lambda: not server.pids(), server)
        assert not server.leftovers()
    finally:
        server.kill_everything()


def test_status_while_it_stops(repository: Path, run_dir: Path) -> None:
    environ = variables(run_dir, free_port(), MODEL_REPOSITORY=str(repository), DRAIN_DELAY_SECS="60")
    server = start(repository, run_dir, environ)
    assert server.process is not None
    try:
        wait_until(server.ready, server)
        before = server.status()
        assert not before["stopping"] and before["not_ready"] == []
        server.process.terminate()
        wait_until(lambda: bool(server.status()["stopping"]), server)
        rows = {row["name"]: row for row in server.status()["processes"]}
        assert set(rows) == {row["name"] for row in before["processes"]}
        assert rows["http"]["state"] == "stopping"
        server.process.terminate()  # ends the delay
        assert server.wait(20) == 0
    finally:
        server.kill_everything()


def test_as_many_processes_as_wanted_and_none_that_is_off(repository: Path, run_dir: Path) -> None:
    off = {"ALLOW_GRPC": "false", "ALLOW_METRICS": "false"}
    environ = variables(run_dir, free_port(), MODEL_REPOSITORY=str(repository), HTTP_PROCESS_COUNT="3", **off)
    server = start(repository, run_dir, environ)
    assert server.process is not None
    try:
        wait_until(server.ready, server)
        names = {"supervisord", "launcher", "broker", "http", "http-2", "http-3"}
        assert {row["name"] for row in server.status()["processes"]} == names
        os.kill(server.process.pid, signal.SIGHUP)
        log = run_dir / "logs" / "http-3.log"
        wait_until(lambda: log.read_text().count("Started HTTPService") == 2, server)
        assert {row["name"] for row in server.status()["processes"]} == names
        assert server.stop() == 0, server.report()
        assert not server.leftovers()
    finally:
        server.kill_everything()


def test_it_does_not_share_a_stranger_s_port(repository: Path, run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as stranger:
        port = stranger.getsockname()[1]
        environ = variables(run_dir, port, MODEL_REPOSITORY=str(repository), HTTP_PROCESS_COUNT="2")
        assert f"cannot listen on 127.0.0.1:{port}" in refused(environ)


def test_it_says_what_is_missing(run_dir: Path) -> None:
    assert "CONCH_MODEL_REPOSITORY must name a folder of models" in refused(variables(run_dir, free_port()))


def test_it_takes_every_flag_and_says_what_is_wrong(repository: Path, run_dir: Path) -> None:
    wrong = {"HTTP_PRT": "1", "HTTP_THREAD_COUNT": "8"}
    environ = variables(run_dir, free_port(), MODEL_STORE=str(repository / "nowhere"), **wrong)
    server = start(repository, run_dir, environ)
    try:
        server.read_output(time.monotonic() + 15, "the reason is in")
        shown = server.output
        assert "did you mean CONCH_HTTP_PORT?" in shown
        assert "CONCH_HTTP_THREAD_COUNT is accepted but has no effect yet" in shown
        assert f"'{repository / 'nowhere'}' is no folder" in shown
        assert "broker ended just after its start; the reason is in" in shown
        (repository / "nowhere").mkdir()
        wait_until(server.ready, server)
        assert server.stop() == 0
    finally:
        server.kill_everything()
