"""Backends that are Python files: which models they serve, and what a model sees of them."""

import json
from pathlib import Path

from broker.repository import BackendSettings, Repository
from tests.broker.repository.models import found, write_model

CONFIG = 'backend: "adder" input { name: "IN" data_type: TYPE_FP32 dims: 4 } '


def repository(path: Path) -> Repository:
    return Repository(
        [path / "models"],
        path / "overrides",
        backend_directory=str(path / "backends"),
        backend_settings=BackendSettings(("python,a=1", "adder,a=2")),
    )


def write_backend(path: Path, name: str = "adder") -> Path:
    folder = path / "backends" / name
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("")
    return folder


def test_a_model_of_such_a_backend(tmp_path: Path) -> None:
    folder = write_backend(tmp_path)
    write_model(tmp_path / "models", "m", CONFIG)
    snapshot = found(repository(tmp_path).poll("m"))
    assert snapshot.backend_dir == str(folder) and snapshot.fault is None
    assert json.loads(snapshot.config_json)["runtime"] == "model.py"
    assert snapshot.backend_config == {"a": "1"}  # as in Triton, it is the Python backend that runs it


def test_a_changed_backend_changes_its_models(tmp_path: Path) -> None:
    folder = write_backend(tmp_path)
    write_model(tmp_path / "models", "m", CONFIG)
    before = found(repository(tmp_path).poll("m"))
    (folder / "helper.py").write_text("VALUE = 1")
    after = found(repository(tmp_path).poll("m"))
    assert before.hashes != after.hashes


def test_models_that_have_nothing_to_do_with_it(tmp_path: Path) -> None:
    write_backend(tmp_path)
    write_backend(tmp_path, "python")
    (tmp_path / "backends" / "empty").mkdir()
    for name, backend in (("own", "python"), ("other", "onnxruntime"), ("lost", "empty"), ("up", "../backends/adder")):
        write_model(tmp_path / "models", name, CONFIG.replace("adder", backend))
        snapshot = found(repository(tmp_path).poll(name))
        assert snapshot.backend_dir == ""
        assert "model.py" not in json.loads(snapshot.config_json).get("runtime", "")


def test_a_model_that_insists_on_one_that_is_not_there(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", CONFIG + 'runtime: "model.py"')
    fault = found(repository(tmp_path).poll("m")).fault
    assert fault is not None and fault.kind == "InvalidArgument"
    assert fault.message.endswith("there is no adder/model.py below --backend-directory")
