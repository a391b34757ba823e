"""S4, files that a client names: logs and traces go where the operator said, whatever is asked for."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.scenarios.harness import Server
from tests.security.conftest import check_answers

TEXT = "export PATH\n"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """What somebody would like to have written to. Unchanged in the end, and nothing new beside it."""
    path = tmp_path / "profile"
    path.write_text(TEXT)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(path)
    before = [path.stat(), sorted(os.listdir(tmp_path))]
    yield path
    found = [path.stat(), sorted(os.listdir(tmp_path))]
    assert path.read_text() == TEXT
    assert (found[0].st_mtime_ns, found[0].st_size, found[1]) == (before[0].st_mtime_ns, before[0].st_size, before[1])  # type: ignore[attr-defined]


def spellings(target: Path) -> list[str]:
    folder = target.parent
    return [
        *(str(target), f"{folder}/../{folder.name}/profile", str(folder / "new"), str(folder / "link")),
        *(str(folder / "fifo"), "stolen.log", "./stolen.log", "../stolen.log", f"file://{target}", "~/stolen.log"),
        *(
            "/proc/self/fd/1",
            "/proc/self/cwd/stolen.log",
            "/dev/stdout",
            "/dev/shm/stolen",
            f"|cat >{target}",
            "\0",
            "",
        ),
    ]


def post(server: Server, path: str, body: Any) -> tuple[int, str]:
    status, text = server.request("POST", path, json.dumps(body).encode())
    return status, text.decode()


def nothing_new(server: Server) -> None:
    """In the folders that processes of the server are in, nor in shared memory."""
    for pid in server.pids():
        folder = os.path.realpath(f"/proc/{pid}/cwd")
        assert not os.path.exists(f"{folder}/stolen.log")
        assert not os.path.exists(f"{os.path.dirname(folder)}/stolen.log")
    assert not os.path.exists("/dev/shm/stolen")
    assert not os.path.exists(os.path.expanduser("~/stolen.log"))


def test_over_http(server: Server, target: Path) -> None:
    before = server.request("GET", "/v2/logging"), server.request("GET", "/v2/trace/setting")
    for value in (*spellings(target), None, 1, True, [str(target)], {"path": str(target)}):
        for body in ({"log_file": value}, {"log_verbose_level": 0, "log_file": value}):
            status, text = post(server, "/v2/logging", body)
            # null leaves a setting as it is
            assert 400 <= status <= 501 or (value is None and '"log_file":""' in text), (value, text)
        for path in ("/v2/trace/setting", "/v2/models/simple/trace/setting"):
            for body in ({"trace_file": value}, {"trace_level": ["TIMESTAMPS"], "trace_file": value}):
                status, text = post(server, path, body)
                assert 400 <= status <= 501, (path, value, text)
    after = server.request("GET", "/v2/logging"), server.request("GET", "/v2/trace/setting")
    assert before == after, "a refused request has changed something"
    nothing_new(server)
    check_answers(server)


def test_over_grpc(server: Server, target: Path) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        before = client.get_log_settings(), client.get_trace_settings()
        for value in spellings(target):
            for settings in ({"log_file": value}, {"log_verbose_level": 1, "log_file": value}):
                with pytest.raises(InferenceServerException):
                    client.update_log_settings(settings)
            for model in ("", "simple"):
                with pytest.raises(InferenceServerException):
                    client.update_trace_settings(model, {"trace_file": value})
        assert (client.get_log_settings(), client.get_trace_settings()) == before
    nothing_new(server)
    check_answers(server)
