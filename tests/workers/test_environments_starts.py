"""Workers in environments of their own: as other workers in life and death, and what happens on the way there.

The environments are folders whose interpreter is a script: it runs the tests' own interpreter, hangs or fails.
"""

import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conch.messages import Died, Kill, Preparing, Spawned, SpawnFailed
from tests.processes import all_processes, command_line
from tests.workers.harness import TIMEOUT_S, FakeBroker, Stage, ints
from tests.workers.test_launcher import died, eventually, pid_of
from tests.workers.test_python_model import model

TELLS = "import os\nimport sys\n" + model(
    "print(sys.path, os.environ['CONDA_PREFIX'])\nresponse = InferenceResponse([Tensor('OUT', x)])"
)


@pytest.fixture
def stage(own_stage: Stage, tmp_path: Path) -> Stage:
    own_stage.broker.await_launcher()
    return own_stage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCH_ENVIRONMENT_CACHE_DIR", str(tmp_path / "cache"))


def environment(stage: Stage, name: str = "m", probing: str = "", running: str = "") -> dict[str, Any]:
    """The configuration of a model whose interpreter does ``probing`` before it answers what it is, and ``running``
    before it runs a worker."""
    config = stage.model(name, TELLS)
    path = "$$TRITON_MODEL_DIRECTORY/env"
    python = stage.path / "models" / name / "env" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then {probing or ":"}; else {running or ":"}; fi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o700)
    return config | {"parameters": {"EXECUTION_ENV_PATH": {"string_value": path}}}


def failure(stage: Stage, worker: str) -> str:
    failed = stage.broker.expect(SpawnFailed, where=lambda message: message.worker == worker)
    return failed.fault.message


def children(stage: Stage, what: str) -> list[int]:
    """The launcher's children with that in their command."""
    launcher = stage.launchers[-1].pid
    return [pid for pid, status in all_processes().items() if status.parent == launcher and what in command_line(pid)]


def test_a_life(stage: Stage) -> None:
    config = environment(stage)
    worker = stage.ready(config)
    assert stage.broker.expect(Preparing).worker == worker
    assert stage.broker.expect(Spawned).pid == pid_of(stage, worker)
    pid = pid_of(stage, worker)
    status = all_processes()[pid]
    assert status.parent == stage.launchers[0].pid
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/comm").read_text() == "m_0_0\n"
    assert np.array_equal(stage.ask(worker, "m", ints(5)), ints(5))
    folder = stage.path / "models" / "m" / "env"
    assert f"{stage.run_dir.packages}'] {folder}\n" in stage.model_log("m")
    os.kill(pid, signal.SIGSEGV)
    assert died(stage, worker).signal == signal.SIGSEGV
    again = stage.ready(config)
    stage.broker.to_launcher(Kill(again))
    assert died(stage, again).signal == signal.SIGKILL
    assert not [message for _, message in stage.broker.heard if isinstance(message, Preparing)], "it is known by now"


def test_a_new_launcher_takes_over(stage: Stage) -> None:
    worker = stage.ready(environment(stage))
    stage.launchers[0].kill()
    stage.launchers[0].wait()
    assert np.array_equal(stage.ask(worker, "m", ints(1)), ints(1))
    stage.start_launcher()
    stage.broker.await_launcher()
    assert [alive.worker for alive in stage.broker.launcher_hellos[-1].workers] == [worker]
    stage.broker.to_launcher(Kill(worker))
    died(stage, worker)


def test_workers_share_what_is_prepared_for_them(stage: Stage) -> None:
    gate = stage.path / "gate"
    config = environment(stage, probing=f"while [ ! -e {gate} ]; do sleep 0.01; done")
    workers = [stage.spawn(config) for _ in range(3)]
    for worker in workers:
        stage.broker.expect(Preparing, where=lambda message, worker=worker: message.worker == worker)  # type: ignore[misc]
    assert len(children(stage, "workers.environments.prepare")) == 1
    gate.touch()
    for worker in workers:
        stage.broker.expect(Spawned, where=lambda message, worker=worker: message.worker == worker)  # type: ignore[misc]


def test_an_environment_that_has_changed_is_looked_at_again(stage: Stage) -> None:
    stage.ready(environment(stage))
    config = environment(stage, running="true")
    stage.broker.heard.clear()
    stage.ready(config)
    stage.broker.expect(Preparing)


def test_a_cache_that_was_removed_is_made_again(stage: Stage, tmp_path: Path) -> None:
    config = environment(stage)
    archive = stage.path / "models" / "m" / "env.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(stage.path / "models" / "m" / "env", ".")
    config["parameters"] = {"EXECUTION_ENV_PATH": {"string_value": str(archive)}}
    stage.ready(config)
    shutil.rmtree(tmp_path / "cache")
    worker = stage.ready(config)
    assert np.array_equal(stage.ask(worker, "m", ints(1)), ints(1))


def test_other_models_are_started_meanwhile(stage: Stage) -> None:
    worker = stage.spawn(environment(stage, probing="sleep 600"))
    other = stage.ready(stage.model("echo", TELLS.replace("CONDA_PREFIX", "PATH")))
    assert np.array_equal(stage.ask(other, "echo", ints(1)), ints(1))
    stage.broker.to_launcher(Kill(worker))
    assert failure(stage, worker) == "cannot start a process for 'm_0_0': it was killed"
    eventually(lambda: not children(stage, "workers.environments.prepare"), "its preparation goes on")


