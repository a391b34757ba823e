"""RPCs about the server, its models and the repository."""

import json
from typing import Any

import pytest

from conch.errors import NotReady, PollFailed
from conch.messages import (
    AskStatistics,
    BatchStatistics,
    Duration,
    LoadModel,
    ModelEntry,
    ModelStatistics,
    UnloadModel,
)
from frontends.grpc.health import CHECK
from frontends.metadata import server_metadata
from tests.frontends.grpc.support import Frontend, Refused, pb, refusal, simple_request
from tests.frontends.http.support import MODELS, table

NO_REPOSITORY = ("UNIMPLEMENTED", "'repository_name' specification is not supported")


def test_health(frontend: Frontend) -> None:
    assert frontend.call("ServerLive").live
    assert frontend.call("ServerReady").ready
    assert frontend.call("ModelReady", pb.ModelReadyRequest(name="simple")).ready
    assert frontend.call("ModelReady", pb.ModelReadyRequest(name="simple", version="1")).ready
    for payload in (b"", b"\x0a\x01x", b"\x0a\x1einference.GRPCInferenceService"):
        assert frontend.raw(CHECK, payload) == b"\x08\x01"


def test_models_that_there_are_not_are_not_ready(frontend: Frontend) -> None:
    for name, version in (("nope", ""), ("simple", "9"), ("", "")):
        assert not frontend.call("ModelReady", pb.ModelReadyRequest(name=name, version=version)).ready
    code, _ = refusal(frontend.call, "ModelReady", pb.ModelReadyRequest(name="simple", version="x"))
    assert code == "INVALID_ARGUMENT"


def test_a_server_that_is_not_ready() -> None:
    broken = ModelEntry("broken", 1, "UNAVAILABLE", "it is broken", False)
    with Frontend() as frontend:
        frontend.do(lambda: frontend.requester.models.update(table(extra=(broken,))))
        assert frontend.call("ServerLive").live
        assert not frontend.call("ServerReady").ready
        assert frontend.raw(CHECK, b"") == b"\x08\x02"
        frontend.do(lambda: frontend.requester.models.update(table(server="exiting")))
        assert not frontend.call("ServerLive").live
        assert not frontend.call("ServerReady").ready
        assert not frontend.call("ModelReady", pb.ModelReadyRequest(name="broken")).ready


def test_a_server_that_is_leaving() -> None:
    with Frontend() as frontend:
        frontend.application.traffic.leaving = True
        assert frontend.call("ServerLive").live
        assert not frontend.call("ServerReady").ready
        assert frontend.raw(CHECK, b"") == b"\x08\x02"
        assert not frontend.call("ModelReady", pb.ModelReadyRequest(name="simple")).ready
        assert frontend.call("ModelInfer", simple_request()).model_name == "simple"


def test_without_strict_readiness() -> None:
    broken = ModelEntry("broken", 1, "UNAVAILABLE", "it is broken", False)
    with Frontend(strict_readiness=False) as frontend:
        frontend.do(lambda: frontend.requester.models.update(table(extra=(broken,))))
        assert frontend.call("ServerReady").ready
        assert frontend.raw(CHECK, b"") == b"\x08\x01"


def test_server_metadata() -> None:
    with Frontend(server_id="mine") as frontend:
        response = frontend.call("ServerMetadata")
        expected = server_metadata(frontend.settings)
        assert response.name == "mine"
        assert {"name": response.name, "version": response.version, "extensions": list(response.extensions)} == expected


def test_model_metadata(frontend: Frontend) -> None:
    response = frontend.call("ModelMetadata", pb.ModelMetadataRequest(name="simple"))
    assert (response.name, list(response.versions), response.platform) == ("simple", ["1"], "python")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in response.inputs] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    assert [tensor.name for tensor in response.outputs] == ["OUTPUT0", "OUTPUT1"]


def test_model_config(frontend: Frontend) -> None:
    for model in MODELS:
        config = frontend.call("ModelConfig", pb.ModelConfigRequest(name=model["name"])).config
        assert (config.name, config.max_batch_size) == (model["name"], model["max_batch_size"])
        assert [list(tensor.dims) for tensor in config.input] == [tensor["dims"] for tensor in model["input"]]
        assert config.model_transaction_policy.decoupled == model["model_transaction_policy"]["decoupled"]


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig"])
def test_unknown_models(frontend: Frontend, method: str) -> None:
    request = getattr(pb, method + "Request")(name="nope")
    assert refusal(frontend.call, method, request) == ("NOT_FOUND", "Request for unknown model: 'nope' is not found")


