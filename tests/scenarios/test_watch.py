"""Working on a model with a server beside it: ``--watch``, the models' output, and ``--debug``."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from tests.ports import free_port
from tests.scenarios.harness import REPOSITORY_ROOT, Server, serving

MODEL = """
import helper
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(0)
        config.add_input({"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_INT32", "dims": [-1]})
        return config

    def initialize(self, args):
        print("hello from", args["model_name"], helper.VALUE)

    def execute(self, requests):
        value = helper.VALUE
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() + value)]
            )
            for request in requests
        ]
"""


def write(repository: Path, name: str, value: str = "1", code: str = MODEL) -> Path:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "helper.py").write_text(f"VALUE = {value}\n")
    (folder / "model.py").write_text(code)
    return folder


def infer(server: Server, model: str) -> int:
    with tritonclient.http.InferenceServerClient(server.url) as client:
        wanted = tritonclient.http.InferInput("IN", [1], "INT32")
        wanted.set_data_from_numpy(np.array([0], np.int32))
        found = client.infer(model, [wanted]).as_numpy("OUT")
        assert found is not None
        return int(found[0])


def until(server: Server, text: str) -> None:
    """Reads the server's output until it says this; what came before is left out from then on."""
    server.output = ""
    server.read_output(time.monotonic() + 30, text)
    assert text in server.output, server.report()


def conch(server: Server, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "conch", *arguments, f"--run-dir={server.run_dir}"]


VARIABLES = {**os.environ, "PYTHONPATH": str(REPOSITORY_ROOT)}


@pytest.mark.timeout(120)
def test_one_model_is_loaded_again_when_its_files_change(tmp_path: Path, run_dir: Path) -> None:
    edited = write(tmp_path, "edited")
    write(tmp_path, "other", "5")
    with serving([tmp_path], run_dir, "--watch") as server:
        assert "[edited] hello from edited 1\n" in server.output
        others = server.worker_pids("other")
        assert infer(server, "edited") == 1
        (edited / "helper.py").write_text("VALUE = 2\n")
        until(server, "successfully loaded 'edited'")
        assert "'edited' has changed, it is loaded again" in server.output
        assert infer(server, "edited") == 2

        (edited / "helper.py").write_text("VALUE = !\n")
        until(server, "'edited' version 1 goes on serving as it was loaded before")
        assert "SyntaxError: invalid syntax (helper.py, line 1)" in server.output
        assert infer(server, "edited") == 2

        second = tmp_path / "edited" / "2"
        second.mkdir()
        (second / "model.py").write_text(MODEL.replace("import helper", "class helper:\n    VALUE = 3"))
        until(server, "successfully loaded 'edited'")
        assert infer(server, "edited") == 3
        assert server.worker_pids("other") == others

        shutil.rmtree(tmp_path / "edited")
        until(server, "successfully unloaded 'edited' version 2")
        assert "the folder of 'edited' is gone, it is unloaded" in server.output


@pytest.mark.timeout(60)
def test_a_model_that_is_broken_at_the_start_can_be_mended(tmp_path: Path, run_dir: Path) -> None:
    folder = write(tmp_path, "broken", "nonsense")
    with serving([tmp_path], run_dir, "--watch") as server:
        assert "NameError: name 'nonsense' is not defined" in server.output
        (folder / "helper.py").write_text("VALUE = 4\n")
        until(server, "successfully loaded 'broken'")
        assert infer(server, "broken") == 4


@pytest.mark.timeout(60)
def test_what_a_model_says(tmp_path: Path, run_dir: Path) -> None:
    write(tmp_path, "talks")
    with serving([tmp_path], run_dir) as server:
        found = subprocess.run(
            conch(server, "logs", "talks"), env=VARIABLES, capture_output=True, text=True, timeout=20
        )
        assert found.stdout.splitlines().count("hello from talks 1") == 1 and found.returncode == 0
        lost = subprocess.run(conch(server, "logs", "x"), env=VARIABLES, capture_output=True, text=True, timeout=20)
        assert lost.returncode == 1 and "there are logs of: talks" in lost.stderr


