"""S2, the chain that made Triton's workers run a client's code: an error that names internal memory, and an API that
takes such names. No answer tells of the server's own memory, files or processes, and none of that memory can be
registered. (A worker that lies about its own memory: ``tests/scenarios/faults/test_worker_misbehaves.py``.)"""

import http.client
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from shm.segment import SHARED_MEMORY_FOLDER, name_prefix
from tests.differential import grpc_cases, http_cases
from tests.differential.grpc_cases import SERVICE, pb
from tests.frontends.http.wire import wait_until
from tests.scenarios.conftest import copy_examples
from tests.scenarios.harness import Server, serving
from tests.scenarios.malformed_cases import CASES
from tests.scenarios.models import ECHO, OBEY, write_classifier, write_datatype_models, write_model

#: what belongs to the server's machine and to nobody else
INTERNAL = re.compile(r"/dev/shm|conch-\d|memfd|/tmp/|/proc|/root|/home|site-packages|0x[0-9a-f]{6,}|\bpid\b|Traceback")
#: how each fails to load, with the server's paths in the exception's own text
BROKEN = {
    "open": "open(os.path.join(args['model_repository'], args['model_version'], 'weights'))",
    "address": "raise RuntimeError(repr(object()))",
    "cause": "try:\n    open(__file__ + '/x')\nexcept OSError as error:\n    raise ValueError(str(error)) from error",
    "exit": "sys.exit('no more')",
    "kill": "os.kill(os.getpid(), 9)",
    "assertion": "assert False, __file__",
}


class Exposed(NamedTuple):
    server: Server
    base: Path

    def check(self, what: object, text: str) -> None:
        """``text``, an error that a client is told, has nothing of the server's."""
        found = INTERNAL.search(text)
        assert found is None, (what, found, text)
        assert str(self.base) not in text, (what, text)
        assert str(self.server.run_dir) not in text, (what, text)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Exposed]:
    base = tmp_path_factory.mktemp("exposed")
    repository = copy_examples(base / "models", "simple")
    write_datatype_models(repository)
    write_model(repository, "obey", OBEY, "STRING", [1])
    write_model(repository, "matrix", ECHO, "FP32", [-1, 2])
    write_classifier(repository, "scores", "FP32", 8, ["cat", "dog", "cow"])
    write_classifier(repository, "scores_nobatch", "FP32", 0, ["cat"])
    good = [f"--load-model={path.name}" for path in repository.iterdir()]
    for name, code in BROKEN.items():
        body = "\n".join(f"        {line}" for line in code.split("\n"))
        text = f"import sys\nclass TritonPythonModel:\n    def initialize(self, args):\n{body}\n"
        write_model(repository, f"broken_{name}", text)
    write_model(repository, "broken_syntax", "def (\n")
    write_model(repository, "broken_import", "import not_there_at_all\n")
    write_model(repository, "broken_config", ECHO, extra="nonsense {")
    write_model(repository, "broken_environment", ECHO)
    write_model(repository, "broken_link", ECHO)
    (repository / "broken_link" / "1" / "model.py").unlink()
    (repository / "broken_link" / "1" / "model.py").symlink_to(base / "gone.py")
    environment = (
        'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/no.tar.gz" } }'
    )
    with (repository / "broken_environment" / "config.pbtxt").open("a") as file:
        file.write(environment)
    (repository / "broken_onnx" / "1").mkdir(parents=True)
    (repository / "broken_onnx" / "1" / "model.onnx").write_bytes(b"\x08\x07garbage")
    with serving([repository], make_run_dir(), "--model-control-mode=explicit", *good) as running:
        yield Exposed(running, base)


def ask(connection: http.client.HTTPConnection, case: http_cases.HttpCase) -> tuple[int, str]:
    headers = {"Content-Length": "0"} if case.body is None and case.method == "POST" else {}
    try:
        connection.request(case.method, case.path, case.body, {**headers, **dict(case.headers)})
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        connection.close()
        return 0, ""


@pytest.mark.timeout(60)
def test_errors_over_http(exposed: Exposed) -> None:
    """Of every kind of wrong request that is known, to every endpoint."""
    malformed = [
        http_cases.HttpCase(case.name, "POST", case.path, case.body, tuple(case.headers.items())) for case in CASES
    ]
    connection = http.client.HTTPConnection("127.0.0.1", exposed.server.http_port, timeout=10)
    errors = 0
    for case in (*malformed, *http_cases.inference_cases(), *http_cases.endpoint_cases()):
        status, text = ask(connection, case)
        if status >= 400 or '"error"' in text:
            errors += 1
            exposed.check(case.name, text)
    connection.close()
    assert errors > 500


@pytest.mark.timeout(60)
def test_errors_over_grpc(exposed: Exposed) -> None:
    errors = 0
    with grpc.insecure_channel(exposed.server.grpc_url) as channel:
        for case in (*grpc_cases.inference_cases(), *grpc_cases.rpc_cases()):
            request = case.request if isinstance(case.request, bytes) else case.request.SerializeToString()
            try:
                channel.unary_unary(case.method)(request, timeout=10)
            except grpc.RpcError as error:
                errors += 1
                exposed.check(case.name, error.details() or "")
                metadata = (*(error.initial_metadata() or ()), *(error.trailing_metadata() or ()))
                exposed.check(case.name, repr([(key, value) for key, value in metadata]))
    assert errors > 300


def index(exposed: Exposed) -> dict[str, dict[str, str]]:
    status, text = exposed.server.request("POST", "/v2/repository/index", b"{}")
    assert status == 200
    return {each["name"]: each for each in json.loads(text)}


