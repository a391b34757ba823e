"""Workers that have more memory than their model may."""

import signal

import pytest

from tests.workers.harness import Stage, ints
from tests.workers.test_launcher import died
from tests.workers.test_python_model import model
from workers.looks import next_look_s
from workers.memory_limits import Memory, reason

MIB = 1 << 20
LIMIT_NBYTES = 256 * MIB
ALLOCATES = model("""
global kept
if x[0, 0] >= 0:
    kept = b"x" * (int(x[0, 0]) << 20)
else:
    import mmap
    kept = mmap.mmap(-1, -int(x[0, 0]) << 20)
    for offset in range(0, len(kept), 4096):
        kept[offset] = 1
response = InferenceResponse([Tensor("OUT", x)])
""")
FORKS = model("""
global child
import subprocess
child = subprocess.Popen([sys.executable, "-c", f"kept = b'x' * ({x[0, 0]} << 20); import time; time.sleep(60)"])
response = InferenceResponse([Tensor("OUT", x)])
""")


def limited(stage: Stage, name: str, code: str) -> str:
    return stage.ready(stage.model(name, code), memory_limit_nbytes=LIMIT_NBYTES)


def allocate(stage: Stage, worker: str, name: str, mib: int) -> None:
    stage.send(worker, stage.requester.request(name, stage.requester.put("IN", ints(mib))))


def test_too_much(stage: Stage) -> None:
    worker = limited(stage, "eats", ALLOCATES)
    stage.ask(worker, "eats", ints(50))
    allocate(stage, worker, "eats", 600)
    message = died(stage, worker)
    assert message.signal == signal.SIGKILL
    assert message.reason.endswith(" MiB of memory, more than its MEMORY_LIMIT_MIB of 256, and was killed")
    assert 256 < int(message.reason.split()[1]) <= 1000
    log = (stage.path / "launcher.log").read_text()
    assert f"worker {worker} of 'eats_0_0'" in log and "more than its MEMORY_LIMIT_MIB of 256: it is killed" in log
    assert f"pid {message.pid}, was killed by SIGKILL: it {message.reason}" in stage.model_log("eats")


def test_shared_memory_does_not_count(stage: Stage) -> None:
    worker = limited(stage, "shares", ALLOCATES)
    stage.ask(worker, "shares", ints(-500))
    allocate(stage, worker, "shares", 500)
    assert "MEMORY_LIMIT_MIB" in died(stage, worker).reason


def test_what_a_model_has_started_counts(stage: Stage) -> None:
    worker = limited(stage, "parent", FORKS)
    allocate(stage, worker, "parent", 500)
    assert "MEMORY_LIMIT_MIB" in died(stage, worker).reason
    assert "private memory in 2 processes" in (stage.path / "launcher.log").read_text()


def test_a_limit_outlives_the_launcher(own_stage: Stage) -> None:
    worker = limited(own_stage, "eats", ALLOCATES)
    own_stage.launchers[0].kill()
    own_stage.launchers[0].wait()
    own_stage.start_launcher()
    own_stage.broker.await_launcher()
    allocate(own_stage, worker, "eats", 600)
    message = died(own_stage, worker)
    assert message.signal is None and "more than its MEMORY_LIMIT_MIB of 256" in message.reason


@pytest.mark.parametrize(
    ("size", "before", "elapsed_s", "wanted_s"),
    [
        (100, 100, 0.1, 0.1),  # it does not grow
        (100, 200, 0.1, 0.1),
        (100, 0, 0.0, 0.1),  # nothing is known yet
        (100, 90, 0.1, 0.1),  # it will take a second
        (800, 400, 0.1, 0.05),  # it reaches 1000 in half a look
        (999, 400, 0.1, 0.005),
        (1200, 400, 0.1, 0.005),
    ],
)
def test_when_to_look_again(size: float, before: float, elapsed_s: float, wanted_s: float) -> None:
    assert next_look_s(size, before, elapsed_s, 1000, 0.005, 0.1) == pytest.approx(wanted_s)


def test_the_reason() -> None:
    text = "had 731 MiB of memory, more than its MEMORY_LIMIT_MIB of 512, and was killed"
    assert reason(Memory(730 * MIB + 1, 1, 0), 512 * MIB) == text
