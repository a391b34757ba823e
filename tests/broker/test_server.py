"""The broker process on real sockets."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.region_files import Regions
from broker.server import Server
from conch import messages
from conch.messages import PROTOCOL_VERSION, Awaited, Running
from conch.process import StopSignals
from conch.run_dir import RunDir
from conch.settings import Settings
from tests.broker.harness import DataEnd, Launcher, Requester, Worker, around, broker, write_model


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    write_model(path, "echo")
    return path


def test_a_request_is_run_counted_and_forgotten(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository) as process, around(run_dir) as peers:
        requester = peers.requester()
        worker = peers.launcher().spawn()
        requester.expect_table("echo", "READY")
        requester.submit(1, "echo")
        batch = worker.batch()
        assert [(item.requester, item.request.id) for item in batch.items] == [(requester.id, 1)]
        worker.done(batch)
        while (status := requester.status()).models[0].running:
            pass  # two sockets: Done may come after the question
        requester.send(messages.AskStatistics(5, "echo"))
        answer = requester.expect(messages.Answer)
        assert answer.call == 5 and answer.fault is None
        [statistics] = answer.result
        assert statistics[0] == "echo" and statistics[3] == 1  # name, inference_count
        assert {peer.role for peer in status.processes} == {"broker", "launcher", "http"}
        assert [(model.queued, model.running) for model in status.models] == [(0, 0)]
        assert [(instance.state, instance.executions) for instance in status.instances] == [("ready", 1)]
        assert "Traceback" not in process.log


def test_a_death_gives_back_what_the_worker_held(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository), around(run_dir) as peers:
        requester, launcher = peers.requester(), peers.launcher()
        worker = launcher.spawn()
        requester.expect_table("echo", "READY")
        requester.submit(1, "echo")
        worker.batch()
        launcher.died(worker)
        lost = requester.expect(messages.Lost)
        assert (lost.worker, lost.ids, lost.alone, lost.attempts) == (worker.id, (1,), True, (1,))
        assert lost.cause.kind == "WorkerDied"
        requester.submit(1, "echo", attempt=2)
        successor = launcher.spawn()
        batch = successor.batch()
        assert [item.request.attempt for item in batch.items] == [2]
        successor.done(batch)


def test_a_cancelled_request_is_retired_when_its_batch_is_done(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository), around(run_dir) as peers:
        requester = peers.requester()
        worker = peers.launcher().spawn()
        requester.expect_table("echo", "READY")
        requester.submit(1, "echo")
        requester.submit(2, "echo")
        batch = worker.batch()
        for id in (1, 2):
            requester.cancel(id)
        assert requester.expect(messages.Retired).ids == (2,)
        assert worker.control.expect(messages.Cancel).id == 1
        worker.done(batch)
        assert requester.expect(messages.Retired).ids == (1,)


def test_a_dead_frontend_is_forgotten(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository), around(run_dir) as peers:
        frontend = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        requester = peers.requester(frontend.pid)
        worker = peers.launcher().spawn()
        requester.expect_table("echo", "READY")
        frontend.kill()
        frontend.communicate()
        assert worker.control.expect(messages.Forget).requester == requester.id
        requester.submit(1, "echo")
        requester.expect(messages.Unwelcome)


def test_a_requester_in_a_worker_is_told_of_models_and_nothing_else(run_dir: Path, repository: Path) -> None:
    write_model(repository, "other")
    with (
        broker(run_dir, repository, model_control_mode="explicit", load_model="echo") as process,
        around(run_dir) as peers,
    ):
        requester, launcher = peers.requester(), peers.launcher()
        worker = launcher.spawn()
        requester.expect_table("echo", "READY")
        model = peers.requester(worker=worker.id)
        assert isinstance(model.receive(), messages.ModelTable)
        assert {(peer.role, peer.pid) for peer in requester.status().processes} >= {("model", os.getpid())}
        requester.send(messages.LoadModel(1, "other"))
        launcher.spawn()
        assert requester.expect(messages.Answer).fault is None  # although the model has not said that it saw a table
        states = set()
        while "READY" not in states:
            message = model.receive()
            assert isinstance(message, messages.ModelTable)
            states = {entry.state for entry in message.models if entry.name == "other"}
        requester.send(messages.UpdateLogSettings(2, {"verbose_level": 1}))
        requester.send(messages.RegisterRegion(3, "region", "/missing", 0, 1))
        for _ in range(2):
            requester.expect(messages.Answer)
        model.send(messages.UnloadModel(4, "other"))
        received: list[object] = []
        while not received or not isinstance(received[-1], messages.Answer):
            received.append(model.receive())
        assert {type(message) for message in received} == {messages.ModelTable, messages.Answer}
        assert f"the requester of worker {worker.id} is here" in process.log


def test_what_a_dead_requester_had_asked_is_cancelled(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository), around(run_dir) as peers:
        client, launcher = peers.requester(), peers.launcher()
        worker = launcher.spawn()
        client.expect_table("echo", "READY")
        asker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        model = peers.requester(asker.pid, worker="gone")
        model.submit(1, "echo")
        batch = worker.batch()
        model.submit(2, "echo")
        while client.status().models[0].queued != 1:
            pass  # the requests take another connection
        asker.kill()
        asker.communicate()
        assert worker.control.expect(messages.Cancel) == messages.Cancel(model.id, 1)
        assert worker.control.expect(messages.Forget).requester == model.id
        worker.done(batch, open=(0,))
        while client.status().instances[0].executions != 1:
            pass
        status = client.status()
        assert [(each.queued, each.running) for each in status.models] == [(0, 1)]
        assert status.instances[0].state == "busy"
        worker.data.send(messages.Closed(model.id, 1, 1))
        while client.status().models[0].running:
            pass


def test_who_has_not_said_hello_is_unwelcome(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository), around(run_dir) as peers:
        stranger = peers.peer("0123456789abcdef", messages.ToRequester)
        stranger.connect()
        data = DataEnd(peers, stranger.id, None)
        data.connect_early()
        data.send(messages.Cancel(stranger.id, 1))
        assert stranger.expect(messages.Unwelcome).fault is None
        stranger.send(messages.RequesterHello(PROTOCOL_VERSION + 1, stranger.id, "http", 1))
        fault = stranger.expect(messages.Unwelcome).fault
        assert fault is not None and "protocol version" in fault.message


def test_an_unreadable_message_is_dropped(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository) as process, around(run_dir) as peers:
        requester = peers.requester()
        for frames in ([b"\xc1"], [b"\x93\xa7Request\x01"], [b"a", b"b"], [b""]):
            requester.channel.socket.send_multipart(frames)
        assert requester.status().epoch
        assert "unreadable" in process.log and "Traceback" not in process.log


def test_calls_are_refused_outside_of_explicit_mode(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository), around(run_dir) as peers:
        requester = peers.requester()
        for call in (messages.LoadModel(1, "echo"), messages.UnloadModel(2, "echo")):
            requester.send(call)
            answer = requester.expect(messages.Answer)
            assert answer.call == call.call and answer.fault is not None
            assert answer.fault.message == "explicit model load / unload is not allowed if polling is enabled"
        requester.send(messages.AskStatistics(3, "missing"))
        fault = requester.expect(messages.Answer).fault
        assert fault is not None and fault.message == "requested model 'missing' is not available"


def test_loading_and_unloading_by_name(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository, model_control_mode="explicit"), around(run_dir) as peers:
        requester, launcher = peers.requester(), peers.launcher()
        requester.send(messages.LoadModel(7, "echo"))
        worker = launcher.spawn()
        requester.expect_table("echo", "READY")
        answer = requester.expect(messages.Answer)
        assert (answer.call, answer.fault) == (7, None)
        requester.submit(1, "echo")
        batch = worker.batch()
        requester.send(messages.UnloadModel(8, "echo"))
        assert requester.expect(messages.Answer).fault is None
        requester.submit(2, "echo")
        assert requester.expect(messages.Rejected).id == 2
        worker.control.expect_nothing()
        worker.done(batch)
        worker.control.expect(messages.Drain)


def test_a_second_broker_is_refused(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository) as first, around(run_dir) as peers:
        peers.requester()
        with broker(run_dir, repository) as second:
            assert second.process.wait(10) == 1
            assert f"pid {first.process.pid}" in second.log
        assert peers.requester().hello()


def test_a_stop_lets_requests_finish(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository) as process, around(run_dir) as peers:
        requester, launcher = peers.requester(), peers.launcher()
        worker = launcher.spawn()
        requester.expect_table("echo", "READY")
        requester.submit(1, "echo")
        requester.submit(2, "echo")
        first = worker.batch()
        process.process.terminate()
        while requester.expect(messages.ModelTable).server != "exiting":
            pass
        worker.done(first)
        worker.done(worker.batch())
        worker.control.expect(messages.Drain)
        launcher.died(worker, signal=0)
        assert process.process.wait(10) == 0


def test_a_stop_lets_models_ask(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository) as process, around(run_dir) as peers:
        requester, launcher = peers.requester(), peers.launcher()
        worker = launcher.spawn()
        requester.expect_table("echo", "READY")
        model = peers.requester(worker=worker.id)
        requester.submit(1, "echo")
        first = worker.batch()
        process.process.terminate()
        while requester.expect(messages.ModelTable).server != "exiting":
            pass
        requester.submit(2, "echo")
        assert requester.expect(messages.Rejected).id == 2
        assert model.expect_table("echo", "READY")
        model.submit(1, "echo")
        worker.done(first)
        worker.done(worker.batch())
        worker.control.expect(messages.Drain)
        launcher.died(worker, signal=0)
        assert process.process.wait(10) == 0


@contextmanager
def stopping_alone(
    run_dir: Path, repository: Path, launcher_first: bool
) -> Iterator[tuple["subprocess.Popen[bytes]", Requester, Worker, messages.Batch, "subprocess.Popen[bytes]"]]:
    """A broker that is told to stop while a worker runs a batch, and has no launcher: its process, who asked, and the
    worker with its batch and with the process that it claims to be, which dies at the end. Then the broker ends."""
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleep) as launching, subprocess.Popen(sleep) as working:
        with broker(run_dir, repository) as process, around(run_dir) as peers:
            try:
                requester, launcher = peers.requester(), Launcher(peers, launching.pid)
                launcher.connect()
                launcher.hello()
                worker = launcher.spawn(working.pid)
                requester.expect_table("echo", "READY")
                requester.submit(1, "echo")
                batch = worker.batch()
                if launcher_first:
                    launching.kill()
                    launching.wait()
                process.process.terminate()
                while requester.expect(messages.ModelTable).server != "exiting":
                    pass
                launching.kill()
                yield process.process, requester, worker, batch, working
            finally:
                launching.kill()
                working.kill()
            assert process.process.wait(10) == 0


@pytest.mark.parametrize("launcher_first", [True, False])
def test_a_stop_without_a_launcher(run_dir: Path, repository: Path, launcher_first: bool) -> None:
    """While the server stops nobody starts another launcher: the broker sees the workers' deaths itself."""
    with stopping_alone(run_dir, repository, launcher_first) as (_, _, worker, batch, _):
        worker.done(batch)
        worker.control.expect(messages.Drain)