@pytest.mark.timeout(60)
def test_models_that_do_not_load(exposed: Exposed) -> None:
    """What the load's answer and the index say of it, over both protocols."""
    for path in sorted((exposed.base / "models").glob("broken_*")):
        status, answer = exposed.server.request("POST", f"/v2/repository/models/{path.name}/load", b"{}", timeout_s=20)
        text = answer.decode()
        assert status >= 400, path.name
        exposed.check(path.name, text)
        exposed.check(path.name, json.dumps(index(exposed)[path.name]))
        with grpc.insecure_channel(exposed.server.grpc_url) as channel, pytest.raises(grpc.RpcError) as raised:
            request = pb.RepositoryModelLoadRequest(model_name=path.name).SerializeToString()
            channel.unary_unary(SERVICE + "RepositoryModelLoad")(request, timeout=20)
        exposed.check(path.name, raised.value.details() or "")


def test_models_that_fail(exposed: Exposed) -> None:
    def obey(order: str) -> str:
        tensor = {"name": "INPUT0", "shape": [1], "datatype": "BYTES", "data": [order]}
        body = json.dumps({"inputs": [tensor]}).encode()
        return exposed.server.request("POST", "/v2/models/obey/infer", body, timeout_s=20)[1].decode()

    for order in ("raise", "nothing", "wrong name", "wrong type", "wrong shape", "error INTERNAL", "die", "exit"):
        exposed.check(order, obey(order))
    wait_until(lambda: obey("hello").count("hello") == 1, 20)


def own_segments(exposed: Exposed) -> list[str]:
    """Names in /dev/shm, and every other spelling of a segment's descriptor that the kernel has."""
    found = [name for name in os.listdir(SHARED_MEMORY_FOLDER) if name.startswith(name_prefix())]
    for pid in exposed.server.pids():
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if name_prefix() in os.readlink(path) or "memfd:" in os.readlink(path):
                    found.append(str(path))
            except OSError:
                pass
    return found


def spellings(name: str) -> list[str]:
    folder = SHARED_MEMORY_FOLDER
    look_alike = name.replace("c", "\u0441").replace("o", "\u043e").replace("-", "\u2010")
    return [
        *(name, f"/{name}", f"//{name}", f"///{name}", f"./{name}", f"/./{name}", f"/.//{name}", f"%2f{name}"),
        *(f"%2F{name}", f"/%2e/{name}", f"\uff0f{name}", f"\u2215{name}", f"\\{name}", f"{name}/", f"{name}/."),
        *(f"{name}\0", f"{name} ", f" {name}", f"{name}\n", f"../shm/{name}", f"/../shm/{name}", f"{folder}/{name}"),
        *(
            f"/{folder}/{name}",
            f"{folder}//{name}",
            f"file://{folder}/{name}",
            name.upper(),
            look_alike,
            f"{name}\u200b",
        ),
        *(f"/{name}".replace("-", "%2d"), f"shm:{name}", f"{name}:{name}", f"\ufeff{name}"),
    ]


def test_no_memory_of_the_servers_can_be_registered(exposed: Exposed) -> None:
    """By no spelling, over neither protocol; and the answer does not say that there was anything."""
    segments = own_segments(exposed)
    assert any(name.startswith(name_prefix()) for name in segments)
    assert any(name.startswith("/proc") for name in segments)
    ordinary = (
        "failed to register shared memory region 'mine': invalid args",
        "Unable to open shared memory region: ''",
    )
    path = "/v2/systemsharedmemory/region/mine/register"
    connection = http.client.HTTPConnection("127.0.0.1", exposed.server.http_port, timeout=10)
    with grpc.insecure_channel(exposed.server.grpc_url) as channel:
        register = channel.unary_unary(SERVICE + "SystemSharedMemoryRegister")
        for number, name in enumerate(segments):
            for key in spellings(name) if number % 20 == 0 else (name, f"/{name}"):
                for nbytes in (64, 1 << 40):
                    body = json.dumps({"key": key, "byte_size": nbytes}).encode()
                    status, text = ask(connection, http_cases.HttpCase("", "POST", path, body))
                    error = json.loads(text)["error"]
                    assert status in (400, 500), (key, error)
                    shown = error.replace(key, "")
                    assert shown in ordinary or shown.startswith("Invalid"), (key, error)
                    request = pb.SystemSharedMemoryRegisterRequest(name="mine", key=key, byte_size=nbytes)
                    with pytest.raises(grpc.RpcError) as raised:
                        register(request.SerializeToString(), timeout=10)
                    assert raised.value.details() == error, key
    connection.close()
    assert exposed.server.request("GET", "/v2/systemsharedmemory/status") == (200, b"[]")


def test_neither_by_a_link(exposed: Exposed) -> None:
    segment = next(name for name in own_segments(exposed) if name.startswith(name_prefix()))
    links: list[tuple[str, Callable[[str, str], Any]]] = [("hard", os.link), ("symbolic", os.symlink)]
    for kind, link in links:
        alias = f"{SHARED_MEMORY_FOLDER}/innocent-{kind}"
        link(f"{SHARED_MEMORY_FOLDER}/{segment}", alias)
        try:
            body = json.dumps({"key": f"/innocent-{kind}", "byte_size": 64}).encode()
            status, text = exposed.server.request("POST", "/v2/systemsharedmemory/region/mine/register", body)
            assert status >= 400, kind
            exposed.check(kind, text.decode())
        finally:
            os.unlink(alias)


def test_segments_are_nobody_elses(exposed: Exposed) -> None:
    """Nor can other users open them, or guess their names."""
    for name in own_segments(exposed):
        if name.startswith(name_prefix()):
            found = os.stat(f"{SHARED_MEMORY_FOLDER}/{name}")
            assert found.st_mode & 0o777 == 0o600, name
            assert found.st_uid == os.geteuid()
            assert len(name.removeprefix(name_prefix())) >= 16, name
