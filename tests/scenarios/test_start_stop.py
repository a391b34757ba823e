"""Starting, being refused, draining, and the exit statuses of ``conch serve``."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from conch.run_dir import RunDir
from tests.scenarios.conftest import Serve, copy_examples
from tests.scenarios.harness import EXAMPLE_MODELS, Server
from tests.scenarios.malformed_cases import SIMPLE, request
from tests.scenarios.models import OBEY, write_model


def test_examples_are_ready(serve: Serve) -> None:
    server = serve(EXAMPLE_MODELS)
    assert server.ready()
    instances = server.status()["instances"]
    assert sorted(row["model"] for row in instances) == ["simple", "simple_identity", "text_to_image"]
    assert len({row["pid"] for row in instances}) == 3
    assert {row["state"] for row in instances} == {"ready"}


def test_table_of_models(serve: Serve, simple_repository: Path) -> None:
    output = serve(simple_repository).output
    assert "| simple | 1       | READY  |" in output


def test_several_repositories_and_instances(tmp_path: Path, run_dir: Path) -> None:
    write_model(tmp_path / "first", "obey", OBEY, "STRING", [1], instances=3)
    copy_examples(tmp_path / "second", "simple")
    server = Server([tmp_path / "first", tmp_path / "second"], run_dir)
    try:
        server.start()
        assert len(set(server.worker_pids("obey"))) == 3
        assert len(server.worker_pids("simple")) == 1
        assert server.stop() == 0
        assert not server.leftovers()
    finally:
        server.kill_everything()


def refused(server: Server) -> str:
    """What a server prints that does not start; it must end by itself with status 1."""
    try:
        try:
            server.start(timeout_s=10)
        except AssertionError:
            assert server.wait(10) == 1, server.report()
            assert not [each for each in server.leftovers() if each.startswith("process")], server.report()
            return server.output
        raise AssertionError("it was not refused")
    finally:
        server.kill_everything()


def test_a_model_that_cannot_load(tmp_path: Path, run_dir: Path) -> None:
    copy_examples(tmp_path / "models", "text_to_image", "simple")
    (tmp_path / "models" / "text_to_image" / "1" / "palette.json").unlink()
    reason = "the colours of this model are missing: no file"

    output = refused(Server([tmp_path / "models"], run_dir))
    # the table wraps long reasons
    assert "the colours of this model are missing" in output

    lenient = Server([tmp_path / "models"], run_dir, ["--exit-on-error=false"])
    try:
        lenient.start()
        assert lenient.request("GET", "/v2/health/live") == (200, b"")
        assert lenient.request("GET", "/v2/health/ready")[0] == 400
        assert lenient.request("GET", "/v2/models/simple/ready") == (200, b"")
        index = json.loads(lenient.request("POST", "/v2/repository/index")[1])
        broken = next(entry for entry in index if entry["name"] == "text_to_image")
        assert broken["state"] == "UNAVAILABLE"
        assert reason in broken["reason"]
        assert lenient.request("POST", SIMPLE, request())[0] == 200
        assert lenient.stop() == 0, lenient.report()
        assert not lenient.leftovers(), lenient.report()
    finally:
        lenient.kill_everything()


def test_second_instance_is_refused(
    serve: Serve, simple_repository: Path, run_dir: Path, make_run_dir: Callable[[], Path]
) -> None:
    first = serve(simple_repository)
    assert first.process is not None

    same_run_dir = Server([simple_repository], make_run_dir())
    same_run_dir.flags = [f"--run-dir={run_dir}"]
    output = refused(same_run_dir)
    assert "runs already" in output
    assert f":{first.http_port}" in output

    same_port = refused(Server([simple_repository], make_run_dir(), http_port=first.http_port))
    assert "cannot listen on" in same_port
    assert f":{first.http_port}" in same_port

    assert first.ready()
    assert first.request("POST", SIMPLE, request())[0] == 200


def test_stopping_answers_what_was_accepted(serve: Serve, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "obey", OBEY, "STRING", [1])
    server = serve(tmp_path / "models")
    answers: list[tuple[int, bytes]] = []
    order = b'{"inputs":[{"name":"INPUT0","shape":[1],"datatype":"BYTES","data":["sleep 1"]}]}'

    def ask() -> None:
        answers.append(server.request("POST", "/v2/models/obey/infer", order))

    client = threading.Thread(target=ask)
    client.start()
    wait_until_running(server, "obey")
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    client.join()
    assert answers[0][0] == 200, answers


def wait_until_running(server: Server, model: str, timeout_s: float = 5.0) -> None:
    """Until a worker has a request of ``model``."""
    deadline = time.monotonic() + timeout_s
    while not any(row["model"] == model and row["running"] for row in server.status()["models"]):
        assert time.monotonic() < deadline, server.report()


def test_private_files(serve: Serve, simple_repository: Path, run_dir: Path) -> None:
    serve(simple_repository)
    paths = RunDir(run_dir)
    for path in (run_dir, paths.requesters, paths.logs, paths.broker_socket, *paths.requesters.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
