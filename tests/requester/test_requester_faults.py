"""The requester when workers and brokers die, restart or talk nonsense."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conch.channels import ChannelClosed
from conch.channels.seqpacket import connect
from conch.errors import NotReady, WorkerDied
from conch.messages import (
    Answer,
    Fault,
    LoadModel,
    Lost,
    Responses,
    SegmentAdded,
    Unwelcome,
)
from conch.run_dir import RunDir
from tests.frontends.fakes import FakeBroker, eventually, on_uvloop
from tests.frontends.samples import entry, table
from tests.frontends.setup import data_of, setup

CAUSE = Fault("WorkerDied", "the worker died of signal 9")


class TestDeaths:
    @on_uvloop
    async def test_of_a_worker_is_retried_once(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            future = s.submit()
            request = await s.broker.request()
            s.broker.send(Lost("w1", (request.id,), False, CAUSE, (1,)))
            again = await s.broker.request()
            assert (again.id, again.attempt, again.inputs) == (request.id, 2, request.inputs)
            worker = s.worker()
            await worker.answer(request)  # the dead one's, late
            await worker.answer(again)
            assert data_of(await future)["OUTPUT0"] == bytes(64)
            assert worker.outstanding() == 0

    @on_uvloop
    async def test_twice_alone_convicts(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            future = s.submit()
            request = await s.broker.request()
            s.broker.send(Lost("w1", (request.id,), True, CAUSE, (1,)))
            await s.broker.request()
            s.broker.send(Lost("w2", (request.id,), True, CAUSE, (2,)))
            with pytest.raises(WorkerDied, match="signal 9"):
                await future

    @on_uvloop
    async def test_of_a_worker_that_must_not_repeat(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            future = s.submit(model="fussy")
            request = await s.broker.request()
            s.broker.send(Lost("w1", (request.id,), False, CAUSE, (1,)))
            with pytest.raises(WorkerDied):
                await future

    @pytest.mark.parametrize("named", [True, False], ids=["dead worker", "restarted broker"])
    @on_uvloop
    async def test_what_the_dead_had_sent_is_read_first(self, run_dir: Path, named: bool) -> None:
        """The worker connected, answered and died, with our announcements unread, before we looked at anything."""
        async with setup(run_dir) as s:
            futures = [s.submit() for _ in range(3)]
            requests = [await s.broker.request() for _ in futures]
            lost = Lost("w1" if named else "", tuple(request.id for request in requests), False, CAUSE, (1, 1, 1))
            helper = s.worker()  # it alone reads our segments; w1 writes the answers without looking
            for request in requests:
                await helper.inputs_of(request)
            answers = [helper.echo(request) for request in requests[:2]]
            # from here on the loop does not run until all of it has happened
            dead = s.worker("w1")
            for segment in helper.memory.segments:
                dead.send(SegmentAdded(segment.number, segment.nbytes, segment.lease_page), segment.descriptor)
            dead.send(Responses((answers[0],)))
            dead.send(Responses((answers[1],)))
            s.requester._links._accept()  # announces our segments, which are never read
            dead.disconnect()
            s.requester._from_broker(lost)
            assert [future.done() for future in futures] == [True, True, False]
            assert all([data_of(await future)["OUTPUT0"] == bytes(64) for future in futures[:2]])
            again = await s.broker.request()
            assert (again.id, again.attempt) == (requests[2].id, 2 if named else 1)
            await helper.answer(again)
            await futures[2]

    @on_uvloop
    async def test_connection_with_nonsense_is_closed_and_the_rest_lives_on(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            good, bad = s.worker(), s.worker()
            await eventually(lambda: len(s.requester._links) == 2)
            bad.channel._connection.send(b"\xc1 not MessagePack")
            await eventually(lambda: len(s.requester._links) == 1)
            future = s.submit()
            await good.answer(await s.broker.request())
            await future

    @on_uvloop
    async def test_answers_behind_nonsense_are_taken(self, run_dir: Path) -> None:
        """The worker counts them as delivered."""
        async with setup(run_dir) as s:
            worker = s.worker()
            future = s.submit()
            request = await s.broker.request()
            await worker.inputs_of(request)
            answer = worker.echo(request)
            worker.channel._connection.send(b"\xc1 not MessagePack")
            worker.send(Responses((answer,)))
            assert data_of(await future)["OUTPUT0"] == bytes(64)
            await eventually(lambda: len(s.requester._links) == 0)
            with pytest.raises(ChannelClosed):
                worker.channel.send_nowait(Responses(()))

    @pytest.mark.parametrize("first", [Responses(()), SegmentAdded(1, 4096), SegmentAdded(1, 4096, True)])
    @on_uvloop
    async def test_connection_without_a_name_is_closed(self, run_dir: Path, first: Any) -> None:
        async with setup(run_dir) as s:
            nameless = connect(RunDir(run_dir).requester_socket(s.requester.id))
            nameless.send(msgspec.msgpack.encode(first))
            with nameless:
                try:
                    while await asyncio.get_running_loop().sock_recv(nameless, 1000):
                        pass
                except ConnectionResetError:
                    pass
            assert len(s.requester._links) == 0


class TestBrokerRestarts:
    @on_uvloop
    async def test_requests_are_held_and_awaited_ones_listed(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            running = s.submit()
            running_request = await s.broker.request()
            s.broker.close()
            await eventually(lambda: not s.requester.connected)
            held = s.submit()
            worker = s.worker()
            s.broker = FakeBroker(run_dir, epoch=2)
            held_request = await s.broker.request()
            assert [awaited.id for awaited in s.broker.hellos[0].awaited] == [running_request.id]
            await worker.answer(running_request, held_request)
            await asyncio.gather(running, held)

    @on_uvloop
    async def test_unnoticed_restart_is_noticed_by_unwelcome(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            future = s.submit()
            request = await s.broker.request()
            s.broker.send(Unwelcome(2))
            await eventually(lambda: len(s.broker.hellos) == 2)
            assert [awaited.id for awaited in s.broker.hellos[1].awaited] == [request.id]
            s.broker.send(Lost("", (request.id,), False, CAUSE, (1,)))
            assert (await s.broker.request()).attempt == 1
            future.cancel()
            await s.broker.cancel()

    @on_uvloop
    async def test_calls(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            calling = asyncio.create_task(s.requester.call(LoadModel(0, "simple")))
            await s.broker.receive(LoadModel)
            s.broker.close()
            with pytest.raises(NotReady, match="whether the call was carried out is unknown"):
                await calling
            await eventually(lambda: not s.requester.connected)
            calling = asyncio.create_task(s.requester.call(LoadModel(0, "simple")))
            s.broker = FakeBroker(run_dir, epoch=2)
            load = await s.broker.receive(LoadModel)
            s.broker.send(Answer(load.call))
            await calling

    @on_uvloop
    async def test_calls_of_a_broker_that_drops_the_data_connection(self, run_dir: Path) -> None:
        """It forgets the answers that it could not send yet, once it hears the HELLO."""
        async with setup(run_dir) as s:
            calling = asyncio.create_task(s.requester.call(LoadModel(0, "simple")))
            await s.broker.receive(LoadModel)
            s.broker.drop_data()
            with pytest.raises(NotReady, match="whether the call was carried out is unknown"):
                await calling
            await eventually(lambda: len(s.broker.hellos) == 2)
            await eventually(lambda: s.requester.connected)
            calling = asyncio.create_task(s.requester.call(LoadModel(0, "simple")))
            load = await s.broker.receive(LoadModel)
            s.broker.send(Answer(load.call))
            await calling

    @on_uvloop
    async def test_a_table_that_breaks_us_is_not_the_last(self, run_dir: Path) -> None:
        """The broker sends no other before it has heard that this one was seen."""
        async with setup(run_dir) as s:

            def broken(found: object) -> None:
                raise ValueError

            s.requester.on_table = broken
            s.broker.send(table(entry(), revision=9))
            await eventually(lambda: any(seen.revision == 9 for seen in s.broker.seen))