def test_what_a_worker_sent_before_its_death_counts_without_a_launcher_too(run_dir: Path, repository: Path) -> None:
    with stopping_alone(run_dir, repository, launcher_first=True) as (process, requester, worker, batch, working):
        process.send_signal(signal.SIGSTOP)
        working.kill()
        working.wait()
        worker.done(batch)
        process.send_signal(signal.SIGCONT)
        while (message := requester.receive(1)) is not None:
            assert not isinstance(message, messages.Lost)


def test_a_stop_has_a_limit(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository, exit_timeout_secs="1") as process, around(run_dir) as peers:
        requester, launcher = peers.requester(), peers.launcher()
        worker = launcher.spawn()
        requester.expect_table("echo", "READY")
        requester.submit(1, "echo")
        worker.batch()
        process.process.terminate()
        assert launcher.expect(messages.Kill).worker == worker.id
        launcher.died(worker)
        assert requester.expect(messages.Lost).ids == (1,)
        assert process.process.wait(10) == 1
        assert "Exit timeout expired" in process.log


def test_a_restart_takes_over_what_runs(run_dir: Path, repository: Path) -> None:
    with around(run_dir) as peers:
        with broker(run_dir, repository) as process:
            requester, launcher = peers.requester(), peers.launcher()
            worker = launcher.spawn()
            requester.expect_table("echo", "READY")
            for id in (1, 2, 3):
                requester.submit(id, "echo")
            batch = worker.batch()
            while requester.status().models[0].queued != 2:
                pass  # the requests take another connection
            process.kill()
        with broker(run_dir, repository):
            requester.connect()
            launcher.connect()
            worker.connect()
            awaited = tuple(Awaited(id, 1, "echo", 1) for id in (1, 2, 3))
            requester.hello(awaited)
            requester.expect(messages.ModelTable)
            launcher.hello((worker.live,))
            requester.submit(4, "echo")
            running = (Running(requester.id, 1, 1, batch.epoch, batch.id),)
            assert worker.hello("ready", running).epoch > batch.epoch
            worker.data.connect()
            lost = requester.expect(messages.Lost)
            assert (lost.worker, lost.ids, lost.attempts) == ("", (2, 3), (1, 1))
            requester.expect_table("echo", "READY")
            requester.cancel(1)
            assert worker.control.expect(messages.Cancel).id == 1
            assert worker.data.receive(0.1) is None
            worker.done(batch)
            assert requester.expect(messages.Retired).ids == (1,)
            following = worker.batch()
            assert [item.request.id for item in following.items] == [4]
            launcher.expect_nothing()  # nothing was loaded again


