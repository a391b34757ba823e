"""S7, commands: a model's name, however it looks, is a folder's name and nothing else. No shell sees it, and no
program takes it for an option."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest

from tests.differential.grpc_cases import SERVICE, pb
from tests.processes import command_line
from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.programs import wait_for
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import ECHO, write_model

CANARY = "canary-of-commands"
#: as folders in the repository, which an operator might have made by unpacking what somebody sent
FOLDERS = (
    *(f"a; touch {CANARY}", f"$(touch {CANARY})", f"`touch {CANARY}`", f"a|touch {CANARY}", f"a && touch {CANARY} &"),
    *(f"a\ntouch {CANARY}\n", f"'; touch {CANARY}; '", f'"; touch {CANARY}; "', f"a > {CANARY}", f"-c touch {CANARY}"),
    *("--help", "-rf", "*", "?", "~", "#a", "%s%n%x", "{a,b}", "[a]", "!a", "a\\", "$HOME", "${IFS}", "%(ENV_HOME)s"),
    *("a b", "a\tb", "a\rb", "\x1b[31m", "\u202eb", "\u65e5\u672c", "a:b", "a=b", "@a", "a,b", "<a>", "(a)"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("commands") / "models", "simple")
    for name in FOLDERS:
        write_model(repository, name, ECHO)
    flags = ("--model-control-mode=explicit", "--load-model=simple")
    with serving([repository], make_run_dir(), *flags) as running:
        yield running


def no_canary(server: Server) -> None:
    """In no folder that a process of the server is in, nor where its files are."""
    places = {Path(f"/proc/{pid}/cwd").resolve() for pid in server.pids()}
    places |= {Path.home(), Path("/tmp"), Path("/"), *(path.parent for path in server.repositories)}
    for place in places:
        assert not (place / CANARY).exists(), place
    assert not list(server.repositories[0].rglob(CANARY))
    assert not list(server.run_dir.rglob(CANARY))


@pytest.mark.timeout(90)
def test_folders_with_such_names(server: Server) -> None:
    """They are loaded, answer under their names, and go."""
    tensor = {"name": "INPUT0", "shape": [2], "datatype": "INT32", "data": [1, 2]}
    body = json.dumps({"inputs": [tensor]}).encode()
    for name in FOLDERS:
        path = quote(name, safe="")
        status, text = server.request("POST", f"/v2/repository/models/{path}/load", b"{}")
        assert status == 200, (name, text)
        status, text = server.request("POST", f"/v2/models/{path}/infer", body)
        assert status == 200, (name, text)
        assert json.loads(text)["model_name"] == name
        for pid in server.pids():
            assert CANARY not in command_line(pid)
        assert server.request("POST", f"/v2/repository/models/{path}/unload", b"{}")[0] == 200
    no_canary(server)
    logs = sorted(path.name for path in (server.run_dir / "logs" / "models").iterdir())
    assert all(name.isprintable() and not name.startswith((".", "-")) for name in logs), logs
    wait_for(server, server.ready)  # a worker may still be on its way out


def test_names_that_nobody_has_made(server: Server) -> None:
    for name in FOLDERS:
        name = f"{name}{name}"
        status, text = server.request("POST", f"/v2/repository/models/{quote(name, safe='')}/load", b"{}")
        assert status == 400 or (status == 500 and b"failed to poll" in text), (name, status, text)
        with grpc.insecure_channel(server.grpc_url) as channel, pytest.raises(grpc.RpcError):
            request = pb.RepositoryModelLoadRequest(model_name=name).SerializeToString()
            channel.unary_unary(SERVICE + "RepositoryModelLoad")(request, timeout=10)
    no_canary(server)


def test_an_environment_with_such_a_path(server: Server) -> None:
    """``EXECUTION_ENV_PATH`` is the only text of a configuration that names a program."""
    for path in (f"$(touch {CANARY})", f"/x; touch {CANARY}", f"-c\ntouch {CANARY}", f"`touch {CANARY}`.tar.gz"):
        config = {"backend": "python", "parameters": {"EXECUTION_ENV_PATH": {"string_value": path}}}
        body = json.dumps({"parameters": {"config": json.dumps(config)}}).encode()
        status, text = server.request(
            "POST", f"/v2/repository/models/{quote(FOLDERS[0], safe='')}/load", body, timeout_s=20
        )
        assert 400 <= status < 500, (path, text)
    no_canary(server)
