"""Clients' memory in a requester: when it is opened, announced, referred to and closed again."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from conch import errors
from conch.messages import (
    Answer,
    ClientRegion,
    Fault,
    LogSettings,
    Lost,
    OutputTarget,
    Region,
    RegionTable,
    RegisterRegion,
    Request,
    Response,
    Responses,
    SegmentAdded,
    SegmentRetired,
    TensorDescription,
    UnregisterRegions,
    UpdateLogSettings,
)
from conch.requester.inference import InferenceCall, RegionWindow, TensorInput
from conch.requester.requester import Requester
from conch.run_dir import RunDir
from tests.broker.harness import broker as broker_process
from tests.broker.harness import write_model
from tests.client_memory import ClientMemory, client_memory
from tests.frontends.fakes import FakeBroker, FakeWorker, eventually, on_uvloop
from tests.frontends.samples import entry, table
from tests.frontends.setup import DATA1, Setup, setup

NUMBER = 77
NBYTES = 8192


def region(memory: ClientMemory, number: int = NUMBER, name: str = "mine", offset: int = 0) -> Region:
    """As a broker would list it; it is this process here."""
    found = os.fstat(memory.descriptor)
    file = (found.st_dev, found.st_ino)
    return Region("system", name, number, offset, NBYTES - offset, memory.key, os.getpid(), memory.descriptor, file)


def tell(broker: FakeBroker, *regions: Region, revision: int = 5) -> None:
    broker.send(RegionTable(broker.epoch, revision, regions))


async def seen(broker: FakeBroker, revision: int) -> None:
    await eventually(lambda: any(message.revision == revision for message in broker.seen))


def announced_to(worker: FakeWorker) -> list[tuple[SegmentAdded | SegmentRetired, bool]]:
    """What the worker was told of regions, and whether a descriptor came with it."""
    found = []
    while (received := worker.channel.receive_nowait()) is not None:
        message, descriptor = received
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(message, SegmentRetired) or (isinstance(message, SegmentAdded) and message.client):
            found.append((message, descriptor is not None))
    return found


def call_on(window: RegionWindow, **fields: object) -> InferenceCall:
    """INPUT0 lies in a client's memory, INPUT1 is here."""
    inputs = [TensorInput("INPUT0", "INT32", (1, 16), b"", window), TensorInput("INPUT1", "INT32", (1, 16), DATA1)]
    return InferenceCall(inputs, **fields)  # type: ignore[arg-type]


