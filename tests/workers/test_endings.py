"""Workers that are killed for a reason: what they show first, and what is reported."""

import os
import re
import resource
import signal
from pathlib import Path

import pytest

from conch.messages import Kill
from tests.workers.harness import Stage, ints
from tests.workers.test_launcher import died, eventually, pid_of
from tests.workers.test_python_model import ECHO, model
from workers.endings import SHOW_STACKS

REASON = "ran longer than its EXECUTION_TIMEOUT_S of 2 s and was killed"
HANGS_IN_C = """
import ctypes
print("hangs")
ctypes.PyDLL(None).sleep(1_000_000)
response = None
"""
#: which thread hangs is written before what hangs
STACK = r"Current thread [^\n]*\n  File [^\n]*model\.py\", line \d+ in execute\n"


def execute(stage: Stage, name: str, code: str) -> str:
    """A worker that has begun to run ``code``, which prints that it hangs."""
    worker = stage.ready(stage.model(name, model(code)))
    stage.send(worker, stage.requester.request(name, stage.requester.put("IN", ints(1))))
    eventually(lambda: "hangs" in stage.model_log(name), "the model does not begin")
    return worker


def test_a_worker_that_hangs_shows_where(stage: Stage) -> None:
    """Also while something else holds the interpreter's lock."""
    worker = execute(stage, "hangs", HANGS_IN_C)
    stage.broker.to_launcher(Kill(worker, REASON))
    message = died(stage, worker)
    assert (message.signal, message.reason) == (signal.SIGABRT, REASON)
    assert re.search(STACK, message.output_tail)
    assert stage.model_log("hangs").count("most recent call first") >= 2, "all threads"


def test_where_a_worker_hangs_is_told_however_long_the_stack_is(stage: Stage) -> None:
    deep = "def deeper(number):\n    return deeper(number - 1) if number else ctypes.PyDLL(None).sleep(1_000_000)\n"
    code = f"import ctypes\n{deep}print('hangs')\nresponse = deeper(90)"
    worker = execute(stage, "deep", code)
    stage.broker.to_launcher(Kill(worker, REASON))
    tail = died(stage, worker).output_tail
    assert re.search(r"^Current thread [^\n]*\n  File [^\n]* in deeper\n", tail)
    assert len(tail) <= 2048 and tail.endswith(" in deeper\n")


def test_a_worker_whose_model_has_taken_the_signal_shows_where(stage: Stage) -> None:
    worker = execute(stage, "takes", f"import signal\nsignal.signal(signal.SIGABRT, signal.SIG_IGN){HANGS_IN_C}")
    stage.broker.to_launcher(Kill(worker, REASON))
    message = died(stage, worker)
    assert (message.signal, message.reason) == (signal.SIGKILL, REASON)
    assert re.search(STACK, message.output_tail)


def test_a_stopped_worker_ends(stage: Stage) -> None:
    worker = stage.ready(stage.model("stopped", ECHO))
    os.kill(pid_of(stage, worker), signal.SIGSTOP)
    stage.broker.to_launcher(Kill(worker, REASON))
    message = died(stage, worker)
    assert (message.signal, message.reason) == (signal.SIGKILL, REASON)


def test_a_worker_that_dies_of_something_else(stage: Stage) -> None:
    """Just before it would have been killed, or instead."""
    code = "import os, signal\nsignal.signal(signal.SIGABRT, lambda *_: os._exit(3))\nprint('hangs')\n"
    worker = execute(stage, "exits", f"{code}import time\nwhile True: time.sleep(0.01)\nresponse = None")
    stage.broker.to_launcher(Kill(worker, REASON))
    message = died(stage, worker)
    assert (message.exit_code, message.reason) == (3, "")


def test_a_kill_without_a_reason_comes_at_once(stage: Stage) -> None:
    worker = execute(stage, "hangs_too", HANGS_IN_C)
    stage.broker.to_launcher(Kill(worker))
    message = died(stage, worker)
    assert (message.signal, message.reason) == (signal.SIGKILL, "")
    assert "most recent call first" not in stage.model_log("hangs_too")


@pytest.mark.parametrize("reason", [REASON, ""])
def test_a_worker_of_a_former_launcher(own_stage: Stage, reason: str) -> None:
    worker = own_stage.ready(own_stage.model("echo", ECHO))
    own_stage.launchers[0].kill()
    own_stage.launchers[0].wait()
    own_stage.start_launcher()
    own_stage.broker.to_launcher(Kill(worker, reason))
    message = died(own_stage, worker)
    assert (message.exit_code, message.signal, message.reason) == (None, None, reason)


def test_the_stacks_are_shown_to_whoever_asks(stage: Stage) -> None:
    worker = stage.ready(stage.model("asked", ECHO))
    os.kill(pid_of(stage, worker), SHOW_STACKS)
    eventually(lambda: "most recent call first" in stage.model_log("asked"), "nothing is shown")
    stage.ask(worker, "asked", ints(1))


def test_workers_end_before_the_server_and_leave_no_core(stage: Stage) -> None:
    code = model("""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
response = InferenceResponse([Tensor("OUT", np.array([[child.pid]], np.int32))])
""")
    worker = stage.ready(stage.model("parent", code))
    child = int(stage.ask(worker, "parent", ints(1))[0, 0])
    launchers = int(Path(f"/proc/{stage.launchers[0].pid}/oom_score_adj").read_text())
    for pid in (pid_of(stage, worker), child):
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == min(1000, launchers + 500)
        assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] <= 1
