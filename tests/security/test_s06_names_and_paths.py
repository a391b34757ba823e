"""S6, paths: no name that a client gives leads out of the model repository, in any API that takes a model, a version, a
file or a configuration. The kernel tells what was opened outside."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc
import pytest

from tests.differential.grpc_cases import SERVICE, pb
from tests.scenarios.conftest import copy_examples
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import ECHO, write_model
from tests.security.inotify import Watched, watched

MARKER = "nobody-reads-this"
#: of models. {outside}: the absolute path of a model's folder outside of the repository
NAMES = (
    *("..", "../", "../secret", "../secret/", "./../secret", "..//secret", "x/../../secret", "simple/../../secret"),
    *("/../secret", "//secret", "{outside}", "/{outside}", "file://{outside}", "//localhost{outside}"),
    *(" ..", ".. ", " ../secret", "\t..", "..\n", ". .", "...", "....//secret", "..;/secret", ".././secret"),
    *("..\\secret", "\\..\\secret", "..%2fsecret", "..%2Fsecret", "%2e%2e/secret", "%2e%2e%2fsecret", "..%252fsecret"),
    *("..%c0%afsecret", "..%ef%bc%8fsecret", "%u002e%u002e/secret", "..\u2215secret", "..\uff0fsecret"),
    *("\uff0e\uff0e/secret", "\u2024\u2024/secret", "\u2025/secret", "simple\0/../../secret", "../secret\0", "\0"),
    *("secret\0.pbtxt", "simple/", "simple/.", "simple/1", "simple//", "./simple", "simple/../simple", ".", "", " "),
    *(".hidden", "x" * 300, "x/" * 2000, "CON", "NUL", "C:\\secret", "~/secret", "$HOME/secret", "${HOME}", "*", "s*"),
    *("configs/../../../secret", "simple/configs", "secret@{outside}", "-r", "--help", "linked/../../secret"),
)
VERSIONS = ("../1", "1/../../secret", "..", "-1", "1 ", "1_0", "+1", "1.0", "1e0", "0x1", "\u0661", "9" * 30)
#: of files, in a load call or in a configuration
FILES = (
    *("../stolen", "../../stolen", "1/../../stolen", "/stolen", "{outside}/stolen", "..", ".", "1/..", "./../stolen"),
    *("1/./../../stolen", "\0", "1/stolen\0", "..\\stolen/../..", "1//../../stolen", "x" * 300, "/etc/passwd"),
)
LABELS = (
    *("../secret/labels.txt", "../../secret/labels.txt", "{outside}/labels.txt", "1/../../secret/labels.txt", "link"),
    *("./../secret/labels.txt", "../simple/../secret/labels.txt"),
)


class World(NamedTuple):
    """``outside``: a folder beside the repository that looks like a model's. ``base`` holds both."""

    server: Server
    base: Path
    outside: Path
    watched: Watched

    def nothing_outside(self) -> None:
        """Neither opened, nor made, nor changed."""
        seen = {path for path in self.watched.seen() if path != self.base / "models"}
        assert not seen
        assert sorted(path.name for path in self.base.iterdir()) == ["models", "secret"]
        assert (self.outside / "labels.txt").read_text() == MARKER
        self.watched.seen()  # what this has looked at itself


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]
) -> Iterator[tuple[Server, Path]]:
    base = tmp_path_factory.mktemp("paths")
    repository = copy_examples(base / "models", "simple")
    write_model(repository, "labelled", ECHO, "FP32", [5])
    write_model(base, "secret", ECHO, "FP32", [5])
    (base / "secret" / "labels.txt").write_text(MARKER)
    (repository / "labelled" / "link").symlink_to(base / "secret" / "labels.txt")
    flags = ("--model-control-mode=explicit", "--load-model=*")
    with serving([repository], make_run_dir(), *flags) as running:
        yield running, base


@pytest.fixture
def world(started: tuple[Server, Path]) -> Iterator[World]:
    server, base = started
    secret = base / "secret"
    with watched(base, secret, secret / "1") as watch:
        found = World(server, base, secret, watch)
        yield found
        found.nothing_outside()
        _, text = server.request("POST", "/v2/repository/index", b"{}")
        ready = [each["name"] for each in json.loads(text) if each["state"] == "READY"]
        assert ready == ["labelled", "simple"], text


def filled(text: str, world: World) -> str:
    return text.replace("{outside}", str(world.outside))


def refused(world: World, method: str, path: str, body: Any = None) -> str:
    """The error's text. 4xx, or the 500 that Triton says to everything that it cannot load; nothing of what is outside
    in the answer."""
    data = json.dumps(body if body is not None else {}).encode() if method == "POST" else None
    status, answer = world.server.request(method, path, data)
    text = answer.decode(errors="replace")
    assert 400 <= status < 500 or (status == 500 and "failed to load " in text), (method, path, body, status, text)
    assert MARKER not in text
    return text


def rpc(world: World, method: str, request: Any) -> None:
    """It is refused."""
    with grpc.insecure_channel(world.server.grpc_url) as channel:
        call = channel.unary_unary(SERVICE + method, lambda message: message.SerializeToString())
        with pytest.raises(grpc.RpcError) as raised:
            call(request, timeout=10)
    code, text = raised.value.code(), raised.value.details() or ""
    wrong = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    assert wrong or (code is grpc.StatusCode.INTERNAL and "failed to load " in text), (request, code, text)
    assert MARKER not in text