def test_statistics(frontend: Frontend) -> None:
    durations: dict[str, Any] = {
        kind: Duration(i + 1, (i + 1) * 1000)
        for i, kind in enumerate(
            ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
        )
    }
    batch = BatchStatistics(4, Duration(1, 2), Duration(3, 4), Duration(5, 6))
    found = ModelStatistics("simple", 1, 1700000000123, 8, 2, **durations, batches=(batch,), pending_count=0)
    frontend.requester.answers.append([found])
    response = frontend.call("ModelStatistics", pb.ModelStatisticsRequest(name="simple", version="1"))
    assert frontend.requester.messages[-1] == AskStatistics(0, "simple", 1)
    (model,) = response.model_stats
    assert (model.name, model.version, model.last_inference) == ("simple", "1", 1700000000123)
    assert (model.inference_count, model.execution_count) == (8, 2)
    for kind, duration in durations.items():
        shown = getattr(model.inference_stats, kind)
        assert (shown.count, shown.ns) == (duration.count, duration.ns)
    assert model.batch_stats[0].batch_size == 4
    assert (model.batch_stats[0].compute_output.count, model.batch_stats[0].compute_output.ns) == (5, 6)


def test_statistics_of_what_there_is_not(frontend: Frontend) -> None:
    for name, version, text in (
        ("nope", "", "requested model 'nope' is not available"),
        ("simple", "9", "requested model version is not available for model 'simple'"),
    ):
        request = pb.ModelStatisticsRequest(name=name, version=version)
        assert refusal(frontend.call, "ModelStatistics", request) == ("INVALID_ARGUMENT", text)


def test_index() -> None:
    extra = (
        ModelEntry("broken", 2, "UNAVAILABLE", "it is broken", False),
        ModelEntry("untouched", 0, "UNKNOWN", "", False),
    )
    with Frontend() as frontend:
        frontend.do(lambda: frontend.requester.models.update(table(extra=extra)))
        rows = {model.name: model for model in frontend.call("RepositoryIndex").models}
        assert (rows["simple"].version, rows["simple"].state, rows["simple"].reason) == ("1", "READY", "")
        assert (rows["broken"].version, rows["broken"].state) == ("2", "UNAVAILABLE")
        assert rows["broken"].reason == "it is broken"
        assert rows["untouched"] == pb.RepositoryIndexResponse.ModelIndex(name="untouched")
        ready = frontend.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
        assert {model.name for model in ready} == {model["name"] for model in MODELS}


def load_request(**parameters: Any) -> Any:
    request = pb.RepositoryModelLoadRequest(model_name="m")
    for key, value in parameters.items():
        field = {str: "string_param", bytes: "bytes_param", bool: "bool_param"}[type(value)]
        setattr(request.parameters[key.replace("__", ":")], field, value)
    return request


def test_load_and_unload(frontend: Frontend) -> None:
    config = json.dumps({"backend": "python"})
    frontend.call("RepositoryModelLoad", load_request())
    frontend.call("RepositoryModelLoad", load_request(config=config, file__1=b"\0\xff"))
    frontend.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"))
    request = pb.RepositoryModelUnloadRequest(model_name="m")
    request.parameters["unload_dependents"].bool_param = True
    frontend.call("RepositoryModelUnload", request)
    assert frontend.requester.messages[-4:] == [
        LoadModel(0, "m"),
        LoadModel(0, "m", config, {"1": b"\0\xff"}),
        UnloadModel(0, "m"),
        UnloadModel(0, "m", True),
    ]


def test_loads_that_are_refused(frontend: Frontend) -> None:
    for request, text in (
        (load_request(config=b"{}"), "invalid value type for load parameter 'config', expected string_param."),
        (load_request(file__1="text"), "invalid value type for load parameter 'file:1', expected bytes_param."),
        (load_request(other="x"), "unrecognized load parameter 'other'."),
    ):
        assert refusal(frontend.call, "RepositoryModelLoad", request) == ("INVALID_ARGUMENT", text)
    request = pb.RepositoryModelUnloadRequest(model_name="m")
    request.parameters["unload_dependents"].int64_param = 1
    assert refusal(frontend.call, "RepositoryModelUnload", request) == (
        "INVALID_ARGUMENT",
        "invalid value type for 'unload_dependents' parameter, expected bool_param.",
    )
    for method in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"):
        request = getattr(pb, method + "Request")(repository_name="other")
        assert refusal(frontend.call, method, request) == NO_REPOSITORY


@pytest.mark.parametrize(
    ("error", "code"),
    [(NotReady("explicit model load / unload is not allowed"), "UNAVAILABLE"), (PollFailed("no"), "INTERNAL")],
)
def test_what_the_broker_refuses(frontend: Frontend, error: Any, code: str) -> None:
    frontend.requester.answers.append(error)
    assert refusal(frontend.call, "RepositoryModelLoad", load_request()) == (code, error.message)


def test_a_bug_shows_nothing(frontend: Frontend) -> None:
    frontend.requester.answers.append(["not statistics"])
    with pytest.raises(Refused) as raised:
        frontend.call("ModelStatistics")
    code, text = raised.value.args
    assert code == "INTERNAL"
    assert "not statistics" not in text
