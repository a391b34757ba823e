"""How Python models are loaded: configurations completed apart, models that say whether they are ready, backends that
are Python files, and code that was changed a moment ago."""

import json
import os
from pathlib import Path

import pytest

from conch.messages import Checked, CheckReady, Completed, Died, Drain, Ready
from tests.workers.harness import Stage, ints
from tests.workers.test_python_model import model

COMPLETES = (
    """
import os
STATE = []

"""
    + model("response = InferenceResponse([Tensor('OUT', x + len(STATE))])")
    + """
    @staticmethod
    def auto_complete_config(config):
        STATE.append("seen")
        print("completed in", os.getpid())
        config.set_max_batch_size(4)
        return config
"""
)


def test_a_model_that_completes_its_configuration_does_so_in_a_process_that_ends(stage: Stage) -> None:
    config = stage.model("completes", COMPLETES, {"max_batch_size": 0})
    worker = stage.spawn(config, complete=True)
    completed = stage.broker.expect(Completed)
    assert completed.ends and json.loads(completed.config)["max_batch_size"] == 4
    stage.broker.to_control(worker, Drain())
    died = stage.broker.expect(Died)
    assert (died.worker, died.exit_code) == (worker, 0)
    loaded = stage.ready(json.loads(completed.config))
    assert stage.ask(loaded, "completes", ints(1)) == 1  # nothing of the other process is seen


def test_a_model_that_completes_nothing_goes_on_in_its_process(stage: Stage) -> None:
    code = model("response = InferenceResponse([Tensor('OUT', x)])")
    worker, _ = stage.complete(stage.model("plain", code))
    assert stage.ask(worker, "plain", ints(1)) == 1


# ------------------------------------------------------------------------------------------------------------ readiness

ANSWERS = {
    "return True": True,
    "return False": False,
    "raise RuntimeError('no')": False,
    "raise SystemExit(1)": False,
    "return 'ready'": False,
    "return 1": False,
}


def check(stage: Stage, worker: str, number: int) -> bool:
    stage.broker.to_control(worker, CheckReady(number))
    checked = stage.broker.expect(Checked)
    assert (checked.worker, checked.check) == (worker, number)
    return checked.ready


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_models_that_say_whether_they_are_ready(stage: Stage, kind: str) -> None:
    branches = "".join(
        f"        if self.asked == {number}:\n            {statement}\n" for number, statement in enumerate(ANSWERS)
    )
    code = model("response = InferenceResponse([Tensor('OUT', x)])") + (
        f"    asked = -1\n    {kind} is_ready(self):\n        self.asked += 1\n{branches}"
    )
    worker = stage.spawn(stage.model("says", code))
    assert stage.broker.expect(Ready).checks
    assert [check(stage, worker, number) for number in range(len(ANSWERS))] == list(ANSWERS.values())
    assert "is_ready() must return a bool, not str" in stage.model_log("says")
    assert stage.ask(worker, "says", ints(1)) == 1


def test_inference_goes_on_while_a_model_is_asked(stage: Stage) -> None:
    code = (
        "import threading\nasked, go = threading.Event(), threading.Event()\n"
        + model("assert asked.wait(10)\ngo.set()\nresponse = InferenceResponse([Tensor('OUT', x)])")
        + "    def is_ready(self):\n        asked.set()\n        return go.wait(10)\n"
    )
    worker = stage.ready(stage.model("both", code))
    stage.broker.to_control(worker, CheckReady(7))
    assert stage.ask(worker, "both", ints(1)) == 1
    assert stage.broker.expect(Checked) == Checked(worker, 7, True)


def test_a_model_without_a_word_to_say(stage: Stage) -> None:
    stage.spawn(stage.model("silent", model("response = InferenceResponse([Tensor('OUT', x)])")))
    assert not stage.broker.expect(Ready).checks


# ------------------------------------------------------------------------------------------------ python-based backends


def backend(stage: Stage, code: str, **files: str) -> Path:
    folder = stage.path / "backends" / "adder"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(code)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def data_only(stage: Stage, name: str, number: int) -> dict[str, object]:
    config = stage.model(name, "raise RuntimeError('not this file')", {"backend": "adder"})
    (stage.path / "models" / name / "1" / "number").write_text(str(number))
    return config


ADDER = (
    "import beside\n"
    + model("response = InferenceResponse([Tensor('OUT', x + self.number + beside.VALUE)])")
    + """
    def initialize(self, args):
        print("repository", args["model_repository"], args["model_name"], __file__)
        self.number = int(open(os.path.join(pb_utils.get_model_dir(), "number")).read())
"""
)


def test_a_backend_that_is_a_python_file(stage: Stage) -> None:
    folder = backend(stage, ADDER, beside="VALUE = 100")
    for name, number in (("five", 5), ("six", 6)):
        worker = stage.ready(data_only(stage, name, number), backend_dir=str(folder))
        assert stage.ask(worker, name, ints(1)) == 101 + number
        model_dir = stage.path / "models" / name
        assert f"repository {model_dir} {name} {folder}/model.py\n" in stage.model_log(name)


def test_errors_of_such_a_backend_name_its_file(stage: Stage) -> None:
    folder = backend(
        stage, "class TritonPythonModel:\n    def initialize(self, args):\n        raise ValueError('no good')\n"
    )
    reason = stage.load_failure(data_only(stage, "fails", 1), backend_dir=str(folder))
    assert reason.startswith("ValueError: no good\n\nAt:\n  backends/adder/model.py(")
    assert str(stage.path) not in reason


def test_a_backend_that_is_not_there(stage: Stage) -> None:
    config = stage.model("lost", "", {"backend": "nothing"})
    reason = stage.load_failure(config)
    assert reason == "unable to load model 'lost': there is no backend 'nothing'; there are onnxruntime, python"


# --------------------------------------------------------------------------------------------------------- changed code

#: whatever the environment of the tests says about it
KEEPS = "import sys\nsys.dont_write_bytecode = False\n"


def test_a_helper_that_was_changed_within_the_same_second_is_read_anew(stage: Stage) -> None:
    code = (
        KEEPS
        + "import helper\nfrom . import relative\nfrom inner import deep\n"
        + model("response = InferenceResponse([Tensor('OUT', x + helper.VALUE + relative.VALUE + deep.VALUE)])")
    )
    config = stage.model("changes", code)
    folder = stage.path / "models" / "changes" / "1"
    (folder / "inner").mkdir()
    moment = 0.0
    for number in (1, 2, 3):
        for path in ("helper.py", "relative.py", "inner/deep.py"):
            file = folder / path
            file.write_text(f"VALUE = {number}\n")
            moment = moment or file.stat().st_mtime
            os.utime(file, (moment, moment))
        worker = stage.ready(config)
        assert stage.ask(worker, "changes", ints(0)) == 3 * number


def test_bytecode_of_code_that_rests_is_kept(stage: Stage) -> None:
    config = stage.model("rests", KEEPS + "import helper\n" + model("response = InferenceResponse([Tensor('OUT', x)])"))
    folder = stage.path / "models" / "rests" / "1"
    (folder / "helper.py").write_text("")
    os.utime(folder / "helper.py", (1_600_000_000, 1_600_000_000))
    stage.ready(config)
    assert len(list(folder.glob("__pycache__/helper.*.pyc"))) == 1
    assert not list(folder.glob("__pycache__/model.*.pyc"))
