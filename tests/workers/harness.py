"""The two peers that a launcher and its workers talk to, played by the test over the real sockets."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import zmq

from broker.links import DataLinks
from conch import tensors
from conch.channels import ChannelClosed
from conch.channels.seqpacket import SeqpacketChannel, listen
from conch.channels.zeromq import RouterChannel
from conch.messages import (
    PROTOCOL_VERSION,
    Batch,
    Block,
    Completed,
    Configured,
    Died,
    Dispatch,
    Done,
    Kill,
    LauncherHello,
    Link,
    LoadFailed,
    Message,
    Ready,
    Request,
    Response,
    Responses,
    SegmentAdded,
    SegmentRetired,
    Spawn,
    TensorDescription,
    ToBroker,
    Welcome,
    WorkerHello,
    WorkerToRequester,
)
from conch.run_dir import RunDir, new_peer_id
from shm.arena import Arena
from shm.mapping import Mappings

Array = tensors.Array
M = TypeVar("M")
TIMEOUT_S = 10.0


class FakeBroker:
    """A ROUTER that welcomes everybody, and keeps what it hears until somebody waits for it."""

    def __init__(self, run_dir: RunDir, epoch: int = 7) -> None:
        self.epoch = epoch
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router: RouterChannel[Message, Any] = RouterChannel(self.context, run_dir.broker_socket, ToBroker)
        self.poll = select.epoll()
        self.poll.register(self.router.fileno(), select.EPOLLIN)
        self.links = DataLinks(run_dir, self.poll)
        self.heard: deque[tuple[bytes, Any]] = deque()
        self.launcher = b""
        self.hellos: list[WorkerHello] = []
        self.launcher_hellos: list[LauncherHello] = []
        self.dead: set[str] = set()
        self.welcoming = True

    def close(self) -> None:
        self.links.close()
        self.poll.close()
        self.router.close()
        self.context.term()

    def listen(self, timeout_s: float) -> bool:
        """Takes in what has come; answers a HELLO. False if there was nothing in time."""
        deadline = time.monotonic() + timeout_s
        while (received := self.router.receive_nowait()) is None:
            heard = len(self.heard)
            for descriptor, _ in self.poll.poll(max(0.0, deadline - time.monotonic())):
                if descriptor != self.router.fileno():
                    self.heard += [(b"D" + worker.encode(), said) for worker, said in self.links.receive(descriptor)]
            if len(self.heard) > heard:
                return True
            if time.monotonic() >= deadline and not self.router.is_readable():
                return False
        peer, message = received
        if isinstance(message, LauncherHello):
            self.launcher = peer
            self.launcher_hellos.append(message)
        if isinstance(message, Died):
            self.dead.add(message.worker)
        if isinstance(message, WorkerHello):
            self.hellos.append(message)
        if isinstance(message, (LauncherHello, WorkerHello)):
            if self.welcoming:
                self.router.send_nowait(peer, Welcome(PROTOCOL_VERSION, self.epoch))
        else:
            self.heard.append((peer, message))
        return True

    def expect(self, kind: type[M], timeout_s: float = TIMEOUT_S, where: Callable[[M], bool] = lambda _: True) -> M:
        """The next message of this kind; those of other kinds stay."""
        deadline = time.monotonic() + timeout_s
        while True:
            for entry in self.heard:
                if isinstance(entry[1], kind) and where(entry[1]):
                    self.heard.remove(entry)
                    return entry[1]
            if not self.listen(deadline - time.monotonic()):
                raise AssertionError(f"no {kind.__name__} in {timeout_s} s; heard {list(self.heard)}")

    def await_launcher(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not self.launcher:
            assert self.listen(deadline - time.monotonic()), "no HELLO from the launcher"

    def to_launcher(self, message: Message) -> None:
        self.await_launcher()
        assert self.router.send_nowait(self.launcher, message)

    def to_data(self, worker: str, message: Batch) -> None:
        assert self.links.send(worker, message)

    def to_control(self, worker: str, message: Message) -> None:
        assert self.router.send_nowait(b"C" + worker.encode(), message)


class FakeRequester:
    """Listens for workers, lends them inputs, and reads their responses."""

    def __init__(self, run_dir: RunDir) -> None:
        self.id = new_peer_id()
        self.listener = listen(run_dir.requester_socket(self.id))
        self.arena = Arena(1 << 30, "input")
        self.mappings = Mappings()
        self.links: dict[str, SeqpacketChannel[Any, Any]] = {}
        self.responses: deque[Response] = deque()
        self.arena.on_segment_added = self.announce
        self.regions: dict[int, tuple[SegmentAdded, int]] = {}
        self.next_id = 1

    def close(self) -> None:
        for link in self.links.values():
            link.close()
        self.listener.close()
        self.mappings.close()
        self.arena.close()
        for _, descriptor in self.regions.values():
            os.close(descriptor)

    def announce(self, segment: Any) -> None:
        for link in self.links.values():
            link.send_nowait(SegmentAdded(segment.number, segment.nbytes, segment.lease_page), segment.descriptor)

    def add_region(self, descriptor: int, offset: int, nbytes: int) -> int:
        """A client has registered memory; returns the region's number."""
        number = 1 + len(self.regions)
        self.regions[number] = SegmentAdded(number, nbytes, client=True, offset=offset), os.dup(descriptor)
        for link in self.links.values():
            link.send_nowait(*self.regions[number])
        return number

    def retire_region(self, number: int) -> None:
        for link in self.links.values():
            link.send_nowait(SegmentRetired(number))

    def put(self, name: str, array: Array) -> TensorDescription:
        datatype = tensors.datatype_of(array.dtype)
        data = tensors.pack(tensors.elements_of(array)) if datatype == "BYTES" else bytes(tensors.wire_bytes(array))
        return self.put_bytes(name, datatype, array.shape, data)

    def put_bytes(self, name: str, datatype: str, shape: Sequence[int], data: bytes) -> TensorDescription:
        block = self.arena.allocate(len(data))
        self.arena.view(block)[:] = data
        return TensorDescription(name, datatype, tuple(shape), block)

    def free(self, request: Request) -> None:
        for tensor in request.inputs:
            if isinstance(tensor.reference, Block):
                self.arena.free(tensor.reference)

    def request(self, model: str, *inputs: TensorDescription, **options: Any) -> Request:
        id = self.next_id
        self.next_id += 1
        return Request(id, 1, model, 1, 1, "", inputs, **options)

    def accept(self, timeout_s: float = TIMEOUT_S) -> None:
        poll = select.poll()
        poll.register(self.listener.fileno(), select.POLLIN)
        assert poll.poll(timeout_s * 1000), "no worker connects"
        connection, _ = self.listener.accept()
        link: SeqpacketChannel[Any, Any] = SeqpacketChannel(connection, WorkerToRequester)
        message = self._receive(link, timeout_s)
        assert isinstance(message, Link)
        self.links[message.worker] = link
        for segment in self.arena.segments:
            link.send_nowait(SegmentAdded(segment.number, segment.nbytes, segment.lease_page), segment.descriptor)
        for announcement in self.regions.values():
            link.send_nowait(*announcement)

    def _receive(self, link: SeqpacketChannel[Any, Any], timeout_s: float) -> Any:
        poll = select.poll()
        poll.register(link.fileno(), select.POLLIN)
        if not poll.poll(max(0.0, timeout_s) * 1000):
            raise AssertionError("the worker sends nothing")
        received = link.receive_nowait()
        assert received is not None
        message, descriptor = received
        match message:
            case SegmentAdded():
                assert descriptor is not None
                self.mappings.add(message.segment, descriptor, message.lease_page)
            case SegmentRetired():
                self.mappings.remove(message.segment)
            case Responses():
                self.responses.extend(message.items)
        return message

    def response(self, worker: str, timeout_s: float = TIMEOUT_S) -> Response:
        deadline = time.monotonic() + timeout_s
        while not self.responses:
            if worker not in self.links:
                self.accept(timeout_s)
            self._receive(self.links[worker], deadline - time.monotonic())
        return self.responses.popleft()

    def until_closed(self, worker: str) -> None:
        """Reads the connection to its end."""
        link = self.links.pop(worker)
        try:
            while True:
                self._receive(link, TIMEOUT_S)
        except ChannelClosed:
            link.close()

    def outputs(self, response: Response) -> dict[str, Array]:
        """The outputs, copied; their block is given back."""
        assert response.error is None, response.error
        found = {}
        for output in response.outputs:
            assert isinstance(output.reference, Block)
            view = self.mappings.view(output.reference)
            if output.datatype == "BYTES":
                array = tensors.object_array(tensors.unpack(view), output.shape)
            else:
                array = tensors.as_array(view, output.datatype, output.shape).copy()
            found[output.name] = array
        if response.lease is not None:
            self.mappings.give_back(response.lease)
        return found


