"""The launcher: births, deaths, and what lives on when it, its template or its broker does not."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from conch.messages import (
    Died,
    Done,
    Drain,
    Kill,
    Ready,
    Spawned,
    SpawnFailed,
)
from tests.processes import all_processes
from tests.workers.harness import TIMEOUT_S, FakeBroker, Stage, ints
from tests.workers.test_python_model import ECHO, model

HANGS = model("""
import time
while x[0, 0]:
    time.sleep(0.01)
response = InferenceResponse([Tensor("OUT", x)])
""")


@pytest.fixture
def stage(own_stage: Stage) -> Stage:
    return own_stage


def pid_of(stage: Stage, worker: str) -> int:
    return next(hello.pid for hello in stage.broker.hellos if hello.worker == worker)


def died(stage: Stage, worker: str) -> Died:
    return stage.broker.expect(Died, where=lambda message: message.worker == worker)


def eventually(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_birth(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    spawned = stage.broker.expect(Spawned)
    hello = stage.broker.hellos[0]
    assert (hello.worker, hello.pid, hello.model, hello.version) == (worker, spawned.pid, "echo", 1)
    assert hello.config_hash == "hash"
    status = all_processes()[spawned.pid]
    assert status.parent == stage.launchers[0].pid
    assert os.getsid(spawned.pid) == spawned.pid
    assert Path(f"/proc/{spawned.pid}/comm").read_text() == "echo_0_0\n"
    assert stage.run_dir.worker_file(worker).exists()


def test_drain(stage: Stage) -> None:
    code = model("response = InferenceResponse([Tensor('OUT', x)])") + (
        "    def finalize(self):\n        print('finalized')\n"
    )
    worker = stage.ready(stage.model("echo", code))
    request = stage.requester.request("echo", stage.requester.put("IN", ints(1)))
    batches = [stage.send(worker, request), stage.send(worker, request)]
    stage.broker.to_control(worker, Drain())
    for batch in batches:
        stage.done(batch)
    message = died(stage, worker)
    assert (message.exit_code, message.signal) == (0, None)
    assert "finalized" in message.output_tail
    assert not stage.run_dir.worker_file(worker).exists()
    assert len([stage.requester.response(worker) for _ in batches]) == 2


@pytest.mark.parametrize(
    ("statement", "exit_code", "signal_number"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", None, signal.SIGSEGV),
        ("os.abort()", None, signal.SIGABRT),
        ("os._exit(0)", 0, None),
        ("exit(0)", 0, None),
        ("sys.exit(3)", 3, None),
        ("sys.exit('a reason')", 1, None),
    ],
)
def test_a_death_while_executing(
    stage: Stage, statement: str, exit_code: int | None, signal_number: int | None
) -> None:
    worker = stage.ready(stage.model("dies", model(f"print('before')\nresponse = {statement}")))
    stage.send(worker, stage.requester.request("dies", stage.requester.put("IN", ints(1))))
    message = died(stage, worker)
    assert (message.exit_code, message.signal) == (exit_code, signal_number)
    assert "before" in message.output_tail
    if statement == "sys.exit('a reason')":
        (line,) = (line for line in message.output_tail.splitlines() if "ended the process" in line)
        assert "exit('a reason') at model.py:" in line
        assert "in execute" in message.output_tail and message.output_tail.endswith(line + "\n")
    assert not [name for name in os.listdir("/dev/shm") if _is_orphan(name)]
    again = stage.ready(stage.model("echo", ECHO))
    assert np.array_equal(stage.ask(again, "echo", ints(5)), ints(5))


def _is_orphan(name: str) -> bool:
    """Whether a segment with that name is left that only the dead worker can have made: the requester has one."""
    if not name.startswith(f"conch-{os.geteuid()}-"):
        return False
    import fcntl

    with open(f"/dev/shm/{name}", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_what_a_dead_worker_had_sent_is_there(stage: Stage) -> None:
    code = model("response = InferenceResponse([Tensor('OUT', x)])\nif x[0, 0] == 2: os._exit(1)")
    worker = stage.ready(stage.model("dies", code))
    first, second = [stage.requester.request("dies", stage.requester.put("IN", ints(number))) for number in (1, 2)]
    stage.send(worker, first)
    stage.broker.expect(Done)
    stage.send(worker, second)
    died(stage, worker)
    stage.requester.until_closed(worker)
    (response,) = stage.requester.responses
    assert response.id == first.id
    assert np.array_equal(stage.requester.outputs(response)["OUT"], ints(1))


def test_kill_ends_the_whole_group(stage: Stage) -> None:
    code = model("""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