@pytest.mark.parametrize("where", ["probing", "running"])
def test_kill_on_the_way(stage: Stage, where: str) -> None:
    waiting = stage.path / "waiting"
    worker = stage.spawn(environment(stage, **{where: f"touch {waiting}; sleep 600"}))
    eventually(waiting.exists, "it does not come as far")
    stage.broker.to_launcher(Kill(worker))
    assert failure(stage, worker).endswith("it was killed")


@pytest.mark.parametrize("where", ["probing", "running"])
def test_the_launcher_s_stop_ends_what_is_on_the_way(stage: Stage, where: str) -> None:
    waiting = stage.path / "waiting"
    stage.spawn(environment(stage, **{where: f"touch {waiting}; sleep 600"}))
    eventually(waiting.exists, "it does not come as far")
    stage.launchers[0].send_signal(signal.SIGTERM)
    assert stage.launchers[0].wait(TIMEOUT_S) == 0


def test_the_launcher_s_death_ends_what_is_prepared(stage: Stage) -> None:
    waiting = stage.path / "waiting"
    stage.spawn(environment(stage, probing=f"touch {waiting}; sleep 600"))
    eventually(waiting.exists, "it does not come as far")
    stage.launchers[0].kill()
    stage.launchers[0].wait()


def test_a_worker_whose_launcher_has_died_does_not_begin_to_live(stage: Stage, tmp_path: Path) -> None:
    waiting, gate = stage.path / "waiting", tmp_path / "gate"
    stage.spawn(environment(stage, running=f"touch {waiting}; while [ ! -e {gate} ]; do sleep 0.01; done"))
    eventually(waiting.exists, "it does not come as far")
    stage.launchers[0].kill()
    stage.launchers[0].wait()
    gate.touch()
    packages = str(stage.run_dir.packages)
    eventually(lambda: not any(packages in command_line(pid) for pid in all_processes()), "it lives on")


def test_another_broker_asks_again(stage: Stage) -> None:
    gate = stage.path / "gate"
    config = environment(stage, probing=f"while [ ! -e {gate} ]; do sleep 0.01; done")
    stage.spawn(config)
    stage.broker.expect(Preparing)
    stage.broker.close()
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    worker = stage.spawn(config)
    stage.broker.expect(Preparing)
    gate.touch()
    assert stage.broker.expect(Spawned).worker == worker


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ({"probing": "echo at /etc/secret >&2; exit 3"}, "its interpreter does not run: at secret"),
        ({"probing": "exit 3"}, "its interpreter does not run: it ended with status 3"),
        ({"probing": "echo nonsense; exit 0"}, "its interpreter does not run: JSON is malformed"),
        ({"probing": "kill -9 $PPID"}, "its preparation was ended from outside"),
    ],
)
def test_an_interpreter_that_does_not_work(stage: Stage, does: dict[str, str], reason: str) -> None:
    worker = stage.spawn(environment(stage, **does))
    message = failure(stage, worker)
    where = "EXECUTION_ENV_PATH '$$TRITON_MODEL_DIRECTORY/env'"
    assert message.startswith(f"unable to load model 'm': {where} gives no environment: {reason}")


def test_an_interpreter_that_ends_before_it_is_a_worker(stage: Stage) -> None:
    worker = stage.spawn(environment(stage, running="echo before; echo no /lib/x.so >&2; exit 3"))
    assert failure(stage, worker) == "cannot start a process for 'm_0_0': its interpreter ended: no x.so"


def test_a_configuration_that_is_too_long(stage: Stage) -> None:
    config = environment(stage)
    config["parameters"]["x"] = {"string_value": "x" * 200_000}
    assert "its configuration is too long" in failure(stage, stage.spawn(config))


def test_what_names_no_environment(stage: Stage) -> None:
    config = stage.model("m", TELLS)
    for path, reason in (
        ("/none", "there is no such file or folder"),
        (str(stage.path), "there is no bin/python in it"),
    ):
        given = {"parameters": {"EXECUTION_ENV_PATH": {"string_value": path}}}
        message = failure(stage, stage.spawn(config | given))
        assert reason in message and str(stage.path) not in message


def test_a_list_that_cannot_be_installed(stage: Stage) -> None:
    config = stage.model("m", TELLS)
    (stage.path / "models" / "m" / "requirements.txt").write_text("this is ! no requirement\n")
    message = failure(stage, stage.spawn(config))
    assert "its requirements.txt gives no environment: pip cannot install what it lists:\nERROR: " in message
    assert str(stage.path) not in message
    assert "this is ! no requirement" in stage.model_log("m")
    assert not [message for _, message in stage.broker.heard if isinstance(message, Died)]


def test_a_packed_environment_s_paths_are_put_right_once(stage: Stage) -> None:
    config = environment(stage)
    folder = stage.path / "models" / "m" / "env"
    (folder / "bin" / "conda-unpack").write_text("import sys\nprint('put right', sys.argv[0])\n")
    archive = stage.path / "models" / "m" / "env.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, ".")
    config["parameters"] = {"EXECUTION_ENV_PATH": {"string_value": str(archive)}}
    first = stage.ready(config)
    assert np.array_equal(stage.ask(first, "m", ints(1)), ints(1))
    os.utime(archive, (0, 0))  # the same content
    stage.ready(config)
    assert len([line for line in stage.model_log("m").splitlines() if line.startswith("put right ")]) == 1
    assert stage.model_log("m").count("Extracting Python execution env") == 1
