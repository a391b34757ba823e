"""What the launcher tells of workers' deaths in its own log and in the models'."""

import json
import logging
import os
import re
import resource
import signal
from pathlib import Path

import pytest

from conch.messages import Died, Drain
from conch.run_dir import RunDir
from tests.workers.harness import Stage, ints
from tests.workers.test_launcher import died, eventually, pid_of
from tests.workers.test_python_model import ECHO, model
from workers.deaths import tell, without_deaths
from workers.worker_file import WorkerFile

REASON = "had 731 MiB of memory, more than its MEMORY_LIMIT_MIB of 512, and was killed"
UNKNOWN = "ended; how is not known, it was started by a former launcher"
LINE = re.compile(r"[EWI]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ deaths\.py:\d+\] (?P<message>\".*\")\n")


@pytest.fixture
def log(run_dir: Path) -> Path:
    log = RunDir(run_dir).model_log("m")
    log.parent.mkdir(parents=True)
    log.touch()
    return log


def told(run_dir: Path, exit_code: int | None = None, signal_number: int | None = None, reason: str = "") -> None:
    file = WorkerFile("0123456789abcdef", 4711, 1, "m", 1, 0, "hash", 0, "m_0_0")
    tell(file, Died(file.worker, file.pid, exit_code, signal_number, reason=reason), RunDir(run_dir))


def messages(text: str) -> list[str]:
    return [json.loads(match["message"]) for match in LINE.finditer(text)]


@pytest.mark.parametrize(
    ("exit_code", "signal_number", "reason", "letter", "how"),
    [
        (None, signal.SIGSEGV, "", "E", "was killed by SIGSEGV"),
        (None, signal.SIGKILL, REASON, "E", f"was killed by SIGKILL: it {REASON}"),
        (None, 40, "", "E", "was killed by signal 40"),
        (3, None, "", "E", "exited with code 3"),
        (None, None, "", "I", UNKNOWN),
        (None, None, REASON, "E", REASON),
    ],
)
def test_a_death_in_words(
    run_dir: Path,
    log: Path,
    caplog: pytest.LogCaptureFixture,
    exit_code: int | None,
    signal_number: int | None,
    reason: str,
    letter: str,
    how: str,
) -> None:
    with caplog.at_level(logging.INFO, "conch.workers.launcher"):
        told(run_dir, exit_code, signal_number, reason)
    text = log.read_text()
    assert text.startswith(letter) and messages(text) == [f"the worker of instance 'm_0_0', pid 4711, {how}"]
    (record,) = caplog.records
    assert record.getMessage() == f"worker 0123456789abcdef of 'm', pid 4711, {how}"
    assert record.levelname[0] == letter


def test_a_worker_that_ends_by_itself_leaves_the_models_log_alone(run_dir: Path, log: Path) -> None:
    told(run_dir, exit_code=0)
    assert log.read_text() == ""


def test_a_death_has_a_line_of_its_own(run_dir: Path, log: Path) -> None:
    """The worker may have died within one. The lines can be taken out again."""
    log.write_text("before\nwithin a li")
    told(run_dir, exit_code=3)
    told(run_dir, exit_code=4)
    text = log.read_text()
    assert text.startswith("before\nwithin a li\nE") and len(messages(text)) == 2 and text.count("\n") == 4
    with log.open("a") as file:
        file.write('E1121 08:29:12.123456 4711 model.py:1] "mine"\nafter')
    left = without_deaths(log.read_bytes()).decode()
    assert left == 'before\nwithin a li\nE1121 08:29:12.123456 4711 model.py:1] "mine"\nafter'


def test_a_death_on_a_full_disk(run_dir: Path, log: Path) -> None:
    log.write_text("before\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
    try:
        told(run_dir, exit_code=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert log.read_text() == "before\n"
    log.unlink()
    log.mkdir()
    told(run_dir, exit_code=3)


def test_a_worker_that_says_nothing_is_told_of(stage: Stage) -> None:
    """Not as the last words of another one, that was there before or comes after."""
    config = stage.model("silent", model("import os\nos._exit(3)"))
    first, second = stage.ready(config), stage.ready(config)
    for worker in (first, second, stage.ready(config)):
        stage.send(worker, stage.requester.request("silent", stage.requester.put("IN", ints(1))))
        message = died(stage, worker)
        assert (message.exit_code, message.output_tail) == (3, "")
        expected = f"the worker of instance 'silent_0_0', pid {message.pid}, exited with code 3"
        assert messages(stage.model_log("silent"))[-1] == expected
    log = (stage.path / "launcher.log").read_text()
    assert f"worker {first} of 'silent', pid {pid_of(stage, first)}, exited with code 3" in log


def test_a_crash_ends_with_the_time_and_the_process(stage: Stage) -> None:
    """While others of the model die as well."""
    config = stage.model("crashes", model("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"))
    first, second = stage.ready(config), stage.ready(config)
    os.kill(pid_of(stage, first), signal.SIGKILL)
    died(stage, first)
    stage.send(second, stage.requester.request("crashes", stage.requester.put("IN", ints(1))))
    tail = died(stage, second).output_tail
    assert "most recent call first" in tail and not messages(tail)
    assert [message.rpartition(" ")[2] for message in messages(stage.model_log("crashes"))] == ["SIGKILL", "SIGSEGV"]
    assert stage.model_log("crashes").endswith('was killed by SIGSEGV"\n')


def test_how_a_worker_of_a_former_launcher_has_ended_is_not_known(own_stage: Stage) -> None:
    worker = own_stage.ready(own_stage.model("echo", ECHO))
    pid = pid_of(own_stage, worker)
    own_stage.launchers[0].kill()
    own_stage.launchers[0].wait()
    own_stage.start_launcher()
    eventually(lambda: own_stage.broker.listen(0.1) and len(own_stage.broker.launcher_hellos) == 2, "no HELLO")
    own_stage.broker.to_control(worker, Drain())
    died(own_stage, worker)
    (line,) = (each for each in (own_stage.path / "launcher.log").read_text().splitlines() if UNKNOWN in each)
    assert line.startswith("I") and f"worker {worker} of 'echo', pid {pid}, {UNKNOWN}" in line
    assert messages(own_stage.model_log("echo")) == [f"the worker of instance 'echo_0_0', pid {pid}, {UNKNOWN}"]