response = InferenceResponse([Tensor("OUT", np.array([[child.pid]], np.int32))])
""")
    worker = stage.ready(stage.model("parent", code))
    child = int(stage.ask(worker, "parent", ints(1))[0, 0])
    assert child in all_processes()
    stage.broker.to_launcher(Kill(worker))
    message = died(stage, worker)
    assert (message.exit_code, message.signal) == (None, signal.SIGKILL)
    eventually(lambda: child not in all_processes(), "the child of the worker lives on")


def test_kill_before_it_is_ready(stage: Stage) -> None:
    code = "import time\ntime.sleep(60)"
    worker = stage.spawn(stage.model("slow", code))
    stage.broker.to_launcher(Kill(worker))
    assert died(stage, worker).signal == signal.SIGKILL


def test_a_death_while_loading(stage: Stage) -> None:
    worker = stage.spawn(stage.model("dies", "import os\nprint('importing')\nos._exit(7)"))
    message = died(stage, worker)
    assert (message.exit_code, message.signal) == (7, None)
    assert message.output_tail == "importing\n"


def test_output_and_logging_land_in_the_models_log(stage: Stage) -> None:
    code = model("""
import logging
print("printed")
print("to stderr", file=sys.stderr)
os.system("echo from a child")
logging.getLogger("mine").warning("logged")
pb_utils.Logger.log_info("by\\nLogger")
pb_utils.Logger.log("in trouble", pb_utils.Logger.ERROR)
pb_utils.Logger.log_verbose("not shown")
response = InferenceResponse([Tensor("OUT", x)])
""")
    worker = stage.ready(stage.model("speaks", code))
    stage.ask(worker, "speaks", ints(1))
    lines = stage.model_log("speaks").splitlines()
    pid = pid_of(stage, worker)
    assert [line for line in lines if line in ("printed", "to stderr", "from a child")] == [
        "printed",
        "to stderr",
        "from a child",
    ]
    assert any(line.startswith("W") and f" {pid} model.py:" in line and line.endswith('] "logged"') for line in lines)
    assert any(line.startswith("I") and "model.py:" in line and line.endswith('] "by\\nLogger"') for line in lines)
    assert any(line.startswith("E") and line.endswith('] "in trouble"') for line in lines)
    assert "not shown" not in "".join(lines)


def test_the_tail_of_the_output_is_this_workers(stage: Stage) -> None:
    config = stage.model("dies", "import os\nprint('x' * 5000, os.environ['HOME'] and 'end')\nos._exit(1)")
    worker = stage.spawn(config)
    tail = died(stage, worker).output_tail
    assert len(tail) == 2048 and tail.endswith("x end\n")
    config = stage.model("dies", "import os\nprint('short')\nos._exit(1)")
    assert died(stage, stage.spawn(config)).output_tail == "short\n"


def test_the_tail_of_the_output_begins_with_a_line(stage: Stage) -> None:
    config = stage.model("dies", "import os\nfor n in range(1000):\n    print('line', n)\nos._exit(1)")
    tail = died(stage, stage.spawn(config)).output_tail
    assert tail.startswith("line ") and tail.endswith("line 999\n")


def test_what_another_process_has_printed_is_not_taken_for_this_one_s_last_words(stage: Stage) -> None:
    says = model("print('said by', os.getpid())\npb_utils.Logger.log_warn(f'of {os.getpid()}')\nresponse = None")
    config = stage.model("talks", says)
    first, second, third = stage.ready(config), stage.ready(config), stage.ready(config)
    pids = {worker: pid_of(stage, worker) for worker in (first, second, third)}
    for worker in (first, second, third):
        stage.send(worker, stage.requester.request("talks", stage.requester.put("IN", ints(1))))
        eventually(lambda pid=pids[worker]: f"of {pid}" in stage.model_log("talks"), "its words")
    os.kill(pids[first], signal.SIGKILL)
    tail = died(stage, first).output_tail
    assert f"of {pids[first]}" in tail and "said by" not in tail and f"{pids[second]}" not in tail
    os.kill(pids[second], signal.SIGKILL)
    died(stage, second)
    stage.send(third, stage.requester.request("talks", stage.requester.put("IN", ints(1))))
    eventually(lambda: stage.model_log("talks").count(f"of {pids[third]}") == 2, "its words")
    os.kill(pids[third], signal.SIGKILL)
    tail = died(stage, third).output_tail
    assert f"said by {pids[third]}" in tail and str(pids[second]) not in tail


def test_the_template_is_started_again(stage: Stage) -> None:
    first = stage.ready(stage.model("echo", ECHO))
    (template,) = [
        pid
        for pid, status in all_processes().items()
        if status.parent == stage.launchers[0].pid and pid != pid_of(stage, first)
    ]
    os.kill(template, signal.SIGKILL)
    second = stage.spawn(stage.model("echo", ECHO))
    stage.broker.expect(Ready, where=lambda message: message.worker == second)
    for worker in (first, second):
        assert np.array_equal(stage.ask(worker, "echo", ints(1)), ints(1))


def test_a_new_launcher_takes_over(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    pid = pid_of(stage, worker)
    stage.launchers[0].kill()
    stage.launchers[0].wait()
    assert np.array_equal(stage.ask(worker, "echo", ints(1)), ints(1))
    dead = stage.run_dir.worker_file("0123456789abcdef")
    dead.write_text(stage.run_dir.worker_file(worker).read_text().replace(f'"pid":{pid}', '"pid":4194304'))
    reused = stage.run_dir.worker_file("fedcba9876543210")
    reused.write_text(stage.run_dir.worker_file(worker).read_text().replace('"start_time":', '"start_time":1'))
    stage.start_launcher()
    stage.broker.await_launcher()
    (alive,) = stage.broker.launcher_hellos[-1].workers
    assert (alive.worker, alive.pid, alive.model) == (worker, pid, "echo")
    assert not dead.exists() and not reused.exists()
    assert np.array_equal(stage.ask(worker, "echo", ints(2)), ints(2))
    stage.broker.to_launcher(Kill(worker))
    message = died(stage, worker)
    assert (message.exit_code, message.signal) == (None, None)


def test_a_second_launcher_is_refused(stage: Stage) -> None:
    stage.broker.await_launcher()
    second = stage.start_launcher()
    assert second.wait(TIMEOUT_S) == 1
    assert "another launcher runs here" in (stage.path / "launcher.log").read_text()


def test_a_death_between_brokers_is_reported_to_the_next(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    stage.broker.close()
    os.kill(pid_of(stage, worker), signal.SIGKILL)
    eventually(lambda: not stage.run_dir.worker_file(worker).exists(), "nobody has noticed the death")
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    hello = stage.broker.launcher_hellos
    message = died(stage, worker)
    assert message.signal == signal.SIGKILL
    assert [alive.worker for alive in hello[-1].workers] == [worker]


def test_a_configuration_that_is_too_long(stage: Stage) -> None:
    worker = stage.spawn(stage.model("long", ECHO, {"parameters": {"x": {"string_value": "x" * 200_000}}}))
    failed = stage.broker.expect(SpawnFailed)
    assert failed.worker == worker
    assert "its configuration is too long" in failed.fault.message


def test_a_reason_why_no_worker_starts_holds_no_path(stage: Stage) -> None:
    """Clients read it in the repository's index."""
    config = stage.model("unlogged", ECHO)
    (stage.run_dir.model_logs / "unlogged.log").mkdir(parents=True)
    stage.spawn(config)
    message = stage.broker.expect(SpawnFailed).fault.message
    assert message == "cannot start a process for 'unlogged_0_0': Is a directory"


