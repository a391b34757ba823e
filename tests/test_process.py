"""Logging, signals and locks that every process uses."""

import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conch.process import LockHeld, StopSignals, TritonFormatter, hold_lock, lock_holder

ROOT = Path(__file__).parents[1]

HOLD = """
import sys
from pathlib import Path
from conch.process import hold_lock
lock = hold_lock(Path(sys.argv[1]), "pid 4711, HTTP 127.0.0.1:8000")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(run_dir: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run_dir / "x.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate(timeout=10)


def test_a_held_lock_names_its_holder_until_the_holder_dies(run_dir: Path, holder: "subprocess.Popen[str]") -> None:
    path = run_dir / "x.lock"
    try:
        with pytest.raises(LockHeld) as caught:
            hold_lock(path, "me")
        assert caught.value.text == "pid 4711, HTTP 127.0.0.1:8000"
        assert lock_holder(path) == "pid 4711, HTTP 127.0.0.1:8000"
    finally:
        end(holder)
    assert lock_holder(path) is None
    hold_lock(path, "me").release()


def test_a_lock_is_held_once_within_a_process(run_dir: Path) -> None:
    lock = hold_lock(run_dir / "x.lock", "first")
    with pytest.raises(LockHeld, match="first"):
        hold_lock(run_dir / "x.lock", "second")
    assert lock_holder(run_dir / "x.lock") == "first"
    lock.release()
    assert lock_holder(run_dir / "x.lock") is None


def test_a_lock_that_nothing_can_be_written_to_is_held_all_the_same(run_dir: Path) -> None:
    """As on a full disk."""
    path = run_dir / "x.lock"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        lock = hold_lock(path, "me")
        lock.write("me, ready")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    asks = f"from pathlib import Path; from conch.process import lock_holder; print([lock_holder(Path({str(path)!r}))])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", asks], env=environment, timeout=20, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "['']\n"
    lock.release()
    assert lock_holder(path) is None


def test_a_forked_child_does_not_keep_the_lock(run_dir: Path) -> None:
    lock = hold_lock(run_dir / "x.lock", "parent")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    lock.release()
    try:
        hold_lock(run_dir / "x.lock", "next").release()
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_one_event_is_one_line_and_looks_like_triton_s() -> None:
    record = logging.LogRecord("conch.x", logging.WARNING, "/a/server.py", 97, "one\ntwo %s", ('"three"',), None)
    record.created = 1_700_000_000.25
    line = TritonFormatter().format(record)
    start, _, message = line.partition("] ")
    assert start.startswith("W11") and start.endswith(f".250000 {os.getpid()} server.py:97")
    assert json.loads(message) == 'one\ntwo "three"'
    assert "\n" not in line


def test_a_traceback_stays_in_its_event() -> None:
    try:
        raise ValueError("oh")
    except ValueError:
        record = logging.LogRecord("conch.x", logging.ERROR, "a.py", 1, "failed", (), sys.exc_info())
    line = TritonFormatter(iso8601=True).format(record)
    assert "\n" not in line
    assert "ValueError: oh" in line
    assert line.split()[1] == "E"


def test_what_is_logged_changes_while_a_process_runs() -> None:
    lines = """
import logging
from conch.messages import LogSettings
from conch.process import begin, set_logging
from conch.settings import Settings

set_logging(LogSettings(info=False))  # nothing was set up yet
begin(Settings())
for number, log in enumerate((None, LogSettings(warning=False, verbose_level=1, format="ISO8601"), LogSettings())):
    if log is not None:
        set_logging(log)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("conch.x").log(level, "%s %s", number, logging.getLevelName(level))
        logging.getLogger("other").debug("never")
"""
    done = subprocess.run([sys.executable, "-c", lines], stderr=subprocess.PIPE, text=True, timeout=20, check=True)
    shown = [(line[4:5] == "-", json.loads(line.partition("] ")[2])) for line in done.stderr.splitlines()]
    assert shown == [
        *((False, text) for text in ("0 INFO", "0 WARNING", "0 ERROR")),
        *((True, text) for text in ("1 DEBUG", "1 INFO", "1 ERROR")),
        *((False, text) for text in ("2 INFO", "2 WARNING", "2 ERROR")),
    ]


def test_stop_signals_wake_a_poll_and_are_counted() -> None:
    signals = StopSignals()
    try:
        assert signals.take() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([signals], [], [], 5)[0]
        assert signals.take() == 1
        assert not select.select([signals], [], [], 0)[0]
        os.kill(os.getpid(), signal.SIGINT)
        assert select.select([signals], [], [], 5)[0]
        assert signals.take() == 2
    finally:
        signals.close()


def test_a_forked_child_ends_at_a_stop_signal_and_its_parent_hears_of_none() -> None:
    signals = StopSignals()
    try:
        pid = os.fork()
        if not pid:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
        assert signals.take() == 0
    finally:
        signals.close()


BEGIN = "from conch.process import begin; from conch.settings import Settings; begin(Settings.from_environ())"


def test_a_program_whose_supervisord_has_died_before_it_began(run_dir: Path) -> None:
    """It could not be told any more, and would stay for ever."""
    variables = {"SUPERVISOR_ENABLED": "1", "CONCH_RUN_DIR": str(run_dir), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", BEGIN]
    lock = hold_lock(run_dir / "supervisor.lock", "pid 1")
    assert subprocess.run(command, env={**os.environ, **variables}, timeout=20).returncode == 0
    lock.release()
    done = subprocess.run(command, env={**os.environ, **variables}, timeout=20, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "supervisord is gone\n")
