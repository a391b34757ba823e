"""Lookups, readiness, the index and the metadata, with Triton's words."""

import json
from typing import Literal

import msgspec
import pytest

from conch.errors import InvalidArgument, NotFound, NotReady
from conch.messages import ModelEntry
from conch.requester.models import ModelTableView
from conch.settings import Settings
from frontends import metadata
from frontends.metadata import model_config_json, model_metadata, repository_index, server_metadata
from tests.frontends.samples import entry, table, view

TRITON_EXTENSIONS = [
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "cuda_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
]


CRASHING = "model 'crashing' version 1 keeps crashing and is started again after a pause; try again"


class TestLookup:
    def test_latest_ready_version(self) -> None:
        models = view(entry(version=1), entry(version=3), entry(version=20, state="LOADING"), entry(version=10))
        assert models.lookup("simple").version == 10
        assert models.lookup("simple", "3").version == 3
        assert models.ready_versions("simple") == (1, 3, 10)

    @pytest.mark.parametrize(
        ("name", "version", "kind", "text"),
        [
            ("x", "", NotFound, "Request for unknown model: 'x' is not found"),
            ("x", "1", NotFound, "Request for unknown model: 'x' is not found"),
            ("simple", "9", NotFound, "Request for unknown model: 'simple' version 9 is not found"),
            ("simple", "2", NotReady, "Request for unknown model: 'simple' version 2 is not at ready state"),
            ("loading", "", NotFound, "Request for unknown model: 'loading' has no available versions"),
            ("loading", "1", NotReady, "Request for unknown model: 'loading' version 1 is not at ready state"),
            ("crashing", "", NotReady, CRASHING),
            ("crashing", "1", NotReady, CRASHING),
            ("untouched", "", NotFound, "Request for unknown model: 'untouched' is not found"),
        ],
    )
    def test_absent(self, name: str, version: str, kind: type[Exception], text: str) -> None:
        models = view(
            entry(version=1),
            ModelEntry("simple", 2, "UNAVAILABLE", "unloaded", False),
            entry("loading", 1, state="LOADING"),
            ModelEntry("crashing", 1, "UNAVAILABLE", "it keeps crashing", False, entry("crashing").config),
            ModelEntry("untouched", 0, "UNKNOWN", "", False),
        )
        with pytest.raises(kind) as raised:
            models.lookup(name, version)
        assert str(raised.value) == text

    @pytest.mark.parametrize("version", ["x", "-1", "1.0", "1_0", " 1", "1" * 30, "\u0661", "1\n"])
    def test_version_that_is_no_number(self, version: str) -> None:
        with pytest.raises(InvalidArgument, match="version should be an integral value > 0"):
            view(entry()).lookup("simple", version)

    def test_before_the_first_table(self) -> None:
        with pytest.raises(NotReady, match="the server is starting"):
            ModelTableView().lookup("simple")

    def test_while_exiting(self) -> None:
        with pytest.raises(NotReady, match="Server exiting"):
            view(server="exiting").lookup("simple")

    def test_while_exiting_for_clients_and_for_models(self) -> None:
        exiting = table(entry(), server="exiting")
        outside, inside = ModelTableView(), ModelTableView(inside=True)
        outside.update(exiting)
        inside.update(exiting)
        with pytest.raises(NotReady, match="Server exiting"):
            outside.lookup("simple")
        assert inside.lookup("simple").version == 1 and inside.model_ready("simple")
        with pytest.raises(NotFound):
            inside.lookup("other")

    def test_a_broker_that_was_restarted_and_has_not_looked_at_every_model(self) -> None:
        """Those that were ready are, until it says otherwise or has finished its start."""
        models = view(entry("a", 1), entry("b", 1), entry("c", 1), entry("d", 1), entry("e", 1, state="UNAVAILABLE"))
        starting = [
            ModelEntry("a", 0, "UNKNOWN", "", False),
            entry("b", 1, state="LOADING"),
            entry("c", 1, state="UNAVAILABLE", reason="it crashed"),
            entry("f", 1),
        ]
        for _ in range(2):
            models.update(msgspec.structs.replace(table(*starting, server="starting"), epoch=2))
            assert [models.lookup(name).name for name in ("a", "b", "d", "f")] == ["a", "b", "d", "f"]
            assert [each.name for each in models.index()] == ["a", "b", "c", "d", "f"]
            with pytest.raises(NotFound):
                models.lookup("c")
            with pytest.raises(NotReady, match="the server is starting"):
                models.lookup("e")
        models.update(msgspec.structs.replace(table(*starting), epoch=2))
        assert models.lookup("f").name == "f"
        for name in ("a", "b", "d"):
            with pytest.raises(NotFound):
                models.lookup(name)

    def test_unchanged_models_are_kept_over_updates(self) -> None:
        models = view(entry(), entry("other"))
        before, other = models.lookup("simple"), models.lookup("other")
        models.update(table(entry(), entry("other", max_batch_size=4)))
        assert models.lookup("simple") is before
        assert models.lookup("other") is not other

    def test_unusable_configuration_hides_only_that_model(self) -> None:
        models = view(ModelEntry("broken", 1, "READY", "", True, '{"name": 5}'), entry())
        assert models.lookup("simple").version == 1
        with pytest.raises(NotReady):
            models.lookup("broken", "1")


