"""A launcher that cannot get what it needs goes on, says why, and makes good for it later."""

import contextlib
import ctypes
import os
import resource
import signal
import socket
from collections.abc import Iterator

import msgspec
import pytest

from conch.messages import Fault, Ready, Spawned, SpawnFailed
from tests.processes import all_processes, command_line
from tests.workers.harness import FakeBroker, Stage, ints
from tests.workers.test_environments_starts import environment
from tests.workers.test_launcher import _templates as templates
from tests.workers.test_launcher import died, eventually, pid_of
from tests.workers.test_python_model import ECHO, model

_PIDFD_GETFD = 438


@pytest.fixture
def stage(own_stage: Stage) -> Stage:
    return own_stage


@contextlib.contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """The process can open no more than it has open."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    first_free = min(set(range(len(taken) + 1)) - taken)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (first_free, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def failure(stage: Stage, worker: str) -> str:
    failed = stage.broker.expect(SpawnFailed, where=lambda message: message.worker == worker)
    assert failed.fault.kind == "Internal"
    return failed.fault.message


def test_no_descriptor_for_a_new_worker(stage: Stage) -> None:
    config = stage.model("echo", ECHO)
    first = stage.ready(config)
    launcher = stage.launchers[0].pid
    alive = {pid_of(stage, first), *templates(stage)}
    with without_descriptors(launcher):
        worker = stage.spawn(config)
        assert failure(stage, worker) == "cannot start a process for 'echo_0_0': Too many open files"
        eventually(
            lambda: {pid for pid, each in all_processes().items() if each.parent == launcher} == alive,
            "a worker that nobody watches lives on",
        )
        assert not stage.run_dir.worker_file(worker).exists()
        os.kill(pid_of(stage, first), signal.SIGKILL)
        assert died(stage, first).signal == signal.SIGKILL, "deaths are seen as ever"
    again = stage.ready(config)
    stage.ask(again, "echo", ints(1))


def test_no_descriptor_for_a_new_template(stage: Stage) -> None:
    config = stage.model("echo", ECHO)
    stage.ready(config)
    launcher = stage.launchers[0].pid
    with without_descriptors(launcher):
        (template,) = templates(stage)
        os.kill(template, signal.SIGKILL)
        worker = stage.spawn(config)
        eventually(lambda: "cannot start the template" in (stage.path / "launcher.log").read_text(), "it does not try")
    stage.broker.expect(Ready, where=lambda message: message.worker == worker)
    stage.ask(worker, "echo", ints(1))


def test_no_descriptor_for_an_environment(stage: Stage) -> None:
    config = environment(stage, "own")
    stage.broker.await_launcher()
    with without_descriptors(stage.launchers[0].pid):
        worker = stage.spawn(config)
        assert failure(stage, worker) == "cannot start a process for 'own_0_0': Too many open files"
    stage.ready(config)
    with without_descriptors(stage.launchers[0].pid):
        worker = stage.spawn(config)
        assert failure(stage, worker) == "cannot start a process for 'own_0_0': Too many open files"
    stage.ready(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may start as many processes as it likes")
def test_no_more_processes(stage: Stage) -> None:
    config = stage.model("echo", ECHO)
    stage.ready(config)
    (template,) = templates(stage)
    before = resource.prlimit(template, resource.RLIMIT_NPROC)
    resource.prlimit(template, resource.RLIMIT_NPROC, (1, before[1]))
    reason = "cannot start a process for 'echo_0_0': Resource temporarily unavailable"
    assert failure(stage, stage.spawn(config)) == reason
    resource.prlimit(template, resource.RLIMIT_NPROC, before)
    stage.ready(config)


def test_a_worker_that_dies_before_it_says_that_it_lives(stage: Stage) -> None:
    config = stage.model("stuck", ECHO)
    stage.broker.await_launcher()
    eventually(lambda: len(templates(stage)) == 1, "there is no template")
    before = set(templates(stage))
    os.mkfifo(stage.run_dir.model_log("stuck"))  # so that it hangs where it opens its log
    worker = stage.spawn(config)
    eventually(lambda: len(set(templates(stage)) - before) == 1, "it is not forked")
    (pid,) = set(templates(stage)) - before
    os.kill(pid, signal.SIGKILL)
    assert failure(stage, worker) == "cannot start a process for 'stuck_0_0': it ended at once"
    assert set(templates(stage)) == before
    stage.ready(stage.model("echo", ECHO))


def test_a_worker_that_hangs_before_it_says_that_it_lives(stage: Stage) -> None:
    """The template cannot tell, and is replaced."""
    stage.broker.await_launcher()
    os.mkfifo(stage.run_dir.model_log("stuck"))
    worker = stage.spawn(stage.model("stuck", ECHO))
    failed = stage.broker.expect(SpawnFailed, timeout_s=20)
    assert failed.worker == worker and "no answer in 10 s" in failed.fault.message
    stage.ready(stage.model("echo", ECHO))
    log = os.open(stage.run_dir.model_log("stuck"), os.O_RDONLY | os.O_NONBLOCK)  # it goes on
    eventually(lambda: len(templates(stage)) == 1, "a worker lives that nobody knows of")
    os.close(log)


def test_garbage_from_the_template(stage: Stage) -> None:
    """Whatever it says of workers that nobody has asked for."""
    stage.ready(stage.model("echo", ECHO))
    (template,) = templates(stage)
    with socket_of(template, int(command_line(template).split()[-1])) as connection:
        for frame in (b"x", os.urandom(64), b"\x93\xa7Spawned\x00\x00"):
            connection.send(frame)
        encode = msgspec.msgpack.Encoder().encode
        for pid in (os.getpid(), 1 << 22, -5):
            connection.send(encode(Spawned("unknown", pid)))
        connection.send(encode(SpawnFailed("unknown", Fault("Internal", "nothing"))))
    stage.ready(stage.model("other", ECHO))
    assert (stage.path / "launcher.log").read_text().count("dropped a message from the template") == 3


def socket_of(pid: int, descriptor: int) -> socket.socket:
    """A duplicate of another process's socket."""
    process = os.pidfd_open(pid)
    try:
        found = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, descriptor, 0)
    finally:
        os.close(process)
    if found < 0:
        pytest.skip(f"processes may not be looked into here: {os.strerror(ctypes.get_errno())}")
    return socket.socket(fileno=found)


