"""A real broker process, and around it on real sockets a launcher, workers and requesters that do as told."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from conch import messages
from conch.channels.data import DataChannel
from conch.channels.seqpacket import connect
from conch.channels.zeromq import DealerChannel
from conch.messages import PROTOCOL_VERSION, Request
from conch.run_dir import RunDir, new_peer_id

M = TypeVar("M")
TIMEOUT_S = 10.0

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [ {{ name: "INPUT0" data_type: TYPE_INT32 dims: [ 1 ] }} ]
output [ {{ name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 1 ] }} ]
instance_group [ {{ kind: KIND_CPU count: {count} }} ]
{more}
"""


def write_model(repository: Path, name: str, count: int = 1, more: str = "") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text("")
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name, count=count, more=more))


def environment(run_dir: Path, repository: Path, **settings: str) -> dict[str, str]:
    variables = {f"CONCH_{name.upper()}": value for name, value in settings.items()}
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "CONCH_RUN_DIR": str(run_dir),
        "CONCH_MODEL_REPOSITORY": str(repository),
        "CONCH_DISABLE_AUTO_COMPLETE_CONFIG": "true",
        **variables,
    }


class BrokerProcess:
    """``python -m broker``. ``log`` is what it has written so far."""

    def __init__(self, run_dir: Path, repository: Path, **settings: str) -> None:
        self._log = run_dir / f"broker-{new_peer_id()}.log"
        with open(self._log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "broker"], env=environment(run_dir, repository, **settings), stderr=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(TIMEOUT_S)


class Peer:
    """One DEALER. ``expect`` skips tables and settings unless one is asked for."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], run_dir: Path, id: str, incoming: Any) -> None:
        self.id = id
        self.table: messages.ModelTable | None = None
        self.channel: DealerChannel[Any, Any] = DealerChannel(
            context, RunDir(run_dir).broker_socket, id.encode(), incoming
        )

    def connect(self) -> None:
        """Waits for a (new) connection."""
        deadline = time.monotonic() + TIMEOUT_S
        while True not in self.channel.connection_changes():
            assert self.channel.monitor.poll(int((deadline - time.monotonic()) * 1000)), "no broker"

    def send(self, message: Any) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not self.channel.send_nowait(message):
            assert self.channel.socket.poll(20, zmq.POLLOUT) or time.monotonic() < deadline

    def receive(self, timeout_s: float = TIMEOUT_S) -> Any:
        return self.channel.receive(int(timeout_s * 1000))

    def expect(self, kind: type[M]) -> M:
        while True:
            message = self.receive()
            if isinstance(message, messages.ModelTable):
                self.table = message
            if isinstance(message, messages.ModelTable | messages.RegionTable):
                self.saw(message)
            if isinstance(message, kind):
                return message
            assert isinstance(message, messages.ModelTable | messages.RegionTable | messages.ServerSettings), (
                f"expected {kind.__name__}, got {message if message is not None else 'nothing'}"
            )

    def saw(self, table: messages.ModelTable | messages.RegionTable) -> None:
        """What it says to a table."""

    def expect_table(self, name: str, state: str) -> messages.ModelTable:
        """Waits until the last table received shows this model in this state."""
        while self.table is None or (name, state) not in {(entry.name, entry.state) for entry in self.table.models}:
            self.expect(messages.ModelTable)
        return self.table

    def status(self) -> messages.ServerStatus:
        self.send(messages.AskStatus(99))
        return msgspec.convert(self.expect(messages.Answer).result, messages.ServerStatus)

    def expect_nothing(self) -> None:
        while isinstance(message := self.receive(0.1), messages.ServerSettings):
            pass
        assert message is None

    def close(self) -> None:
        self.channel.close()


class Around:
    """Makes peers of one broker, and closes them."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._peers: list[Peer] = []
        self.closing = ExitStack()

    def peer(self, id: str, incoming: Any) -> Peer:
        peer = Peer(self._context, self.run_dir, id, incoming)
        self._peers.append(peer)
        return peer

    def requester(
        self, pid: int | None = None, awaited: tuple[messages.Awaited, ...] = (), worker: str = ""
    ) -> "Requester":
        peer = Requester(self, pid or os.getpid(), worker)
        peer.connect()
        peer.hello(awaited)
        return peer

    def launcher(self, workers: tuple[messages.LiveWorker, ...] = ()) -> "Launcher":
        peer = Launcher(self, os.getpid())
        peer.connect()
        peer.hello(workers)
        return peer

    def close(self) -> None:
        self.closing.close()
        for peer in self._peers:
            peer.close()
        self._context.term()


