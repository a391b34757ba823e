"""Data connections of the real broker: peers that break the protocol, and a system without descriptors."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conch import messages
from conch.channels import ChannelClosed
from conch.channels.data import DataChannel
from conch.channels.seqpacket import connect
from conch.descriptors import RESERVED
from conch.messages import PROTOCOL_VERSION
from conch.run_dir import RunDir
from tests.broker.harness import (
    TIMEOUT_S,
    Around,
    BrokerProcess,
    DataEnd,
    Launcher,
    around,
    broker,
    write_model,
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    write_model(path, "echo")
    return path


def limit_descriptors(process: BrokerProcess, more: int | None) -> None:
    """The broker may open ``more`` than it has; None: as many as ever."""
    pid = process.process.pid
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    soft = most if more is None else max(map(int, os.listdir(f"/proc/{pid}/fd"))) + 1 + more
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, most))


def is_dropped(peers: Around, *sent: messages.Message) -> bool:
    channel: DataChannel[messages.Message, messages.Batch] = DataChannel(
        connect(RunDir(peers.run_dir).broker_data_socket), messages.Batch
    )
    deadline = time.monotonic() + 5
    try:
        for message in sent:
            assert channel.send_nowait(message)
        while time.monotonic() < deadline:
            assert channel.receive_nowait() is None
            time.sleep(0.005)
        return False
    except ChannelClosed:
        return True
    finally:
        channel.close()


def test_without_descriptors_connections_wait_quietly(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository) as process, around(run_dir) as peers:
        requester = peers.requester()
        requester.status()  # it serves, and has accepted the requester's data connection
        limit_descriptors(process, 0)
        late = DataEnd(peers, "0123456789abcdef", None)
        late.connect()
        time.sleep(0.5)
        assert process.log.count("cannot be accepted") == 1
        limit_descriptors(process, None)
        stranger = peers.peer("0123456789abcdef", messages.ToRequester)
        stranger.connect()
        late.send(messages.Cancel(stranger.id, 1))
        stranger.expect(messages.Unwelcome)
        assert "Traceback" not in process.log


def test_the_last_descriptors_are_for_the_control_plane(run_dir: Path, repository: Path) -> None:
    """Without one, libzmq would end the process."""
    with broker(run_dir, repository) as process, around(run_dir) as peers:
        first = peers.requester()
        first.status()
        limit_descriptors(process, RESERVED - 20)
        for _ in range(5):
            peers.requester().status()
        assert process.log.count("cannot be accepted") == 1
        limit_descriptors(process, None)
        first.status()
        assert process.process.poll() is None


def test_who_breaks_the_protocol_is_dropped(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository) as process, around(run_dir) as peers:
        peers.requester()
        link = messages.DataLink(PROTOCOL_VERSION, "0123456789abcdef")
        assert is_dropped(peers, messages.Ready("0123456789abcdef"))
        assert is_dropped(peers, messages.DataLink(PROTOCOL_VERSION + 1, "0123456789abcdef"))
        assert is_dropped(peers, link, link)
        assert is_dropped(peers, link, messages.Drain())
        assert "Traceback" not in process.log


def test_a_worker_that_sends_garbage_is_ended(run_dir: Path, repository: Path) -> None:
    with broker(run_dir, repository), around(run_dir) as peers:
        launcher = peers.launcher()
        worker = launcher.spawn()
        worker.data.send(messages.Drain())
        assert launcher.expect(messages.Kill).worker == worker.id


def test_a_worker_that_sends_garbage_while_there_is_no_launcher(run_dir: Path, repository: Path) -> None:
    """The next launcher ends it, or what it held would wait for ever."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as launching:
        with broker(run_dir, repository), around(run_dir) as peers:
            try:
                requester, launcher = peers.requester(), Launcher(peers, launching.pid)
                launcher.connect()
                launcher.hello()
                worker = launcher.spawn()
                requester.expect_table("echo", "READY")
            finally:
                launching.kill()
            while "launcher" in {process.role for process in requester.status().processes}:
                pass
            worker.data.send(messages.Drain())
            with pytest.raises(ChannelClosed):
                worker.data.receive(TIMEOUT_S)
            assert peers.launcher((worker.live,)).expect(messages.Kill).worker == worker.id