class Stage:
    """A run directory with a real launcher, a fake broker and a fake requester."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_dir = RunDir(path / "run")
        self.run_dir.create()
        self.broker = FakeBroker(self.run_dir)
        self.requester: FakeRequester
        self.alive: list[str] = []
        self.launchers: list[subprocess.Popen[bytes]] = []
        self.batches = 0
        self.start_launcher()

    def start_launcher(self) -> subprocess.Popen[bytes]:
        self.broker.launcher = b""
        environ = os.environ | {"CONCH_RUN_DIR": str(self.run_dir.path), "PYTHONPATH": os.getcwd()}
        with (self.path / "launcher.log").open("ab") as log:
            launcher = subprocess.Popen(
                [sys.executable, "-P", "-m", "workers.launcher"], env=environ, stderr=log, stdout=log
            )
        self.launchers.append(launcher)
        return launcher

    def enter(self) -> None:
        """A test begins."""
        self.requester = FakeRequester(self.run_dir)

    def leave(self, expect_deaths: bool = True) -> None:
        """It is over: its workers are ended."""
        if expect_deaths:
            for worker in self.alive:
                if worker not in self.broker.dead:
                    self.broker.to_launcher(Kill(worker))
            while not self.broker.dead.issuperset(self.alive):
                assert self.broker.listen(TIMEOUT_S), "a worker does not die"
        self.alive.clear()
        self.broker.heard.clear()
        self.broker.hellos.clear()
        self.requester.close()

    def close(self) -> None:
        for launcher in self.launchers:
            if launcher.poll() is None:
                launcher.send_signal(signal.SIGTERM)
        for launcher in self.launchers:
            try:
                launcher.wait(15)
            except subprocess.TimeoutExpired:
                launcher.kill()
                launcher.wait()
        self.broker.close()

    # ------------------------------------------------------------------------------------------------------ models

    def model(self, name: str, code: str, config: dict[str, Any] | None = None, **files: str) -> dict[str, Any]:
        """Writes a Python model and returns its configuration."""
        folder = self.path / "models" / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.py").write_text(code)
        for file, text in files.items():
            (folder / f"{file}.py").write_text(text)
        return {
            "name": name,
            "backend": "python",
            "max_batch_size": 8,
            "input": [{"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]}],
            "output": [{"name": "OUT", "data_type": "TYPE_INT32", "dims": [-1]}],
            "default_model_filename": "model.py",
        } | (config or {})

    def onnx_model(self, name: str, model: Any, config: dict[str, Any] | None = None) -> dict[str, Any]:
        """Writes an ONNX model and returns the configuration that a model without config.pbtxt has."""
        folder = self.path / "models" / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return {
            "name": name,
            "backend": "onnxruntime",
            "max_batch_size": 0,
            "input": [],
            "output": [],
            "default_model_filename": "model.onnx",
        } | (config or {})

    def spawn(self, config: dict[str, Any], complete: bool = False, **options: Any) -> str:
        """Asks for a worker; returns its id."""
        name = config["name"]
        worker = new_peer_id()
        folder = self.path / "models" / name
        spawn = Spawn(
            worker=worker,
            model=name,
            version=1,
            instance=0,
            instance_name=f"{name}_0_0",
            kind=options.pop("kind", "KIND_CPU"),
            device=0,
            config=json.dumps(config),
            config_hash="hash",
            complete=complete,
            model_dir=str(folder),
            version_dir=str(folder / "1"),
            **options,
        )
        self.broker.to_launcher(spawn)
        self.alive.append(worker)
        return worker

    def ready(self, config: dict[str, Any], **options: Any) -> str:
        """A worker that is ready."""
        worker = self.spawn(config, **options)
        self.broker.expect(Ready, where=lambda ready: ready.worker == worker)
        return worker

    def load_failure(self, config: dict[str, Any], **options: Any) -> str:
        """The reason why a worker could not load, after its death."""
        worker = self.spawn(config, **options)
        failed = self.broker.expect(LoadFailed)
        assert failed.worker == worker
        died = self.broker.expect(Died)
        assert (died.worker, died.exit_code, died.signal) == (worker, 1, None)
        return failed.fault.message

    def complete(self, config: dict[str, Any], **options: Any) -> tuple[str, dict[str, Any]]:
        """A worker that is ready with the configuration that it completed, and that."""
        worker = self.spawn(config, complete=True, **options)
        completed = self.broker.expect(Completed)
        self.broker.to_control(worker, Configured(completed.config, "completed hash"))
        self.broker.expect(Ready)
        return worker, json.loads(completed.config)

    # ---------------------------------------------------------------------------------------------------- requests

    def send(self, worker: str, *requests: Request) -> int:
        """One batch of these; returns its id."""
        self.batches += 1
        items = tuple(Dispatch(self.requester.id, request) for request in requests)
        self.broker.to_data(worker, Batch(self.broker.epoch, self.batches, items))
        if worker not in self.requester.links:
            self.requester.accept()
        return self.batches

    def done(self, batch: int) -> Done:
        return self.broker.expect(Done, where=lambda done: done.batch == batch)

    def infer(self, worker: str, model: str, **inputs: Array) -> Response:
        """One request to its response, and ``Done``. The inputs are freed."""
        request = self.requester.request(model, *[self.requester.put(name, array) for name, array in inputs.items()])
        batch = self.send(worker, request)
        response = self.requester.response(worker)
        assert (response.id, response.attempt, response.index, response.final) == (request.id, 1, 0, True)
        done = self.done(batch)
        assert done.failed == ((0,) if response.error else ())
        self.requester.free(request)
        return response

    def ask(self, worker: str, model: str, array: Array) -> Array:
        """The only output of a model with one input ``IN``."""
        outputs = self.requester.outputs(self.infer(worker, model, IN=array))
        (output,) = outputs.values()
        return output

    def model_log(self, name: str) -> str:
        return (self.run_dir.model_logs / f"{name}.log").read_text()


def ints(*values: int) -> Array:
    """A batch of one with these numbers."""
    return np.array([values], np.int32)
