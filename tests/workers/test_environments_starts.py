"""Workers in environments of their own: as other workers in life and death, and what happens on the way there.

The environments are folders whose interpreter is a script: it runs the tests' own interpreter, hangs or fails.
"""

import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator
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


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONCH_ENVIRONMENT_CACHE_DIR", str(folder))
        yield folder


def environment(stage: Stage, name: str, probing: str = "", running: str = "") -> dict[str, Any]:
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
    """Why it was never born."""
    failed = stage.broker.expect(SpawnFailed, where=lambda message: message.worker == worker)
    stage.alive.remove(worker)
    return failed.fault.message


def children(stage: Stage, what: str) -> list[int]:
    """The launcher's children with that in their command."""
    launcher = stage.launchers[-1].pid
    return [pid for pid, status in all_processes().items() if status.parent == launcher and what in command_line(pid)]


def test_a_life(stage: Stage) -> None:
    config = environment(stage, "life")
    worker = stage.ready(config)
    assert stage.broker.expect(Preparing).worker == worker
    assert stage.broker.expect(Spawned).pid == pid_of(stage, worker)
    pid = pid_of(stage, worker)
    status = all_processes()[pid]
    assert status.parent == stage.launchers[0].pid
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/comm").read_text() == "life_0_0\n"
    assert np.array_equal(stage.ask(worker, "life", ints(5)), ints(5))
    folder = stage.path / "models" / "life" / "env"
    assert f"{stage.run_dir.packages}'] {folder}\n" in stage.model_log("life")
    os.kill(pid, signal.SIGSEGV)
    assert died(stage, worker).signal == signal.SIGSEGV
    again = stage.ready(config)
    stage.broker.to_launcher(Kill(again))
    assert died(stage, again).signal == signal.SIGKILL
    assert not [message for _, message in stage.broker.heard if isinstance(message, Preparing)], "it is known by now"


def test_a_new_launcher_takes_over(own_stage: Stage) -> None:
    worker = own_stage.ready(environment(own_stage, "m"))
    own_stage.launchers[0].kill()
    own_stage.launchers[0].wait()
    assert np.array_equal(own_stage.ask(worker, "m", ints(1)), ints(1))
    own_stage.start_launcher()
    own_stage.broker.await_launcher()
    assert [alive.worker for alive in own_stage.broker.launcher_hellos[-1].workers] == [worker]
    own_stage.broker.to_launcher(Kill(worker))
    died(own_stage, worker)


