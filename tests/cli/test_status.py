"""What ``conch status`` shows of instances that are in trouble."""

from pathlib import Path
from typing import Any

import pytest

from conch.cli.status import as_text, make_report
from conch.messages import InstanceStatus, QueueStatus, ServerStatus
from conch.run_dir import RunDir


def shown(run_dir: Path, **fields: Any) -> list[str]:
    """The cells of the line of one instance."""
    values: dict[str, Any] = {"state": "ready", "restarts": 0, "executions": 7, **fields}
    instance = InstanceStatus("m", 1, "m_0", "worker", 0, **values)
    models = (QueueStatus("m", 1, "READY", "", 0, 0),)
    text = as_text(make_report(RunDir(run_dir), ServerStatus(1, "ready", 0, (), models, (instance,)), []))
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
    assert shown(run_dir, restarts=3, last_error=why)[-2:] == ["3", why]