def test_templates_that_die_at_once(stage: Stage) -> None:
    """Twice in a row, while workers are asked for."""
    config = stage.model("echo", ECHO)
    stage.broker.await_launcher()
    asked = [stage.spawn(config) for _ in range(3)]
    for _ in range(2):
        eventually(lambda: len(templates(stage)) == 1, "there is no template")
        (template,) = templates(stage)
        os.kill(template, signal.SIGKILL)
        eventually(lambda pid=template: pid not in all_processes(), "it is not buried")
        asked.append(stage.spawn(config))
    for worker in asked:
        stage.broker.expect(Ready, where=lambda message, worker=worker: message.worker == worker)  # type: ignore[misc]
    spawned = [message.worker for _, message in stage.broker.heard if isinstance(message, Spawned)]
    assert sorted(spawned) == sorted(asked)


def test_a_worker_that_cannot_write_its_file(stage: Stage) -> None:
    """As on a full disk: it does not live, because nobody would find it."""
    config = stage.model("echo", ECHO)
    stage.ready(config)
    (template,) = templates(stage)
    before = resource.prlimit(template, resource.RLIMIT_FSIZE)
    resource.prlimit(template, resource.RLIMIT_FSIZE, (0, before[1]))
    assert failure(stage, stage.spawn(config)) == "cannot start a process for 'echo_0_0': File too large"
    assert not list(stage.run_dir.workers.glob("*.new"))
    resource.prlimit(template, resource.RLIMIT_FSIZE, before)
    stage.ready(config)


def test_a_model_that_prints_onto_a_full_disk(stage: Stage) -> None:
    code = model("""
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
print("lost")
print("lost, too", file=sys.stderr, flush=True)
pb_utils.Logger.log_error("lost as well")
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
print("kept")
response = InferenceResponse([Tensor("OUT", x)])
""")
    worker = stage.ready(stage.model("prints", code))
    stage.ask(worker, "prints", ints(1))
    assert stage.model_log("prints").splitlines()[-1] == "kept"


def test_no_descriptor_for_a_connection_to_the_next_broker(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    launcher = stage.launchers[0]
    has = len(os.listdir(f"/proc/{launcher.pid}/fd"))
    stage.broker.close()
    eventually(lambda: len(os.listdir(f"/proc/{launcher.pid}/fd")) < has, "it is still connected")
    with without_descriptors(launcher.pid):
        stage.broker = FakeBroker(stage.run_dir, epoch=8)
        stage.broker.listen(0.3)
    stage.broker.await_launcher()
    assert [alive.worker for alive in stage.broker.launcher_hellos[-1].workers] == [worker]