def test_stop_without_a_broker_drains_the_workers(stage: Stage) -> None:
    code = model("response = InferenceResponse([Tensor('OUT', x)])") + (
        "    def finalize(self):\n        print('finalized')\n"
    )
    stage.ready(stage.model("echo", code))
    stage.launchers[0].send_signal(signal.SIGTERM)
    assert stage.launchers[0].wait(TIMEOUT_S) == 0
    assert "finalized" in stage.model_log("echo")


def test_a_second_stop_signal_kills(stage: Stage) -> None:
    worker = stage.ready(stage.model("hangs", HANGS))
    stage.send(worker, stage.requester.request("hangs", stage.requester.put("IN", ints(1))))
    launcher = stage.launchers[0]
    launcher.send_signal(signal.SIGTERM)
    with pytest.raises(Exception, match="timed out"):
        launcher.wait(0.3)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(TIMEOUT_S) == 0
    assert pid_of(stage, worker) not in all_processes()


def test_templates_that_die_lose_no_worker(stage: Stage) -> None:
    """Whatever moment a template is killed at: each worker that was asked for is started once."""
    config = stage.model("echo", ECHO)
    stage.broker.await_launcher()
    asked: list[str] = []
    for pause_s in (0.0, 0.003):
        eventually(lambda: len(_templates(stage)) == 1, "there is no template")
        (template,) = _templates(stage)
        new = [stage.spawn(config) for _ in range(5)]
        time.sleep(pause_s)
        os.kill(template, signal.SIGKILL)
        for worker in new:
            stage.broker.expect(Ready, where=lambda message, worker=worker: message.worker == worker)  # type: ignore[misc]
        asked += new
    spawned = [message.worker for _, message in stage.broker.heard if isinstance(message, Spawned)]
    assert sorted(spawned) == sorted(asked)
    assert not [message for _, message in stage.broker.heard if isinstance(message, (SpawnFailed, Died))]


def _templates(stage: Stage) -> list[int]:
    workers = {hello.pid for hello in stage.broker.hellos}
    launcher = stage.launchers[0].pid
    return [pid for pid, status in all_processes().items() if status.parent == launcher and pid not in workers]
