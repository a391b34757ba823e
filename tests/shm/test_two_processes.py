"""An owner and its readers in processes of their own: descriptors, leases, kill -9 and the sweep."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conch.channels.seqpacket import SeqpacketChannel, listen
from conch.messages import Block, RequesterToWorker, Response, Responses, SegmentAdded, WorkerToRequester
from shm.mapping import Mappings
from shm.segment import Segment, best_kind
from shm.sweep import sweep
from tests.shm.owner import NBYTES


@dataclass
class Owner:
    """A running ``tests.shm.owner``, and what it sent. ``files`` are the names of its segments."""

    process: subprocess.Popen[str]
    mappings: Mappings
    response: Response
    files: list[Path]

    def ask(self, letter: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{letter}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def block(self) -> Block:
        reference = self.response.outputs[0].reference
        assert isinstance(reference, Block)
        return reference


@contextlib.contextmanager
def running_owner(run_dir: Path, name: str) -> Iterator[Owner]:
    with contextlib.closing(Mappings()) as mappings, listen(run_dir / name) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.shm.owner", str(run_dir / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        with process:
            try:
                assert select.select([listener], [], [], 10)[0]
                connection = listener.accept()[0]
                yield receive(process, connection, mappings)
            finally:
                process.kill()


def receive(process: subprocess.Popen[str], connection: socket.socket, mappings: Mappings) -> Owner:
    channel = SeqpacketChannel[RequesterToWorker, WorkerToRequester](connection, WorkerToRequester)
    files: list[Path] = []
    try:
        while True:
            assert select.select([channel], [], [], 10)[0]
            received = channel.receive_nowait()
            assert received is not None
            message, descriptor = received
            if isinstance(message, SegmentAdded):
                assert descriptor is not None
                assert os.fstat(descriptor).st_size == message.nbytes
                target = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
                files += [target] if target.parent == Path("/dev/shm") else []
                mappings.add(message.segment, descriptor, message.lease_page)
            else:
                assert isinstance(message, Responses)
                return Owner(process, mappings, message.items[0], files)
    finally:
        channel.close()


def test_bytes_cross_and_the_lease_returns(run_dir: Path) -> None:
    with running_owner(run_dir, "owner") as owner:
        view = owner.mappings.view(owner.block)
        assert view.readonly
        assert bytes(view) == bytes(range(256)) * (NBYTES // 256)
        assert owner.response.lease is not None
        assert owner.ask("r") == 0
        owner.mappings.give_back(owner.response.lease)
        assert owner.ask("r") == 1
        owner.kill()
        sweep()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm here")
def test_sweep_removes_exactly_what_dead_owners_left(run_dir: Path) -> None:
    with running_owner(run_dir, "dead") as dead, running_owner(run_dir, "live") as live:
        if not dead.files:
            pytest.skip("segments have no names here")
        assert len(dead.files) == len(live.files) == 2
        sweep()
        assert all(path.exists() for path in dead.files + live.files)
        forked = dead.ask("f")  # has copies of everything that a fork copies
        dead.kill()
        # this process still maps the dead one's segments, and the forked child lives
        os.kill(forked, 0)
        sweep()
        assert not any(path.exists() for path in dead.files)
        assert all(path.exists() for path in live.files)
        assert bytes(dead.mappings.view(dead.block)[:4]) == b"\0\1\2\3"
        assert bytes(live.mappings.view(live.block)[:4]) == b"\0\1\2\3"
        os.kill(forked, signal.SIGKILL)
        live.kill()
        sweep()
        assert not any(path.exists() for path in live.files)


def test_sweep_never_takes_a_segment_that_is_being_made() -> None:
    stop = threading.Event()

    def keep_sweeping() -> None:
        while not stop.is_set():
            sweep()

    sweeper = threading.Thread(target=keep_sweeping)
    sweeper.start()
    try:
        for _ in range(300):
            segment = Segment(4096)
            assert os.fstat(segment.descriptor).st_nlink == (1 if best_kind() == "posix" else 0)
            segment.close()
    finally:
        stop.set()
        sweeper.join()


def test_sweep_leaves_other_files_alone(run_dir: Path) -> None:
    similar = Path(f"/dev/shm/conch-{os.geteuid()}-{'f' * 31}")
    foreign = Path(f"/dev/shm/conch-{os.geteuid() + 1}-{'f' * 32}")
    link = Path(f"/dev/shm/conch-{os.geteuid()}-{'f' * 32}")
    victim = run_dir / "victim"
    for path in (similar, foreign, victim):
        path.touch()
    link.symlink_to(victim)
    try:
        sweep()
        assert similar.exists() and foreign.exists() and victim.exists() and link.is_symlink()
    finally:
        for path in (similar, foreign, link):
            path.unlink(missing_ok=True)
