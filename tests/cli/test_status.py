"""What ``conch status`` shows of instances that are in trouble."""

from pathlib import Path
from typing import Any

import pytest

from conch.cli.status_report import Programs, Report, as_text, duration, make_report
from conch.messages import InstanceStatus, QueueStatus, ServerState, ServerStatus
from conch.run_dir import RunDir


def shown(run_dir: Path, **fields: Any) -> list[str]:
    """The cells of the line of one instance."""
    values: dict[str, Any] = {"state": "ready", "restarts": 0, "executions": 7, **fields}
    instance = InstanceStatus("m", 1, "m_0", "worker", 0, **values)
    models = (QueueStatus("m", 1, "READY", "", 0, 0),)
    text = as_text(make_report(RunDir(run_dir), ServerStatus(1, "ready", 0, (), models, (instance,)), Programs()))
    (line,) = [line for line in text.splitlines() if line.startswith("| m_0")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({"state": "ready"}, "ready"),
        ({"state": "busy", "busy_s": 0.2}, "busy"),
        ({"state": "busy", "busy_s": 12.3}, "busy 12 s"),
        ({"state": "draining", "busy_s": 12.3}, "draining, busy 12 s"),
        ({"state": "backed-off", "retry_in_s": 3.7}, "backed-off, again in 4 s"),
    ],
)
def test_state(run_dir: Path, fields: dict[str, Any], state: str) -> None:
    assert shown(run_dir, **fields)[3] == state


def test_restarts_and_the_last_error(run_dir: Path) -> None:
    why = "the worker of instance 'm_0' was killed by SIGSEGV in execute, model.py line 7"
    assert shown(run_dir, restarts=3, last_error=why, since_death_s=12.4)[-2:] == ["3", f"12 s ago: {why}"]


def report(run_dir: Path, *models: QueueStatus, server: ServerState = "ready", stopping: bool = False) -> Report:
    return make_report(RunDir(run_dir), ServerStatus(1, server, 0, (), models, ()), Programs((), stopping))


def first_line(shown: Report) -> str:
    return as_text(shown).partition(", run directory")[0]


READY = QueueStatus("good", 1, "READY", "", 0, 0)
CRASHY = QueueStatus("crashy", 1, "UNAVAILABLE", "it keeps crashing", 0, 0, False, 312.0)
LOADING = [QueueStatus("big", version, "LOADING", "", 0, 0, False, 40.0) for version in (1, 2)]
PICKY = QueueStatus("picky", 1, "READY", "not ready, the model said when it was asked last", 0, 0, False)


def test_models_that_keep_the_server_from_being_ready(run_dir: Path) -> None:
    shown = report(run_dir, READY, CRASHY, *LOADING, PICKY)
    assert shown.not_ready == ("crashy", "big", "picky")
    assert first_line(shown) == (
        "server ready, but models are not: crashy UNAVAILABLE, big LOADING, picky says so itself "
        "(readiness checks fail unless --strict-readiness=false)"
    )
    assert "| UNAVAILABLE for 5 min |" in as_text(shown) and "| LOADING for 40 s " in as_text(shown)
    assert first_line(report(run_dir, READY)) == "server ready"
    assert first_line(report(run_dir, *LOADING, server="starting")) == "server starting"


def test_a_server_that_stops(run_dir: Path) -> None:
    draining = report(run_dir, READY, CRASHY, stopping=True)
    assert draining.stopping and first_line(draining) == "server stopping"
    exiting = report(run_dir, server="exiting")
    assert exiting.stopping and first_line(exiting) == "server stopping"
    assert first_line(make_report(RunDir(run_dir), None, Programs((), True))) == "server stopping"
    assert first_line(make_report(RunDir(run_dir), None, Programs())) == "server unknown"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (119, "119 s"), (300, "5 min"), (11000, "3 h"), (4 * 86400, "4 days")]
)
def test_how_long(seconds: float, text: str) -> None:
    assert duration(seconds) == text
