"""The requester's peers for tests: a broker that says what it is told to, and workers.

Real sockets, real shared memory.
"""

import asyncio
import functools
import os
import select
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop
import zmq

from broker.links import DataLinks
from conch.channels.seqpacket import SeqpacketChannel, connect
from conch.channels.zeromq import RouterChannel
from conch.messages import (
    PROTOCOL_VERSION,
    Block,
    Cancel,
    Fault,
    Link,
    Message,
    Request,
    RequesterHello,
    RequesterToWorker,
    Response,
    Responses,
    SegmentAdded,
    SegmentRetired,
    TableSeen,
    TensorDescription,
    ToBroker,
    Welcome,
    Window,
    WorkerToRequester,
)
from conch.run_dir import RunDir, new_peer_id
from shm.arena import Arena
from shm.leases import LeasedArena
from shm.mapping import Mappings
from tests.frontends.samples import entry, table

PATIENCE_S = 10
Kind = TypeVar("Kind")


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async test on uvloop, as the frontends do; what the loop complains of fails the test."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
            await test(*args, **kwargs)

        uvloop.run(main())
        assert not complaints

    return run


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.002)


class FakeBroker:
    """``received`` has what requesters sent and nobody has looked at yet. It says ``Welcome`` and the table by itself
    while ``welcoming``."""

    def __init__(self, run_dir: Path, epoch: int = 1) -> None:
        self.epoch = epoch
        self.welcoming = True
        self.table = table(entry(), entry("fussy", parameters={"IDEMPOTENT": {"string_value": "false"}}))
        self.hellos: list[RequesterHello] = []
        self.seen: list[TableSeen] = []
        self.peer = b""
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._context = zmq.Context()
        self._router: RouterChannel[Message, ToBroker] = RouterChannel(
            self._context, RunDir(run_dir).broker_socket, ToBroker
        )
        self._poll = select.epoll()
        self._links = DataLinks(RunDir(run_dir), self._poll)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._router.fileno(), self._receive)
        self._loop.add_reader(self._poll.fileno(), self._hear)
        self._loop.call_soon(self._receive)

    def _receive(self) -> None:
        while (received := self._router.receive_nowait()) is not None:
            self.peer, message = received
            if isinstance(message, RequesterHello):
                self._hear()
                self.hellos.append(message)
                if self.welcoming:
                    self.welcome()
            elif isinstance(message, TableSeen):
                self.seen.append(message)
            else:
                self._received.put_nowait(message)

    def _hear(self) -> None:
        for descriptor in self._links.descriptors():
            for _, message in self._links.receive(descriptor):
                self._received.put_nowait(message)

    def welcome(self) -> None:
        self.send(Welcome(PROTOCOL_VERSION, self.epoch))
        self.send(self.table)

    def send(self, message: Message) -> None:
        assert self._router.send_nowait(self.peer, message)
        self._loop.call_soon(self._receive)

    async def receive(self, kind: type[Kind]) -> Kind:
        async with asyncio.timeout(PATIENCE_S):
            message = await self._received.get()
        assert isinstance(message, kind), message
        return message

    async def request(self) -> Request:
        return await self.receive(Request)

    async def cancel(self) -> Cancel:
        return await self.receive(Cancel)

    def has_nothing(self) -> bool:
        self._receive()
        self._hear()
        return self._received.empty()

    def drop_data(self) -> None:
        """Ends the requesters' data connections."""
        for descriptor in self._links.descriptors():
            self._links._drop(descriptor)

    def close(self) -> None:
        self._loop.remove_reader(self._router.fileno())
        self._loop.remove_reader(self._poll.fileno())
        self._links.close()
        self._poll.close()
        self._router.close()
        self._context.destroy(linger=0)


class FakeWorker:
    """Connects to a requester and answers its requests: ``OUTPUT0`` = ``INPUT0``, and so on."""

    def __init__(self, run_dir: Path, requester: str, name: str = "") -> None:
        self.name = name or new_peer_id()
        self.requester = requester
        self.memory = LeasedArena(Arena(64 << 20, "output"))
        self.memory.arena.on_segment_added = lambda segment: self._announce()
        self.inputs = Mappings()
        self.retired: list[int] = []
        self.windows: list[Window] = []
        self._announced: set[int] = set()
        self.channel: SeqpacketChannel[WorkerToRequester, RequesterToWorker] = SeqpacketChannel(
            connect(RunDir(run_dir).requester_socket(requester)), RequesterToWorker
        )
        self.send(Link(PROTOCOL_VERSION, self.name))

    def send(self, message: WorkerToRequester, descriptor: int | None = None) -> None:
        assert self.channel.send_nowait(message, descriptor)

    def _announce(self) -> None:
        for segment in self.memory.segments:
            if segment.number not in self._announced:
                self._announced.add(segment.number)
                self.send(SegmentAdded(segment.number, segment.nbytes, segment.lease_page), segment.descriptor)

    def read_segments(self) -> None:
        while (received := self.channel.receive_nowait()) is not None:
            message, descriptor = received
            if isinstance(message, SegmentAdded):
                assert descriptor is not None
                self.inputs.add(message.segment, descriptor, message.lease_page)
            elif isinstance(message, SegmentRetired):
                self.inputs.remove(message.segment)
                self.retired.append(message.segment)
            else:
                self.windows.append(message)

    async def inputs_of(self, request: Request) -> dict[str, bytes]:
        """Waits until the requester has accepted the connection and announced what the request refers to."""
        await eventually(lambda: self.knows(request))
        return self.known_inputs_of(request)

    def knows(self, request: Request) -> bool:
        self.read_segments()
        return all(isinstance(i.reference, Block) and i.reference.segment in self.inputs for i in request.inputs)

    def known_inputs_of(self, request: Request) -> dict[str, bytes]:
        found = {}
        for tensor in request.inputs:
            assert isinstance(tensor.reference, Block)
            found[tensor.name] = bytes(self.inputs.view(tensor.reference))
        return found

    def echo(self, request: Request, **fields: Any) -> Response:
        """The answer to a request, not yet sent."""
        blocks = [tensor.reference for tensor in request.inputs if isinstance(tensor.reference, Block)]
        data = self.known_inputs_of(request)
        block = self.memory.allocate(sum((block.nbytes + 63) & -64 for block in blocks) or 1)
        offset = 0
        outputs = []
        for tensor in request.inputs:
            piece = Block(block.segment, block.offset + offset, len(data[tensor.name]))
            self.memory.arena.view(piece)[:] = data[tensor.name]
            outputs.append(TensorDescription(tensor.name.replace("IN", "OUT"), tensor.datatype, tensor.shape, piece))
            offset += (piece.nbytes + 63) & -64
        lease = self.memory.lease(block, self.requester)
        return Response(request.id, request.attempt, 0, True, tuple(outputs), lease, **fields)

    async def answer(self, *requests: Request, **fields: Any) -> None:
        for request in requests:
            await self.inputs_of(request)
        self.send(Responses(tuple(self.echo(request, **fields) for request in requests)))

    def fail(self, request: Request, fault: Fault) -> None:
        self.send(Responses((Response(request.id, request.attempt, 0, True, error=fault),)))

    def outstanding(self) -> int:
        self.memory.reclaim()
        return self.memory.outstanding

    def disconnect(self) -> None:
        """What the system does when the process dies. Twice is once."""
        self.channel.close()

    def close(self) -> None:
        self.disconnect()
        self.inputs.close()
        self.memory.close()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
