"""Folders, labels, overrides, and whether anything changed: on real files."""

import os
import shutil
import time
from pathlib import Path

import pytest

from broker.repository import Override
from broker.repository.overrides import remove_folder, remove_other_folders
from conch.errors import NotFound
from tests.broker.repository.models import TENSORS, found, refused, repository, touch, write_model

LABELLED = """
backend: "python"
input { name: "IN" data_type: TYPE_FP32 dims: 4 }
output { name: "OUT" data_type: TYPE_FP32 dims: 4 label_filename: "%s" }
"""


def test_several_repositories_and_a_name_in_two(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_model(one, "a")
    write_model(two, "b")
    write_model(one, "both")
    write_model(two, "both")
    (one / "a file").touch()
    (one / ".git").mkdir()
    names, snapshots = repository(one, two).poll_all()
    assert names.names == ("a", "b", "both") and names.duplicates == {"both"}
    assert set(snapshots) == {"a", "b"}
    assert found(snapshots["b"]).model_dir == str(two / "b")
    fault = refused(repository(one, two).poll("both"))
    assert fault.message == "failed to poll model 'both': not unique across all model repositories"


def test_names_that_are_not_there(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m")
    models = repository(tmp_path / "models")
    assert refused(models.poll("x")).kind == "PollFailed"
    for name in ("..", "../models", "m/1", "", "a\0b"):
        assert refused(models.poll(name)).kind == "InvalidArgument", name
    assert "/" not in refused(models.poll("x")).message


def test_a_repository_that_cannot_be_read(tmp_path: Path) -> None:
    models = repository(tmp_path / "nowhere")
    with pytest.raises(NotFound):
        models.check()
    assert models.poll_all()[1] == {}
    assert not models.find().complete
    (tmp_path / "nowhere").mkdir()
    models.check()


def test_without_auto_complete_a_configuration_is_needed(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", None)
    assert refused(repository(tmp_path / "models", auto_complete=False).poll("m")).message == (
        "failed to open text file for read config.pbtxt: No such file or directory"
    )
    snapshot = found(repository(tmp_path / "models").poll("m"))
    assert snapshot.complete and snapshot.config.backend == "python"


def test_another_configuration_by_name(tmp_path: Path) -> None:
    other = "backend: 'python' max_batch_size: 7" + TENSORS
    write_model(tmp_path / "models", "m", files={"configs/big.pbtxt": other})
    assert found(repository(tmp_path / "models", config_name="big").poll("m")).config.max_batch_size == 7
    assert found(repository(tmp_path / "models", config_name="none").poll("m")).config.max_batch_size == 0


# --------------------------------------------------------------------------------------------------------------- labels


def test_labels(tmp_path: Path) -> None:
    text = "cat\ndog with spaces\r\n\nlast without end"
    write_model(tmp_path / "models", "m", LABELLED % "labels.txt", files={"labels.txt": text})
    snapshot = found(repository(tmp_path / "models").poll("m"))
    assert snapshot.labels == {"OUT": ("cat", "dog with spaces", "", "last without end")}


@pytest.mark.parametrize("name", ["../secret.txt", "x/../../secret.txt", "link.txt", "/etc/hostname"])
def test_label_files_outside_the_model_s_folder(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models", "m", LABELLED % name)
    (tmp_path / "models" / "secret.txt").write_text("secret")
    (folder / "x").mkdir()
    (folder / "link.txt").symlink_to("../secret.txt")
    snapshot = found(repository(tmp_path / "models").poll("m"))
    assert not snapshot.labels
    assert (
        refused(snapshot).message
        == f"label file path '{name}' for output 'OUT' in model 'm' is outside model directory"
    )
    assert refused(snapshot).kind == "Unsupported"


def test_a_label_file_that_is_not_there(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", LABELLED % "labels.txt")
    fault = refused(found(repository(tmp_path / "models").poll("m")))
    assert fault.message == "failed to open text file for read labels.txt: No such file or directory"


# ------------------------------------------------------------------------------------------------------------ overrides


def test_config_override(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m")
    models = repository(tmp_path / "models")
    override = Override(config='{"backend":"python","maxBatchSize":"16"}')
    snapshot = found(models.poll("m", override))
    assert snapshot.config.max_batch_size == 16 and not snapshot.config.input
    assert snapshot.hashes != found(models.poll("m")).hashes
    assert snapshot.override == override


@pytest.mark.parametrize("config", ["{", '{"foo":1}', '{"name":"other","backend":"python"}', '{"max_batch_size":-1}'])
def test_config_override_that_is_wrong(config: str, tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m")
    refused(repository(tmp_path / "models").poll("m", Override(config=config)))


def test_file_override_replaces_the_folder(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    models = repository(tmp_path / "models")
    files = {"1/model.py": b"one", "file:2/deep/data.bin": b"\0"}
    snapshot = found(models.poll("new", Override(config='{"version_policy":{"all":{}}}', files=files)))
    assert snapshot.versions == (1, 2) and snapshot.config.backend == "python"
    assert Path(snapshot.model_dir, "1/model.py").read_bytes() == b"one"
    assert Path(snapshot.model_dir, "2/deep/data.bin").read_bytes() == b"\0"
    assert not snapshot.override.files and snapshot.override.folder == snapshot.model_dir
    assert Path(snapshot.model_dir).stat().st_mode & 0o077 == 0
    again = found(models.poll("new", snapshot.override))  # what the next broker does
    assert again.hashes == snapshot.hashes and again.model_dir == snapshot.model_dir
    remove_folder(snapshot.override.folder)
    assert not Path(snapshot.model_dir).exists()


@pytest.mark.parametrize(
    "name",
    ["../evil", "1/../../evil", "/evil", "1//model.py", "", ".", "1/..", "1/" + "x" * 300, "1/model.py/inside", "a\0b"],
)
def test_file_override_stays_where_it_belongs(name: str, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    before = set(tmp_path.rglob("*"))
    files = {"1/model.py": b"", name: b"evil"}
    fault = refused(repository(tmp_path / "models").poll("m", Override(config='{"backend":"python"}', files=files)))
    assert fault.kind == "InvalidArgument"
    assert str(tmp_path) not in fault.message
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "overrides"}


def test_file_override_needs_a_config(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m")
    fault = refused(repository(tmp_path / "models").poll("m", Override(files={"1/model.py": b""})))
    assert fault.message == "Load parameter 'config' must be specified for model file override"


def test_left_over_overrides_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("override-a", "override-b", "precious"):
        (tmp_path / name / "1").mkdir(parents=True)
    remove_other_folders(tmp_path, {str(tmp_path / "override-b")})
    remove_folder(str(tmp_path / "precious"))
    assert {entry.name for entry in tmp_path.iterdir()} == {"override-b", "precious"}
    remove_other_folders(tmp_path / "nowhere", set())


# -------------------------------------------------------------------------------------------------------------- changes


def test_what_changes_a_model_and_what_does_not(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "models", "m", versions=("1", "2"), files={"labels.txt": "a", "warmup/x": "b", "1/sub/w.bin": "c"}
    )
    config = folder / "config.pbtxt"
    config.write_text(config.read_text() + "version_policy { all { } }")
    models = repository(tmp_path / "models")

    def hashes() -> dict[int, str]:
        return found(models.poll("m")).hashes

    before = hashes()
    assert before[1] != before[2]
    assert hashes() == before
    (folder / "1" / "__pycache__").mkdir()
    (folder / "1" / "__pycache__" / "model.pyc").touch()
    touch(config)
    touch(folder / "1")
    assert hashes() == before

    config.write_text(config.read_text() + "instance_group { count: 3 }")
    assert hashes() == before, "the number of instances changes no worker"

    touch(folder / "1" / "sub" / "w.bin")
    assert hashes()[1] != before[1] and hashes()[2] == before[2]
    before = hashes()
    (folder / "2" / "extra").touch()
    assert hashes()[1] == before[1] and hashes()[2] != before[2]
    for change in (folder / "labels.txt", folder / "warmup" / "x"):
        before = hashes()
        touch(change)
        assert all(hashes()[version] != before[version] for version in (1, 2)), change
    before = hashes()
    config.write_text(config.read_text() + "max_batch_size: 2")
    assert all(hashes()[version] != before[version] for version in (1, 2))


def test_a_copy_elsewhere_is_another_model(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models", "m")
    before = found(repository(tmp_path / "models").poll("m")).hashes
    shutil.copytree(folder, tmp_path / "other" / "m", copy_function=shutil.copy2)
    assert found(repository(tmp_path / "other").poll("m")).hashes != before


def test_links_may_lead_anywhere_and_nowhere(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "elsewhere", "m")
    (folder / "1" / "loop").symlink_to("..")
    (folder / "1" / "dangling").symlink_to("nowhere")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m").symlink_to(folder)
    assert found(repository(tmp_path / "models").poll("m")).versions == (1,)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_is_not_ours_to_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models", "m")
    folder.chmod(0)
    try:
        assert refused(repository(tmp_path / "models").poll("m")).kind == "PollFailed"
    finally:
        folder.chmod(0o700)


def test_three_models_take_no_time(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_model(tmp_path / "models", name, versions=("1", "2"))
    models = repository(tmp_path / "models")
    models.poll_all()
    best = min(_timed(models) for _ in range(5))
    assert best < 0.05


def _timed(models: object) -> float:
    start = time.perf_counter()
    models.poll_all()  # type: ignore[attr-defined]
    return time.perf_counter() - start
