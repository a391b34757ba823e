"""Defaults: which backend, which instances, which versions."""

from pathlib import Path

import pytest

from broker.repository import BackendSettings, Host, InstancePlan
from broker.repository.config_file import parse_json, to_json
from broker.repository.normalise import normalise, normalise_instance_groups
from conch.errors import InvalidArgument
from tests.broker.repository.models import TENSORS, found, refused, repository, write_model

BACKENDS = [
    ("model.onnx", "onnxruntime", "onnxruntime_onnx"),
    ("model.plan", "tensorrt", "tensorrt_plan"),
    ("model.pt", "pytorch", "pytorch_libtorch"),
    ("model.pt2", "pytorch", "torch_aoti"),
    ("model.xml", "openvino", ""),
    ("model.py", "python", ""),
]


@pytest.mark.parametrize(("artifact", "backend", "platform"), BACKENDS)
@pytest.mark.parametrize("how", ["artifact", "backend", "platform", "filename"])
def test_one_of_backend_platform_and_file_tells_the_others(
    artifact: str, backend: str, platform: str, how: str, tmp_path: Path
) -> None:
    said = {
        "artifact": "",
        "backend": f"backend: '{backend}'" + (f" platform: '{platform}'" if artifact == "model.pt2" else ""),
        "platform": f"platform: '{platform}'",
        "filename": f"default_model_filename: '{artifact}'",
    }[how]
    if how == "platform" and not platform:
        pytest.skip("this backend has no platform")
    write_model(
        tmp_path / "models",
        "m",
        None if how == "artifact" else said,
        artifact=artifact if how == "artifact" else "something.else",
    )
    config = found(repository(tmp_path / "models").poll("m")).config
    assert (config.backend, config.platform, config.default_model_filename) == (backend, platform, artifact)
    assert config.name == "m"