def test_an_idle_broker_sleeps(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository) as process, around(run_dir) as peers:
        requester = peers.requester()
        peers.launcher().spawn()
        requester.expect_table("echo", "READY")
        requester.status()

        def switches() -> int:
            lines = Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))

        before = switches()
        time.sleep(0.5)
        assert switches() - before <= 2


def test_a_call_that_breaks_the_broker_is_answered(
    run_dir: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Regions, call: messages.UnregisterRegions) -> bool:
        raise ValueError

    RunDir(run_dir).create()
    monkeypatch.setattr(Regions, "unregister", broken)
    stop = StopSignals()
    server = Server(Settings(run_dir=str(run_dir), model_repository=(str(repository),)), stop)
    try:
        with around(run_dir) as peers:
            peer = peers.peer("requester", messages.ToRequester)
            peer.connect()
            peer.send(messages.RequesterHello(PROTOCOL_VERSION, "requester", "http", os.getpid(), ()))
            peer.send(messages.UnregisterRegions(7, "system"))
            peer.send(messages.TableSeen(server._exchange.epoch, 1))  # nobody waits for an answer to this
            answer = None
            deadline = time.monotonic() + 10
            while not isinstance(answer, messages.Answer):
                assert time.monotonic() < deadline
                server._receive(time.monotonic())
                answer = peer.receive(0.02)
            assert answer.call == 7 and answer.fault is not None and answer.fault.kind == "Internal"
    finally:
        server.close()
        stop.close()