def test_workers_share_what_is_prepared_for_them(stage: Stage, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    config = environment(stage, "shared", probing=f"while [ ! -e {gate} ]; do sleep 0.01; done")
    workers = [stage.spawn(config) for _ in range(3)]
    for worker in workers:
        stage.broker.expect(Preparing, where=lambda message, worker=worker: message.worker == worker)  # type: ignore[misc]
    eventually(lambda: children(stage, "workers.environments.prepare"), "nothing prepares it")
    assert len(children(stage, "workers.environments.prepare")) == 1
    gate.touch()
    for worker in workers:
        stage.broker.expect(Spawned, where=lambda message, worker=worker: message.worker == worker)  # type: ignore[misc]


def test_an_environment_that_has_changed_is_looked_at_again(stage: Stage) -> None:
    stage.ready(environment(stage, "changed"))
    config = environment(stage, "changed", running="true")
    stage.broker.heard.clear()
    stage.ready(config)
    stage.broker.expect(Preparing)


def test_a_cache_that_was_removed_is_made_again(stage: Stage, cache: Path) -> None:
    config = environment(stage, "removed")
    archive = stage.path / "models" / "removed" / "env.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(stage.path / "models" / "removed" / "env", ".")
    config["parameters"] = {"EXECUTION_ENV_PATH": {"string_value": str(archive)}}
    stage.ready(config)
    shutil.rmtree(cache)
    worker = stage.ready(config)
    assert np.array_equal(stage.ask(worker, "removed", ints(1)), ints(1))


def test_other_models_are_started_meanwhile(stage: Stage) -> None:
    worker = stage.spawn(environment(stage, "slow", probing="sleep 600"))
    other = stage.ready(stage.model("echo", TELLS.replace("CONDA_PREFIX", "PATH")))
    assert np.array_equal(stage.ask(other, "echo", ints(1)), ints(1))
    stage.broker.to_launcher(Kill(worker))
    assert failure(stage, worker) == "cannot start a process for 'slow_0_0': it was killed"
    eventually(lambda: not children(stage, "workers.environments.prepare"), "its preparation goes on")


@pytest.mark.parametrize("where", ["probing", "running"])
def test_kill_on_the_way(stage: Stage, where: str, tmp_path: Path) -> None:
    waiting = tmp_path / "waiting"
    worker = stage.spawn(environment(stage, "killed", **{where: f"touch {waiting}; sleep 600"}))
    eventually(waiting.exists, "it does not come as far")
    stage.broker.to_launcher(Kill(worker))
    assert failure(stage, worker).endswith("it was killed")


@pytest.mark.parametrize("where", ["probing", "running"])
def test_the_launcher_s_stop_ends_what_is_on_the_way(own_stage: Stage, where: str) -> None:
    waiting = own_stage.path / "waiting"
    own_stage.spawn(environment(own_stage, "m", **{where: f"touch {waiting}; sleep 600"}))
    eventually(waiting.exists, "it does not come as far")
    own_stage.launchers[0].send_signal(signal.SIGTERM)
    assert own_stage.launchers[0].wait(TIMEOUT_S) == 0


def test_the_launcher_s_death_ends_what_is_prepared(own_stage: Stage) -> None:
    waiting = own_stage.path / "waiting"
    own_stage.spawn(environment(own_stage, "m", probing=f"touch {waiting}; sleep 600"))
    eventually(waiting.exists, "it does not come as far")
    own_stage.launchers[0].kill()
    own_stage.launchers[0].wait()


def test_a_worker_whose_launcher_has_died_does_not_begin_to_live(own_stage: Stage, tmp_path: Path) -> None:
    waiting, gate = own_stage.path / "waiting", tmp_path / "gate"
    own_stage.spawn(environment(own_stage, "m", running=f"touch {waiting}; while [ ! -e {gate} ]; do sleep 0.01; done"))
    eventually(waiting.exists, "it does not come as far")
    own_stage.launchers[0].kill()
    own_stage.launchers[0].wait()
    gate.touch()
    packages = str(own_stage.run_dir.packages)
    eventually(lambda: not any(packages in command_line(pid) for pid in all_processes()), "it lives on")


def test_another_broker_asks_again(own_stage: Stage) -> None:
    gate = own_stage.path / "gate"
    config = environment(own_stage, "m", probing=f"while [ ! -e {gate} ]; do sleep 0.01; done")
    own_stage.spawn(config)
    own_stage.broker.expect(Preparing)
    own_stage.broker.close()
    own_stage.broker = FakeBroker(own_stage.run_dir, epoch=8)
    worker = own_stage.spawn(config)
    own_stage.broker.expect(Preparing)
    gate.touch()
    assert own_stage.broker.expect(Spawned).worker == worker


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
    worker = stage.spawn(environment(stage, "broken", **does))
    message = failure(stage, worker)
    where = "EXECUTION_ENV_PATH '$$TRITON_MODEL_DIRECTORY/env'"
    assert message.startswith(f"unable to load model 'broken': {where} gives no environment: {reason}")


def test_an_interpreter_that_ends_before_it_is_a_worker(stage: Stage) -> None:
    worker = stage.spawn(environment(stage, "ends", running="echo before; echo no /lib/x.so >&2; exit 3"))
    assert failure(stage, worker) == "cannot start a process for 'ends_0_0': its interpreter ended: no x.so"


def test_a_configuration_that_is_too_long(stage: Stage) -> None:
    config = environment(stage, "long")
    config["parameters"]["x"] = {"string_value": "x" * 200_000}
    assert "its configuration is too long" in failure(stage, stage.spawn(config))


def test_what_names_no_environment(stage: Stage) -> None:
    config = stage.model("nothing", TELLS)
    for path, reason in (
        ("/none", "there is no such file or folder"),
        (str(stage.path), "there is no bin/python in it"),
    ):
        given = {"parameters": {"EXECUTION_ENV_PATH": {"string_value": path}}}
        message = failure(stage, stage.spawn(config | given))
        assert reason in message and str(stage.path) not in message


def test_a_list_that_cannot_be_installed(stage: Stage) -> None:
    config = stage.model("listed", TELLS)
    (stage.path / "models" / "listed" / "requirements.txt").write_text("this is ! no requirement\n")
    message = failure(stage, stage.spawn(config))
    assert "its requirements.txt gives no environment: pip cannot install what it lists:\nERROR: " in message
    assert str(stage.path) not in message
    assert "this is ! no requirement" in stage.model_log("listed")
    assert not [message for _, message in stage.broker.heard if isinstance(message, Died)]


def test_a_packed_environment_s_paths_are_put_right_once(stage: Stage) -> None:
    config = environment(stage, "packed")
    folder = stage.path / "models" / "packed" / "env"
    (folder / "bin" / "conda-unpack").write_text("import sys\nprint('put right', sys.argv[0])\n")
    archive = stage.path / "models" / "packed" / "env.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, ".")
    config["parameters"] = {"EXECUTION_ENV_PATH": {"string_value": str(archive)}}
    first = stage.ready(config)
    assert np.array_equal(stage.ask(first, "packed", ints(1)), ints(1))
    os.utime(archive, (0, 0))  # the same content
    stage.ready(config)
    assert len([line for line in stage.model_log("packed").splitlines() if line.startswith("put right ")]) == 1
    assert stage.model_log("packed").count("Extracting Python execution env") == 1