class TestReady:
    def test_model(self) -> None:
        models = view(entry(version=1), entry(version=2, healthy=False))
        assert models.model_ready("simple", "1")
        assert not models.model_ready("simple")
        with pytest.raises(NotFound):
            models.model_ready("x")

    @pytest.mark.parametrize(
        ("found", "ready"),
        [
            (entry(), True),
            (entry(healthy=False), False),
            (entry(state="UNAVAILABLE", reason="unloaded"), True),
            (entry(state="UNAVAILABLE", reason="failed to load"), False),
            (entry(state="LOADING"), False),
            (entry(state="UNLOADING"), False),
            (ModelEntry("simple", 0, "UNKNOWN", "", False), True),
        ],
    )
    def test_strict_server(self, found: ModelEntry, ready: bool) -> None:
        models = view(entry("other"), found)
        assert models.server_ready(strict=True) is ready
        assert models.server_ready(strict=False)

    def test_server_that_starts_or_lost_its_broker(self) -> None:
        assert not view(entry(), server="starting").server_ready(strict=False)
        models = view(entry())
        models.broker_absent = True
        assert not models.server_ready(strict=False)
        assert not models.model_ready("simple")


class TestMetadata:
    @pytest.mark.parametrize(
        ("allowed", "cuda", "missing"),
        [
            ("true", True, set[str]()),
            ("true", False, {"cuda_shared_memory"}),
            ("false", True, {"cuda_shared_memory", "system_shared_memory"}),
        ],
    )
    def test_server(
        self, allowed: Literal["true", "false"], cuda: bool, missing: set[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(metadata, "cuda_is_here", lambda: cuda)
        found = server_metadata(Settings(server_id="mine", allow_client_shm=allowed))
        assert list(found) == ["name", "version", "extensions"]
        assert found["name"] == "mine"
        assert found["extensions"] == [extension for extension in TRITON_EXTENSIONS if extension not in missing]

    def test_model(self) -> None:
        models = view(entry(version=2), entry(version=1))
        assert json.dumps(model_metadata(models, "simple"), separators=(",", ":")) == (
            '{"name":"simple","versions":["1","2"],"platform":"python",'
            '"inputs":[{"name":"INPUT0","datatype":"INT32","shape":[-1,16]},'
            '{"name":"INPUT1","datatype":"INT32","shape":[-1,16]}],'
            '"outputs":[{"name":"OUTPUT0","datatype":"INT32","shape":[-1,16]},'
            '{"name":"OUTPUT1","datatype":"INT32","shape":[-1,16]}]}'
        )
        assert model_metadata(models, "simple", "1")["versions"] == ["1"]

    def test_model_without_batching_and_with_a_platform(self) -> None:
        strings = [{"name": "TEXT", "data_type": "TYPE_STRING", "dims": [-1]}]
        models = view(entry(max_batch_size=0, platform="onnxruntime_onnx", input=strings))
        found = model_metadata(models, "simple")
        assert found["platform"] == "onnxruntime_onnx"
        assert found["inputs"] == [{"name": "TEXT", "datatype": "BYTES", "shape": [-1]}]

    def test_config_is_passed_on_as_it_is(self) -> None:
        found = entry()
        assert model_config_json(view(found), "simple") == found.config

    def test_index(self) -> None:
        models = view(
            entry("b"),
            entry("a", 2, state="UNAVAILABLE", reason="unloaded"),
            ModelEntry("c", 0, "UNKNOWN", "", False),
            ModelEntry("d", 0, "UNAVAILABLE", "no version", False),
        )
        assert repository_index(models) == [
            {"name": "a", "version": "2", "state": "UNAVAILABLE", "reason": "unloaded"},
            {"name": "b", "version": "1", "state": "READY"},
            {"name": "c"},
            {"name": "d", "state": "UNAVAILABLE", "reason": "no version"},
        ]
        assert repository_index(models, ready_only=True) == [{"name": "b", "version": "1", "state": "READY"}]