def test_a_custom_backend_s_model_is_known_by_its_name(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m.identity", None, artifact="weights")
    config = found(repository(tmp_path / "models").poll("m.identity")).config
    assert (config.backend, config.default_model_filename) == ("identity", "model.identity")


def test_nothing_tells_the_backend(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", None, versions=())
    assert refused(repository(tmp_path / "models").poll("m")).message == (
        "Invalid model name: Could not determine backend for model 'm' with no backend in model configuration. "
        "Expected model name of the form 'model.<backend_name>'."
    )


def test_a_backend_of_one_s_own(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", "backend: 'mine' default_model_filename: 'a/b.bin'")
    config = found(repository(tmp_path / "models").poll("m")).config
    assert (config.backend, config.platform, config.default_model_filename) == ("mine", "", "a/b.bin")


@pytest.mark.parametrize(
    ("backend", "groups", "gpus", "plans"),
    [
        ("python", "", (), [("m_0", "CPU", 0)]),
        ("onnxruntime", "", (), [("m_0", "CPU", 0), ("m_1", "CPU", 0)]),
        ("onnxruntime", "instance_group { count: 1 }", (), [("m_0_0", "CPU", 0)]),
        ("onnxruntime", "", (0,), [("m_0", "GPU", 0)]),
        ("python", "", (0, 1), [("m_0", "GPU", 0), ("m_0", "GPU", 1)]),
        ("python", "instance_group { kind: KIND_CPU count: 2 }", (0,), [("m_0_0", "CPU", 0), ("m_0_1", "CPU", 0)]),
        ("python", "instance_group { kind: KIND_GPU gpus: 1 }", (0, 1), [("m_0_0", "GPU", 1)]),
        ("python", "instance_group { gpus: 1 gpus: 0 }", (0, 1), [("m_0_0", "GPU", 1), ("m_0_0", "GPU", 0)]),
        ("python", "instance_group { kind: KIND_MODEL }", (0,), [("m_0_0", "MODEL", 0)]),
        (
            "python",
            "instance_group [ { kind: KIND_CPU }, { name: 'x' kind: KIND_GPU count: 2 } ]",
            (0,),
            [("m_0_0", "CPU", 0), ("x_0", "GPU", 0), ("x_1", "GPU", 0)],
        ),
    ],
)
def test_instances(
    backend: str, groups: str, gpus: tuple[int, ...], plans: list[tuple[str, str, int]], tmp_path: Path
) -> None:
    write_model(tmp_path / "models", "m", f"backend: '{backend}' {TENSORS} {groups}")
    snapshot = found(repository(tmp_path / "models", host=Host(gpus)).poll("m"))
    assert snapshot.fault is None
    assert list(snapshot.instances) == [InstancePlan(*plan) for plan in plans]


def test_a_backend_that_cannot_use_the_gpus_stays_off_them(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", "backend: 'onnxruntime'" + TENSORS)
    host = Host((0,), frozenset({"onnxruntime"}))
    assert {plan.kind for plan in found(repository(tmp_path / "models", host=host).poll("m")).instances} == {"CPU"}


def test_normalising_twice_changes_nothing() -> None:
    config = parse_json('{"name":"m","backend":"python","max_batch_size":4,"dynamic_batching":{}}')
    normalise(config)
    normalise_instance_groups(config, Host((0, 1)))
    once = to_json(config)
    normalise(config)
    normalise_instance_groups(config, Host((0, 1)))
    assert to_json(config) == once
    assert '"preferred_batch_size":[4]' in once


@pytest.mark.parametrize(
    ("policy", "folders", "versions"),
    [
        ("", ("1", "2", "10"), (10,)),
        ("version_policy { latest { num_versions: 2 } }", ("1", "2", "10"), (2, 10)),
        ("version_policy: { all { } }", ("1", "3", "2"), (1, 2, 3)),
        ("version_policy { specific { versions: [ 3, 1, 7 ] } }", ("1", "2", "3"), (1, 3)),
        ("version_policy { all { } }", ("1", "0", "02", "x", "-3", "1.5", "configs", ".git"), (1,)),
        ("version_policy { all { } }", ("1", "9223372036854775807", "9223372036854775808"), (1, (1 << 63) - 1)),
    ],
)
def test_versions(policy: str, folders: tuple[str, ...], versions: tuple[int, ...], tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", f"backend: 'python' {TENSORS} {policy}", versions=folders)
    snapshot = found(repository(tmp_path / "models").poll("m"))
    assert snapshot.versions == versions
    assert snapshot.fault is None
    assert set(snapshot.hashes) == set(versions)


@pytest.mark.parametrize(
    ("policy", "folders"),
    [
        ("", ()),
        ("version_policy { latest { num_versions: 0 } }", ("1",)),
        ("version_policy { specific { versions: [ 2 ] } }", ("1",)),
    ],
)
def test_no_version(policy: str, folders: tuple[str, ...], tmp_path: Path) -> None:
    write_model(tmp_path / "models", "m", f"backend: 'python' {TENSORS} {policy}", versions=folders)
    fault = refused(found(repository(tmp_path / "models").poll("m")))
    assert fault.kind == "InvalidArgument"
    assert fault.message == "at least one version must be available under the version policy of model 'm'"


def test_backend_settings() -> None:
    settings = BackendSettings(
        ["onnxruntime,enable-x=1", "default-max-batch-size=8", "onnxruntime,default-max-batch-size=2"]
    )
    assert settings.for_backend("python") == {"default-max-batch-size": "8"}
    assert settings.for_backend("onnxruntime") == {"default-max-batch-size": "2", "enable-x": "1"}
    for wrong in ("onnxruntime", "onnxruntime,x", "=1", ""):
        with pytest.raises(InvalidArgument, match="--backend-config"):
            BackendSettings([wrong])


@pytest.mark.parametrize(
    ("visible", "present", "expected"),
    [
        (None, 0, ()),
        (None, 2, (0, 1)),
        ("", 2, ()),
        ("1", 2, (0,)),
        ("0,1", 2, (0, 1)),
        ("-1", 2, ()),
        ("0,7,1", 2, (0,)),
        ("GPU-8932f937", 2, (0,)),
    ],
)
def test_gpus(visible: str | None, present: int, expected: tuple[int, ...], tmp_path: Path) -> None:
    for number in range(present):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert Host.detect(environ, tmp_path).gpus == expected