def test_models_over_http(world: World) -> None:
    tensors = {"inputs": [{"name": "INPUT0", "shape": [5], "datatype": "FP32", "data": [0] * 5}]}
    for name in NAMES:
        name = filled(name, world)
        # quoted whole, and as somebody writes it who has another server in mind
        for spelt in {quote(name, safe=""), quote(name, safe="/%")}:
            for path in ("", "/ready", "/config", "/stats", "/versions/1", "/versions/1/config"):
                refused_or_simple(world, f"/v2/models/{spelt}{path}", name)
            for path in ("/infer", "/generate", "/versions/1/infer", "/generate_stream"):
                refused(world, "POST", f"/v2/models/{spelt}{path}", tensors)
            refused(world, "POST", f"/v2/repository/models/{spelt}/load")
            refused(
                world, "POST", f"/v2/repository/models/{spelt}/load", {"parameters": {"config": '{"backend":"python"}'}}
            )
            refused(world, "GET", f"/v2/models/{spelt}/trace/setting")
    world.nothing_outside()


def refused_or_simple(world: World, path: str, name: str) -> None:
    """What names ``simple`` after all, without leading anywhere, may be answered: ``simple/`` + ``/ready``."""
    status, answer = world.server.request("GET", path)
    assert MARKER.encode() not in answer
    assert 400 <= status < 500 or name.rstrip("/") in ("simple", "simple/1"), (path, status, answer)


def test_models_over_grpc(world: World) -> None:
    for name in NAMES:
        name = filled(name, world)
        rpc(world, "ModelInfer", pb.ModelInferRequest(model_name=name))
        rpc(world, "ModelMetadata", pb.ModelMetadataRequest(name=name))
        rpc(world, "ModelConfig", pb.ModelConfigRequest(name=name))
        if name:  # of all models
            rpc(world, "ModelStatistics", pb.ModelStatisticsRequest(name=name))
            rpc(world, "TraceSetting", pb.TraceSettingRequest(model_name=name))
        load = pb.RepositoryModelLoadRequest(model_name=name)
        rpc(world, "RepositoryModelLoad", load)
        load.parameters["config"].string_param = '{"backend":"python"}'
        rpc(world, "RepositoryModelLoad", load)


def test_versions(world: World) -> None:
    for version in VERSIONS:
        for path in ("", "/config", "/ready", "/stats"):
            refused(world, "GET", f"/v2/models/simple/versions/{quote(version, safe='')}{path}")
        refused(world, "POST", f"/v2/models/simple/versions/{quote(version, safe='')}/infer")
        rpc(world, "ModelMetadata", pb.ModelMetadataRequest(name="simple", version=version))
        rpc(world, "ModelInfer", pb.ModelInferRequest(model_name="simple", model_version=version))


def test_repositories(world: World) -> None:
    """Nobody but the operator says where models come from."""
    for name in ("models", "..", str(world.outside), "file:///etc", "s3://bucket/models", "http://localhost/x"):
        request = pb.RepositoryModelLoadRequest(repository_name=name, model_name="secret")
        with grpc.insecure_channel(world.server.grpc_url) as channel, pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(SERVICE + "RepositoryModelLoad")(request.SerializeToString(), timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
        status, _ = world.server.request("POST", f"/v2/repository/{quote(name, safe='')}/models/secret/load", b"{}")
        assert status == 501


def load(world: World, model: str, config: dict[str, Any], files: dict[str, bytes] | None = None) -> str:
    """A load call with files and a configuration, which is refused."""
    parameters = {f"file:{name}": base64.b64encode(content).decode() for name, content in (files or {}).items()}
    body = {"parameters": {"config": json.dumps(config), **parameters}}
    return refused(world, "POST", f"/v2/repository/models/{model}/load", body)


def test_files_of_a_load_call(world: World) -> None:
    config = {"backend": "python"}
    for name in FILES:
        name = filled(name, world)
        load(world, "new", config, {"1/model.py": ECHO.encode(), name: b"stolen"})
        request = pb.RepositoryModelLoadRequest(model_name="new")
        request.parameters["config"].string_param = json.dumps(config)
        request.parameters[f"file:{name}"].bytes_param = b"stolen"
        rpc(world, "RepositoryModelLoad", request)
    assert not list((world.server.run_dir / "overrides").iterdir()), "what was written is gone"
    assert not list(world.server.run_dir.rglob("stolen*"))


def test_files_that_a_configuration_names(world: World) -> None:
    """Label files, the model's own file, and an environment: also those that come with a load call."""
    tensor = {"data_type": "TYPE_FP32", "dims": [5]}
    common = {"backend": "python", "input": [{"name": "INPUT0", **tensor}], "output": [{"name": "OUTPUT0", **tensor}]}
    for name in LABELS:
        name = filled(name, world)
        outputs = [{"name": "OUTPUT0", **tensor, "label_filename": name}]
        load(world, "labelled", {**common, "output": outputs})
        load(world, "labelled", {**common, "default_model_filename": name})
    world.nothing_outside()
    assert world.server.request("POST", "/v2/repository/models/labelled/load", b"{}")[0] == 200