@pytest.mark.timeout(60)
def test_a_terminal_is_told_that_the_process_has_ended(tmp_path: Path, run_dir: Path) -> None:
    folder = write(tmp_path, "stops")
    with serving([tmp_path], run_dir, "--debug=stops", "--watch") as server:
        terminal = subprocess.Popen(
            conch(server, "debug", "stops"), env=VARIABLES, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert terminal.stdin is not None and terminal.stderr is not None
        with terminal:
            assert "attached to 'stops'" in terminal.stderr.readline()
            (folder / "helper.py").write_text("VALUE = 2\n")
            assert "the process of 'stops' has ended: loaded again" in terminal.stderr.read()
            assert terminal.wait(20) == 0
        terminal = subprocess.Popen(
            conch(server, "debug", "stops"), env=VARIABLES, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert terminal.communicate("", timeout=20)[0] == "detached, the model goes on\n"
        assert infer(server, "stops") == 2


@pytest.mark.timeout(60)
def test_a_server_that_has_ended(tmp_path: Path, run_dir: Path) -> None:
    write(tmp_path, "hangs", code=MODEL + "\n    def finalize(self):\n        __import__('time').sleep(60)\n")
    variables = {**VARIABLES, "XDG_RUNTIME_DIR": str(run_dir)}
    server = Server([tmp_path], run_dir, ["--debug=hangs"])
    try:
        server.start()
        assert server.process is not None
        server.process.send_signal(signal.SIGINT)
        until(server, "waiting for requests and models to finish (hangs; a second Ctrl-C leaves them 2 s)")
        server.process.send_signal(signal.SIGINT)
        assert server.wait(20) == 1
    finally:
        server.kill_everything()
    left = [*run_dir.glob("*.sock"), *run_dir.glob("broker.*")]
    assert [path.name for path in left if path.suffix != ".lock"] == []
    port = free_port()
    (run_dir / f"conch-{port}").symlink_to(run_dir)
    command = [sys.executable, "-m", "conch", "logs", "hangs", f"--http-port={port}"]
    found = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=20)
    assert found.returncode == 0 and "hello from hangs 1" in found.stdout, found.stderr
    assert f"this is what the last one has left in {run_dir}/conch-{port}" in found.stderr


@pytest.mark.timeout(60)
def test_a_terminal_attaches_to_a_model(tmp_path: Path, run_dir: Path) -> None:
    write(tmp_path, "stops")
    with serving([tmp_path], run_dir, "--debug=stops") as server:
        lost = subprocess.run(conch(server, "debug", "x"), env=VARIABLES, capture_output=True, text=True, timeout=20)
        assert lost.returncode == 1 and "start the server with --debug=x" in lost.stderr
        terminal = subprocess.Popen(
            conch(server, "debug", "stops"), env=VARIABLES, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert terminal.stdin is not None and terminal.stdout is not None and terminal.stderr is not None
        with terminal:
            assert "attached to 'stops'" in terminal.stderr.readline()
            answers: list[int] = []
            client = threading.Thread(target=lambda: answers.append(infer(server, "stops")))
            client.start()
            assert "model.py(" in terminal.stdout.readline()
            second = subprocess.run(
                conch(server, "debug", "stops"), env=VARIABLES, capture_output=True, text=True, timeout=20
            )
            assert (
                second.returncode == 1
                and f"another terminal is attached to 'stops': pid {terminal.pid}" in second.stderr
            )
            terminal.stdin.write("n\nvalue = 40\nq\n")
            terminal.stdin.flush()
            client.join(20)
            assert answers == [40]
            assert "detached, the model goes on\n" in terminal.stdout.read()
            assert terminal.wait(20) == 0