def descriptors_of(memory: ClientMemory) -> int:
    """How often this process has the memory open, without the client's own descriptor."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found += memory.key in os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            pass
    return found - 2  # its mapping has a duplicate


@asynccontextmanager
async def with_region(run_dir: Path) -> AsyncIterator[tuple[Setup, ClientMemory]]:
    with client_memory(NBYTES) as memory:
        async with setup(run_dir) as s:
            tell(s.broker, region(memory))
            await seen(s.broker, 5)
            yield s, memory
        assert descriptors_of(memory) == 0


def output(name: str, reference: ClientRegion) -> TensorDescription:
    return TensorDescription(name, "INT32", (1, 16), reference)


def send_outputs(worker: FakeWorker, request: Request, *outputs: TensorDescription) -> None:
    worker.send(Responses((Response(request.id, request.attempt, 0, True, outputs),)))


class TestAnnouncing:
    @on_uvloop
    async def test_each_worker_hears_of_each_region_once(self, run_dir: Path) -> None:
        with client_memory(NBYTES) as memory:
            async with setup(run_dir) as s:
                early = s.worker()
                await eventually(lambda: len(s.requester._links) == 1)
                tell(s.broker, region(memory, offset=4096))
                await seen(s.broker, 5)
                tell(s.broker, region(memory, offset=4096), revision=6)
                await seen(s.broker, 6)
                late = s.worker()
                await eventually(lambda: len(s.requester._links) == 2)
                expected = [(SegmentAdded(NUMBER, 4096, client=True, offset=4096), True)]
                assert announced_to(early) == expected
                assert announced_to(late) == expected

    @on_uvloop
    async def test_what_is_unregistered_is_closed_and_retired(self, run_dir: Path) -> None:
        async with with_region(run_dir) as (s, memory):
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            announced_to(worker)
            assert descriptors_of(memory) == 1
            tell(s.broker, revision=6)
            await seen(s.broker, 6)
            assert descriptors_of(memory) == 0
            assert announced_to(worker) == [(SegmentRetired(NUMBER), False)]
            with pytest.raises(errors.NotFound):
                s.requester.regions.window("mine", 0, 64)

    @on_uvloop
    async def test_a_worker_that_does_not_read_costs_nothing(self, run_dir: Path) -> None:
        """A client registers and unregisters without end while a model runs for long."""
        changes = 1000  # several times what a connection takes
        with client_memory(NBYTES) as memory:
            async with setup(run_dir) as s:
                worker = s.worker()
                await eventually(lambda: len(s.requester._links) == 1)
                (link,) = s.requester._links._links.values()
                for number in range(changes):
                    tell(s.broker, region(memory, number), revision=2 * number)
                    tell(s.broker, revision=2 * number + 1)
                tell(s.broker, region(memory, changes), revision=2 * changes)
                await seen(s.broker, 2 * changes)
                assert 0 < len(link.backlog) < 5
                assert descriptors_of(memory) == 1
                heard = announced_to(worker)
                await eventually(lambda: not link.backlog)
                heard += announced_to(worker)
                known = set()
                for message, _ in heard:
                    if isinstance(message, SegmentAdded):
                        known.add(message.segment)
                    else:
                        known.remove(message.segment)
                assert known == {changes}

    @on_uvloop
    async def test_a_region_that_cannot_be_opened_yet_is_opened_later(self, run_dir: Path) -> None:
        with client_memory(NBYTES) as memory:
            async with setup(run_dir) as s:
                descriptor = os.open("/dev/null", os.O_RDONLY)
                try:
                    absent = Region(
                        "system", "mine", NUMBER, 0, NBYTES, memory.key, os.getpid(), descriptor, region(memory).file
                    )
                    tell(s.broker, absent)
                    await seen(s.broker, 5)
                    with pytest.raises(errors.Overloaded):
                        s.submit(call_on(s.requester.regions.window("mine", 0, 64)))
                    os.dup2(memory.descriptor, descriptor, inheritable=False)
                    await eventually(lambda: descriptors_of(memory) == 2)
                finally:
                    os.close(descriptor)
                s.submit(call_on(s.requester.regions.window("mine", 0, 64))).cancel()


class TestRequests:
    @on_uvloop
    async def test_references_in_the_request(self, run_dir: Path) -> None:
        async with with_region(run_dir) as (s, _):
            window = s.requester.regions.window("mine", 128, 64)
            target = s.requester.regions.window("mine", 1000, 100)
            future = s.submit(call_on(window, targets={"OUTPUT1": target}))
            request = await s.broker.request()
            assert request.inputs[0].reference == ClientRegion(NUMBER, 128, 64)
            assert not isinstance(request.inputs[1].reference, ClientRegion)
            assert request.targets == (OutputTarget("OUTPUT1", ClientRegion(NUMBER, 1000, 100)),)
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            send_outputs(worker, request, output("OUTPUT1", ClientRegion(NUMBER, 1000, 64)))
            (found,) = (await future).outputs
            assert (found.name, found.data) == ("OUTPUT1", b"")
            assert found.region == RegionWindow("mine", NUMBER, 1000, 64)

    @on_uvloop
    async def test_everything_in_regions(self, run_dir: Path) -> None:
        async with with_region(run_dir) as (s, _):
            window = s.requester.regions.window("mine", 0, 64)
            inputs = [TensorInput(name, "INT32", (1, 16), b"", window) for name in ("INPUT0", "INPUT1")]
            targets = {name: s.requester.regions.window("mine", 4096, 64) for name in ("OUTPUT0", "OUTPUT1")}
            future = s.submit(InferenceCall(inputs, targets=targets))
            request = await s.broker.request()
            assert [tensor.reference for tensor in request.inputs] == [ClientRegion(NUMBER, 0, 64)] * 2
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            reference = ClientRegion(NUMBER, 4096, 64)
            send_outputs(worker, request, output("OUTPUT0", reference), output("OUTPUT1", reference))
            result = await future
            assert not result.borrowed
            assert [found.region is not None for found in result.outputs] == [True, True]

    @pytest.mark.parametrize(
        "reference",
        [
            ClientRegion(NUMBER + 1, 1000, 64),
            ClientRegion(NUMBER, 1001, 64),
            ClientRegion(NUMBER, 1000, 101),
            ClientRegion(NUMBER, 1000, -1),
        ],
    )
    @on_uvloop
    async def test_outputs_elsewhere_are_not_believed(self, run_dir: Path, reference: ClientRegion) -> None:
        async with with_region(run_dir) as (s, _):
            window = s.requester.regions.window("mine", 0, 64)
            targets = {"OUTPUT0": s.requester.regions.window("mine", 1000, 100)}
            future = s.submit(call_on(window, targets=targets))
            request = await s.broker.request()
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            send_outputs(worker, request, output("OUTPUT0", reference))
            with pytest.raises(errors.Internal, match="unusable answer"):
                await future

    @on_uvloop
    async def test_an_output_that_nobody_wanted_there_is_not_believed(self, run_dir: Path) -> None:
        async with with_region(run_dir) as (s, _):
            future = s.submit(call_on(s.requester.regions.window("mine", 0, 64)))
            request = await s.broker.request()
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            send_outputs(worker, request, output("OUTPUT0", ClientRegion(NUMBER, 0, 64)))
            with pytest.raises(errors.Internal, match="unusable answer"):
                await future

    @on_uvloop
    async def test_regions_in_use_stay_open_until_the_last_answer(self, run_dir: Path) -> None:
        async with with_region(run_dir) as (s, memory):
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            window = s.requester.regions.window("mine", 0, 64)
            first, second = s.submit(call_on(window)), s.submit(call_on(window, targets={"OUTPUT0": window}))
            requests = [await s.broker.request(), await s.broker.request()]
            tell(s.broker, revision=6)
            await seen(s.broker, 6)
            announced_to(worker)
            assert descriptors_of(memory) == 1
            assert not s.requester._region_memory.held
            worker.fail(requests[0], Fault("ModelError", "no"))
            with pytest.raises(errors.ModelError):
                await first
            assert announced_to(worker) == [] and descriptors_of(memory) == 1
            second.cancel()
            await s.broker.cancel()
            assert announced_to(worker) == [] and descriptors_of(memory) == 1
            worker.fail(requests[1], Fault("ModelError", "no"))
            await eventually(lambda: announced_to(worker) == [(SegmentRetired(NUMBER), False)])
            assert descriptors_of(memory) == 0

    @on_uvloop
    @pytest.mark.parametrize(("name", "offset"), [("mine", 0), ("mine", 63), ("alias", 4096 + 63)])
    async def test_what_writes_over_its_own_input_is_not_run_again(self, run_dir: Path, name: str, offset: int) -> None:
        with client_memory(NBYTES) as memory:
            async with setup(run_dir) as s:
                tell(s.broker, region(memory, offset=4096), region(memory, 78, "alias"))
                await seen(s.broker, 5)
                window = s.requester.regions.window
                future = s.submit(call_on(window("mine", 0, 64), targets={"OUTPUT0": window(name, offset, 64)}))
                request = await s.broker.request()
                s.broker.send(Lost("w", (request.id,), False, Fault("WorkerDied", "killed"), (1,), 1))
                with pytest.raises(errors.WorkerDied, match="killed"):
                    await future

    @on_uvloop
    @pytest.mark.parametrize(("name", "offset"), [("mine", 64), ("alias", 0), ("alias", 4096 - 64)])
    async def test_what_writes_beside_its_input_is(self, run_dir: Path, name: str, offset: int) -> None:
        with client_memory(NBYTES) as memory:
            async with setup(run_dir) as s:
                tell(s.broker, region(memory, offset=4096), region(memory, 78, "alias"))
                await seen(s.broker, 5)
                window = s.requester.regions.window
                future = s.submit(call_on(window("mine", 0, 64), targets={"OUTPUT0": window(name, offset, 64)}))
                request = await s.broker.request()
                s.broker.send(Lost("w", (request.id,), False, Fault("WorkerDied", "killed"), (1,), 1))
                again = await s.broker.request()
                assert (again.id, again.attempt) == (request.id, 2)
                future.cancel()

    @on_uvloop
    async def test_a_region_that_is_gone_or_is_on_a_gpu(self, run_dir: Path) -> None:
        async with with_region(run_dir) as (s, _):
            stale = s.requester.regions.window("mine", 0, 64)
            cuda = Region("cuda", "gpu", 78, 0, 64, device=0, handle=b"h" * 64)
            tell(s.broker, cuda, revision=6)
            await seen(s.broker, 6)
            with pytest.raises(errors.NotFound):
                s.submit(call_on(stale))
            with pytest.raises(errors.Unsupported, match="GPU data path comes later"):
                s.submit(call_on(s.requester.regions.window("gpu", 0, 64)))
            assert s.requester.inflight == 0

    @on_uvloop
    async def test_a_request_that_was_cancelled_while_the_arena_grew(self, run_dir: Path) -> None:
        async with with_region(run_dir) as (s, memory):
            s.broker.send(table(entry(max_batch_size=1_000_000), revision=7))
            await seen(s.broker, 7)
            batch = 1_000_000
            window = s.requester.regions.window("mine", 0, 64)
            target = InferenceCall(
                [
                    TensorInput("INPUT0", "INT32", (batch, 16), bytes(batch * 64)),
                    TensorInput("INPUT1", "INT32", (batch, 16), bytes(batch * 64)),
                ],
                targets={"OUTPUT0": window},
            )
            future = s.submit(target)
            assert s.requester.inflight == 1
            future.cancel()
            await eventually(lambda: s.requester.inflight == 0)
            tell(s.broker, revision=8)
            await eventually(lambda: descriptors_of(memory) == 0)


class TestBrokers:
    @on_uvloop
    async def test_a_hello_lists_what_is_open(self, run_dir: Path) -> None:
        async with with_region(run_dir) as (s, memory):
            cuda = Region("cuda", "gpu", 78, 0, 64, device=0, handle=b"h" * 64)
            tell(s.broker, region(memory), cuda, revision=6)
            await seen(s.broker, 6)
            s.broker.close()
            s.broker = FakeBroker(run_dir, epoch=2)
            s.broker.welcoming = False
            await eventually(lambda: len(s.broker.hellos) == 1)
            listed, on_gpu = s.broker.hellos[0].regions
            assert on_gpu == cuda
            assert (listed.number, listed.name, listed.file) == (NUMBER, "mine", region(memory).file)
            assert listed.holder_pid == os.getpid() and listed.descriptor != memory.descriptor
            assert memory.key in os.readlink(f"/proc/self/fd/{listed.descriptor}")
            # nothing is dropped before the new broker has spoken
            assert s.requester.regions.window("mine", 0, 64).number == NUMBER
            assert descriptors_of(memory) == 1
            s.broker.welcome()
            await eventually(lambda: s.requester.connected)

    @on_uvloop
    async def test_calls(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            calls = [
                asyncio.ensure_future(s.requester.call(RegisterRegion(0, "a", "/k", 0, 2**64 - 1))),
                asyncio.ensure_future(s.requester.call(UnregisterRegions(0, "system"))),
                asyncio.ensure_future(s.requester.call(UpdateLogSettings(0, {"info": False}))),
            ]
            first = await s.broker.receive(RegisterRegion)
            s.broker.send(Answer(first.call, Fault("AlreadyExists", "there is one")))
            s.broker.send(Answer((await s.broker.receive(UnregisterRegions)).call))
            s.broker.send(Answer((await s.broker.receive(UpdateLogSettings)).call, None, LogSettings(info=False)))
            with pytest.raises(errors.AlreadyExists, match="there is one"):
                await calls[0]
            assert await calls[1] is None
            assert await calls[2] == LogSettings(info=False)

    @on_uvloop
    async def test_a_size_of_more_than_64_bits_hurts_nobody_else(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            with pytest.raises(errors.InvalidArgument):
                await s.requester.call(RegisterRegion(0, "a", "/k", 0, 2**64))
            good = asyncio.ensure_future(s.requester.call(UnregisterRegions(0, "system")))
            s.broker.send(Answer((await s.broker.receive(UnregisterRegions)).call))
            await good

    @on_uvloop
    async def test_two_requesters_and_two_brokers(self, run_dir: Path, tmp_path: Path) -> None:
        """What is registered through one is usable through the other at once, and survives the broker."""
        write_model(tmp_path, "echo")
        RunDir(run_dir).create()
        async with AsyncExitStack() as stack:
            memory = stack.enter_context(client_memory(NBYTES))
            with broker_process(run_dir, tmp_path) as process:
                requesters = [Requester(RunDir(run_dir)) for _ in range(2)]
                for requester in requesters:
                    await requester.start()
                    stack.push_async_callback(requester.close)
                await eventually(lambda: all(requester.connected for requester in requesters))
                one, two = requesters
                await one.call(RegisterRegion(0, "mine", memory.key, 0, NBYTES))
                window = two.regions.window("mine", 0, 64)
                assert descriptors_of(memory) == 2
                with pytest.raises(errors.AlreadyExists):
                    await two.call(RegisterRegion(0, "mine", memory.key, 0, NBYTES))
                process.kill()
            memory.unlink()
            await eventually(lambda: not one.connected and not two.connected)
            assert one.regions.window("mine", 0, 64) == window
            with broker_process(run_dir, tmp_path):
                await eventually(lambda: one.connected and two.connected)
                await one.call(UnregisterRegions(0, "cuda"))
                assert two.regions.window("mine", 0, 64) == one.regions.window("mine", 0, 64) == window
                await two.call(UnregisterRegions(0, "system", "mine"))
                with pytest.raises(errors.NotFound):
                    one.regions.window("mine", 0, 64)
                assert descriptors_of(memory) == 0