class DataEnd:
    """A requester's or worker's data connection."""

    def __init__(self, around: Around, name: str, incoming: Any) -> None:
        self._path = RunDir(around.run_dir).broker_data_socket
        self._name = name
        self._incoming = incoming
        self._channel: DataChannel[Any, Any] | None = None
        around.closing.callback(self.close)

    def connect(self) -> None:
        """After a Welcome."""
        self.close()
        self._channel = DataChannel(connect(self._path), self._incoming)
        self.send(messages.DataLink(PROTOCOL_VERSION, self._name))

    def connect_early(self) -> None:
        """Without a Welcome: the broker may just be beginning to listen."""
        deadline = time.monotonic() + 10
        while True:
            try:
                self.connect()
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def send(self, message: Any) -> None:
        assert self._channel is not None
        assert self._channel.send_nowait(message)

    def receive(self, timeout_s: float) -> Any:
        """None if there is nothing in time."""
        assert self._channel is not None
        readable, _, _ = select.select([self._channel.fileno()], [], [], timeout_s)
        return self._channel.receive_nowait() if readable else None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class Requester(Peer):
    """``worker``: the id of the one in which it lives, for a model's."""

    def __init__(self, around: Around, pid: int, worker: str = "") -> None:
        super().__init__(around._context, around.run_dir, new_peer_id(), messages.ToRequester)
        around._peers.append(self)
        self._pid = pid
        self._worker = worker
        #: False for one that is stopped, or in a worker
        self.reads_tables = not worker
        self.data = DataEnd(around, self.id, None)

    def hello(
        self,
        awaited: tuple[messages.Awaited, ...] = (),
        regions: tuple[messages.Region, ...] = (),
        epoch: int = 0,
    ) -> messages.Welcome:
        role = "model" if self._worker else "http"
        self.send(
            messages.RequesterHello(
                PROTOCOL_VERSION, self.id, role, self._pid, awaited, epoch, regions=regions, worker=self._worker
            )
        )
        welcome = self.expect(messages.Welcome)
        self.data.connect()
        return welcome

    def saw(self, table: messages.ModelTable | messages.RegionTable) -> None:
        if self.reads_tables:
            self.send(messages.TableSeen(table.epoch, table.revision))

    def submit(self, id: int, model: str, attempt: int = 1) -> None:
        self.data.send(Request(id, attempt, model, 1, 1, "", inputs=()))

    def cancel(self, id: int) -> None:
        self.data.send(messages.Cancel(self.id, id))


class Launcher(Peer):
    def __init__(self, around: Around, pid: int) -> None:
        super().__init__(around._context, around.run_dir, new_peer_id(), messages.ToLauncher)
        around._peers.append(self)
        self._around = around
        self._pid = pid

    def hello(self, workers: tuple[messages.LiveWorker, ...] = ()) -> None:
        self.send(messages.LauncherHello(PROTOCOL_VERSION, self._pid, workers))
        self.expect(messages.Welcome)

    def spawn(self, pid: int | None = None) -> "Worker":
        """Does as the next ``Spawn`` says; the worker, with this ``pid``, is ready when this returns."""
        spawn = self.expect(messages.Spawn)
        worker = Worker(self._around, spawn, pid or os.getpid())
        self.send(messages.Spawned(spawn.worker, worker.pid))
        worker.connect()
        worker.hello("loading")
        worker.data.connect()
        worker.data.send(messages.Ready(spawn.worker))
        return worker

    def died(self, worker: "Worker", signal: int = 9) -> None:
        self.send(messages.Died(worker.id, worker.pid, None, signal))


class Worker:
    def __init__(self, around: Around, spawn: messages.Spawn, pid: int) -> None:
        self.id = spawn.worker
        self.spawn = spawn
        self.pid = pid
        self.control = around.peer(f"C{spawn.worker}", messages.ToWorkerControl)
        self.data = DataEnd(around, spawn.worker, messages.ToWorkerData)

    @property
    def live(self) -> messages.LiveWorker:
        spawn = self.spawn
        return messages.LiveWorker(self.id, self.pid, spawn.model, spawn.version, spawn.instance, spawn.config_hash)

    def connect(self) -> None:
        self.control.connect()

    def hello(self, state: messages.WorkerState, running: tuple[messages.Running, ...] = ()) -> messages.Welcome:
        spawn = self.spawn
        self.control.send(
            messages.WorkerHello(
                PROTOCOL_VERSION,
                self.id,
                self.pid,
                spawn.model,
                spawn.version,
                spawn.instance,
                spawn.config_hash,
                state,
                running,
            )
        )
        return self.control.expect(messages.Welcome)

    def batch(self) -> messages.Batch:
        batch: messages.Batch | None = self.data.receive(TIMEOUT_S)
        assert batch is not None, "no batch"
        return batch

    def done(self, batch: messages.Batch, **more: Any) -> None:
        now = time.monotonic_ns()
        self.data.send(messages.Done(batch.epoch, batch.id, now - 3000, now - 2000, now - 1000, now, **more))


@contextmanager
def broker(run_dir: Path, repository: Path, **settings: str) -> Iterator[BrokerProcess]:
    """Started, and killed at the end if it still runs."""
    process = BrokerProcess(run_dir, repository, **settings)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()


@contextmanager
def around(run_dir: Path) -> Iterator[Around]:
    peers = Around(run_dir)
    try:
        yield peers
    finally:
        peers.close()
