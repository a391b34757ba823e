"""Models' logs stay within bounds, whoever has them open."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.harness import Stage, ints
from tests.workers.test_launcher import died, eventually, pid_of
from tests.workers.test_python_model import model
from workers.log_bounds import COPY_EVERY_S, KEPT_LOGS, MAX_LOG_NBYTES, LogBounds, rotate

MIB = 1 << 20
FLOODS = model("""
for _ in range(x[0, 0]):
    sys.stdout.write(("x" * 1023 + "\\n") * 1024)
print("over")
response = InferenceResponse([Tensor("OUT", x)])
""")


@pytest.fixture
def bounds() -> Iterator[LogBounds]:
    bounds = LogBounds()
    yield bounds
    bounds.close()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "m.log"


def sizes(log: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(log.parent.iterdir())}


def fill(log: Path, text: str, nbytes: int) -> None:
    """To that size; ``text`` comes last."""
    os.truncate(log, nbytes - len(text))
    with log.open("a") as file:
        file.write(text)


def test_a_short_log_is_left_alone(bounds: LogBounds, log: Path) -> None:
    log.write_text("short")
    bounds.look([log, log.with_name("missing.log")], now=100)
    assert bounds.next_look == 101
    bounds.close()
    assert sizes(log) == {"m.log": 5}


def test_a_long_log_is_kept_in_pieces(bounds: LogBounds, log: Path) -> None:
    """Those who have it open go on at its beginning."""
    with log.open("a") as writer:
        for number in range(KEPT_LOGS + 2):
            fill(log, f"round {number}", MAX_LOG_NBYTES + 100)
            bounds.look([log], now=100 + number * (COPY_EVERY_S + 1))
            bounds.close()
        writer.write("after")
    assert sizes(log) == {"m.log": 5, "m.log.1": MAX_LOG_NBYTES, "m.log.2": MAX_LOG_NBYTES, "m.log.3": MAX_LOG_NBYTES}
    for number in range(1, KEPT_LOGS + 1):
        with log.with_name(f"m.log.{number}").open("rb") as file:
            file.seek(-7, os.SEEK_END)
            assert file.read() == b"round %d" % (KEPT_LOGS + 2 - number)


def test_a_log_that_grows_fast_is_looked_at_sooner_and_not_copied_each_time(bounds: LogBounds, log: Path) -> None:
    log.touch()
    bounds.look([log], now=100)
    os.truncate(log, MAX_LOG_NBYTES // 2)
    bounds.look([log], now=101.25)
    assert bounds.next_look == 102.25
    bounds.look([log], now=101.75)
    assert bounds.next_look == 102.25, "it is not time yet"
    os.truncate(log, MAX_LOG_NBYTES)
    bounds.look([log], now=102.25)
    for _ in range(3):
        os.truncate(log, 2 * MAX_LOG_NBYTES)
        now = bounds.next_look
        bounds.look([log], now)
        assert bounds.next_look - now < 0.5
        bounds.close()
    assert sizes(log) == {"m.log": 0, "m.log.1": MAX_LOG_NBYTES}


def test_a_log_that_cannot_be_copied_is_cut(log: Path) -> None:
    """As on a full disk."""
    log.touch()
    fill(log, "end", MAX_LOG_NBYTES + 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, hard))
    try:
        rotate(log)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    assert sizes(log) == {"m.log": 0}


def test_a_model_that_prints_without_end(stage: Stage) -> None:
    """Two processes print; what a third one says last is still told when it dies."""
    config = stage.model("floods", FLOODS)
    first, second = stage.ready(config), stage.ready(config)
    log = stage.run_dir.model_log("floods")
    for worker in (first, second):
        stage.send(worker, stage.requester.request("floods", stage.requester.put("IN", ints(60))))
    for worker in (first, second):
        stage.requester.response(worker)
    eventually(lambda: log.stat().st_size < MAX_LOG_NBYTES, "it is not cut")
    kept = [path for path in log.parent.iterdir() if path.name.startswith("floods.log.")]
    assert kept and all(path.stat().st_size <= MAX_LOG_NBYTES for path in kept)
    os.kill(pid_of(stage, first), signal.SIGKILL)
    died(stage, first)
    stage.ask(second, "floods", ints(0))
    os.kill(pid_of(stage, second), signal.SIGKILL)
    assert died(stage, second).output_tail.endswith("over\n")
