"""The requester with real sockets and real shared memory, against a broker and workers that do what a test says."""

import asyncio
import errno
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from conch.errors import Cancelled, Internal, InvalidArgument, ModelError, NotReady, Overloaded
from conch.messages import (
    Answer,
    AskStatistics,
    Block,
    Duration,
    Fault,
    ModelStatistics,
    Region,
    RegionTable,
    Rejected,
    RequesterToWorker,
    Response,
    Responses,
    Retired,
    SegmentAdded,
    TensorDescription,
    UnloadModel,
)
from conch.requester.inference import InferenceCall, InferenceResult, Outcome, TensorInput
from conch.requester.results import COPY_LIMIT_NBYTES
from shm.arena import IDLE_S, Arena
from shm.region_files import open_key
from tests.client_memory import client_memory
from tests.frontends.fakes import eventually, on_uvloop
from tests.frontends.samples import entry, int32, simple_call, table
from tests.frontends.setup import DATA0, DATA1, call, data_of, setup


class TestAnswers:
    @on_uvloop
    async def test_small_answer_is_copied(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            request_call = call()
            request_call.client_id = "mine"
            request_call.parameters = {"a": 1, "b": "x", "c": True, "d": 1.5}
            request_call.outputs = ("OUTPUT0", "OUTPUT1")
            request_call.priority = 3
            request_call.timeout_us = 77
            future = s.submit(request_call)
            request = await s.broker.request()
            assert (request.attempt, request.model, request.version) == (1, "simple", 1)
            assert (request.batch_size, request.shape_key, request.outputs) == (1, "", ("OUTPUT0", "OUTPUT1"))
            assert (request.client_id, request.parameters) == ("mine", {"a": 1, "b": "x", "c": True, "d": 1.5})
            assert (request.priority, request.timeout_us) == (3, 77)
            worker = s.worker()
            await worker.answer(request, parameters={"took": 5})
            result = await future
            assert (result.model_name, result.model_version, result.client_id) == ("simple", 1, "mine")
            assert result.parameters == {"took": 5}
            assert [(output.name, output.datatype, output.shape) for output in result.outputs] == [
                ("OUTPUT0", "INT32", (1, 16)),
                ("OUTPUT1", "INT32", (1, 16)),
            ]
            assert data_of(result) == {"OUTPUT0": DATA0, "OUTPUT1": DATA1}
            assert not result.borrowed
            assert worker.outstanding() == 0
            assert s.requester.inflight == 0

    @on_uvloop
    async def test_large_answer_is_lent_until_it_is_released(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            s.broker.table = table(entry(max_batch_size=100_000), revision=2)
            s.broker.send(s.broker.table)
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 100_000)
            worker = s.worker()
            future = s.submit(call(COPY_LIMIT_NBYTES))
            await worker.answer(await s.broker.request())
            result = await future
            assert result.borrowed
            assert data_of(result)["OUTPUT1"] == b"\x02" * COPY_LIMIT_NBYTES
            assert worker.outstanding() == 1
            result.release()
            result.release()
            assert worker.outstanding() == 0

    @on_uvloop
    async def test_lent_answer_outlives_its_connection(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            s.broker.send(table(entry(max_batch_size=100_000), revision=2))
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 100_000)
            worker = s.worker()
            future = s.submit(call(COPY_LIMIT_NBYTES))
            await worker.answer(await s.broker.request())
            result = await future
            worker.disconnect()
            await eventually(lambda: len(s.requester._links) == 0)
            assert data_of(result)["OUTPUT1"] == b"\x02" * COPY_LIMIT_NBYTES
            result.release()
            assert worker.outstanding() == 0

    @on_uvloop
    async def test_lent_answer_that_nobody_takes_is_released(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            s.broker.send(table(entry(max_batch_size=100_000), revision=2))
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 100_000)
            worker = s.worker()

            async def caller() -> None:
                await s.submit(call(COPY_LIMIT_NBYTES))

            task = asyncio.create_task(caller())
            request = await s.broker.request()
            finish = s.requester._pending.finish

            def answer_and_cancel(response: Response) -> Any:
                asyncio.get_running_loop().call_soon(task.cancel)
                return finish(response)

            s.requester._pending.finish = answer_and_cancel  # type: ignore[method-assign]
            await worker.answer(request)
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually(lambda: worker.outstanding() == 0)

    @on_uvloop
    async def test_many_at_once_through_several_workers(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            workers = [s.worker() for _ in range(3)]
            calls = []
            for i in range(300):
                data = struct.pack("<16i", *[i] * 16)
                calls.append(InferenceCall([TensorInput("INPUT0", "INT32", (1, 16), data), int32("INPUT1", 1, 16)]))
            futures = [s.submit(c) for c in calls]
            requests = [await s.broker.request() for _ in calls]
            for i in range(0, 300, 10):
                await workers[i % 3].answer(*requests[i : i + 10])
            results = await asyncio.gather(*futures)
            for i, result in enumerate(results):
                assert data_of(result)["OUTPUT0"] == struct.pack("<16i", *[i] * 16)
            assert sum(worker.outstanding() for worker in workers) == 0

    @on_uvloop
    async def test_errors(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            worker = s.worker()
            future = s.submit()
            worker.fail(await s.broker.request(), Fault("ModelError", "it raised"))
            with pytest.raises(ModelError, match="it raised"):
                await future
            future = s.submit()
            request = await s.broker.request()
            s.broker.send(Rejected(request.id, 1, Fault("Overloaded", "Exceeds maximum queue size")))
            with pytest.raises(Overloaded):
                await future
            with pytest.raises(InvalidArgument):
                s.submit(InferenceCall([]))
            assert s.requester.inflight == 0

    @on_uvloop
    async def test_parameters_that_no_message_can_hold(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            with pytest.raises(InvalidArgument, match="cannot be passed on"):
                await s.submit(simple_call(parameters={"a": 2**70}))
            assert s.requester.inflight == 0

    @on_uvloop
    async def test_asked_without_a_future(self, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
        async with setup(run_dir) as s:
            model = s.requester.models.lookup("simple")
            outcomes: list[Outcome] = []

            def break_down(outcome: Outcome) -> None:
                outcomes.append(outcome)
                raise RuntimeError("a bug")

            callbacks = (break_down, outcomes.append, outcomes.append)
            asked = [s.requester.ask(model, simple_call(), callback) for callback in callbacks]
            asked[2].cancel()
            requests = [await s.broker.request() for _ in callbacks]
            worker = s.worker()
            await worker.answer(*requests)
            await eventually(lambda: len(outcomes) == 2)
            assert all(isinstance(outcome, InferenceResult) for outcome in outcomes)
            asked[0].cancel()
            assert (worker.outstanding(), s.requester.inflight) == (0, 0)
            assert "could not be handed on" in caplog.text
            caplog.clear()  # the traceback holds on to memory

    @on_uvloop
    async def test_no_answer_comes_before_ask_returns(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            outcomes: list[Outcome] = []
            s.requester.ask(s.requester.models.lookup("simple"), simple_call(parameters={"a": 2**70}), outcomes.append)
            assert outcomes == []
            await eventually(lambda: len(outcomes) == 1)
            assert isinstance(outcomes[0], InvalidArgument)

    @pytest.mark.parametrize("segment", ["unknown", "past its end"])
    @on_uvloop
    async def test_reference_to_memory_that_is_not_there(self, run_dir: Path, segment: str) -> None:
        async with setup(run_dir) as s:
            worker = s.worker()
            future = s.submit()
            request = await s.broker.request()
            await worker.inputs_of(request)
            good = worker.echo(request)
            block = good.outputs[0].reference
            assert isinstance(block, Block)
            bad = Block(5 if segment == "unknown" else block.segment, block.offset, 1 << 30)
            outputs = (TensorDescription("OUTPUT0", "INT32", (1, 16), bad),)
            worker.send(Responses((Response(request.id, 1, 0, True, outputs, good.lease),)))
            with pytest.raises(Internal, match="unusable answer"):
                await future
            assert worker.outstanding() == 0


class TestMemory:
    @on_uvloop
    async def test_arena_grows_off_the_loop_and_announces_its_segments_first(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            s.broker.send(table(entry(max_batch_size=1_000_000), revision=2))
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 1_000_000)
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            futures = [s.submit(call(1 << 20)) for _ in range(4)]
            small = s.submit()
            for _ in range(5):
                request = await s.broker.request()
                assert set(await worker.inputs_of(request)) == {"INPUT0", "INPUT1"}
                await worker.answer(request)
            for future in (*futures, small):
                (await future).release()

    @on_uvloop
    async def test_full_arena_refuses_and_nothing_dies(self, run_dir: Path) -> None:
        async with setup(run_dir, arena_cap_nbytes=3 << 20) as s:
            s.broker.send(table(entry(max_batch_size=1_000_000), revision=2))
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 1_000_000)
            with pytest.raises(Overloaded, match="memory for inputs is full"):
                await s.submit(call(2 << 20))
            future = s.submit()
            await s.worker().answer(await s.broker.request())
            await future

    @on_uvloop
    async def test_arena_that_cannot_grow(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def grow(self: Arena, nbytes: int) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        with client_memory(4096) as memory:
            async with setup(run_dir) as s:
                s.broker.send(table(entry(max_batch_size=1_000_000), revision=2))
                place = open_key(memory.key)
                region = Region("system", "mine", 7, 0, 4096, memory.key, os.getpid(), place.descriptor, place.file)
                s.broker.send(RegionTable(1, 3, (region,)))
                await eventually(lambda: "mine" in s.requester.regions)
                os.close(place.descriptor)
                large = call(8 << 20)
                large.targets["OUTPUT0"] = s.requester.regions.window("mine", 0, 64)
                with monkeypatch.context() as patch:
                    patch.setattr(Arena, "grow", grow)
                    with pytest.raises(Overloaded, match="cannot make room for inputs"):
                        await s.submit(large)
                s.broker.send(RegionTable(1, 4, ()))
                await eventually(lambda: "mine" not in s.requester.regions)
                assert not list(s.requester._region_memory.announcements())
                future = s.submit()
                await s.worker().answer(await s.broker.request())
                await future

    @on_uvloop
    async def test_worker_whose_announcement_the_kernel_refuses_is_tried_now_and_then(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            (link,) = s.requester._links._links.values()
            worker.read_segments()
            send, tries = link.channel.send_nowait, 0

            def short_of_descriptors(message: RequesterToWorker, descriptor: int | None = None) -> bool:
                nonlocal tries
                tries += 1
                return send(message, descriptor) if tries > 5 else False

            link.channel.send_nowait = short_of_descriptors  # type: ignore[method-assign]
            started = time.monotonic()
            for number in (7, 8):
                s.requester._links.retire(number)

            def all_read() -> bool:
                worker.read_segments()
                return worker.retired == [7, 8]

            await eventually(all_read)
            assert tries == 7
            assert time.monotonic() - started > 0.05

    @on_uvloop
    async def test_cancelled_while_the_arena_grows(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            s.broker.send(table(entry(max_batch_size=1_000_000), revision=2))
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 1_000_000)
            future = s.submit(call(8 << 20))
            assert s.requester.inflight == 1
            future.cancel()
            await eventually(lambda: s.requester.inflight == 0)
            assert s.broker.has_nothing()

    @on_uvloop
    async def test_closed_while_the_arena_grows(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            s.broker.send(table(entry(max_batch_size=1_000_000), revision=2))
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 1_000_000)
            future = s.submit(call(8 << 20))
            await asyncio.sleep(0)
            await s.requester.close()
            with pytest.raises(NotReady):
                await future

    @on_uvloop
    async def test_idle_segments_are_retired(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            worker.read_segments()
            (segment,) = s.requester._arena.segments
            s.requester._arena.retire_idle(0.0)
            s.requester._arena.retire_idle(IDLE_S)
            worker.read_segments()
            assert worker.retired == [segment.number]

    @on_uvloop
    async def test_worker_that_does_not_read_gets_all_announcements_later(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            worker = s.worker()
            await eventually(lambda: len(s.requester._links) == 1)
            (segment,) = s.requester._arena.segments
            for _ in range(2000):
                s.requester._links.retire(7)
            s.requester._links.announce(SegmentAdded(segment.number, segment.nbytes), segment.descriptor)

            def all_read() -> bool:
                worker.read_segments()
                return len(worker.retired) == 2000

            await eventually(all_read)
            assert segment.number in worker.inputs


class TestGoingAway:
    @on_uvloop
    async def test_cancelled_request_keeps_its_inputs_until_retired(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            task = asyncio.create_task(_awaited(s.submit()))
            request = await s.broker.request()
            task.cancel()
            cancel = await s.broker.cancel()
            assert (cancel.requester, cancel.id) == (s.requester.id, request.id)
            assert s.requester.inflight == 1
            s.broker.send(Retired((request.id,)))
            await eventually(lambda: s.requester.inflight == 0)
            with pytest.raises(asyncio.CancelledError):
                await task

    @on_uvloop
    async def test_late_answer_is_given_back(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            worker = s.worker()
            future = s.submit()
            request = await s.broker.request()
            future.cancel()
            await s.broker.cancel()
            await worker.answer(request)
            await worker.answer(request)
            await eventually(lambda: worker.outstanding() == 0)
            assert s.requester.inflight == 0

    @on_uvloop
    async def test_close_answers_what_waits(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            future = s.submit()
            calling = asyncio.create_task(s.requester.call(AskStatistics(0)))
            await s.broker.request()
            await s.requester.close()
            for waiting in (future, calling):
                with pytest.raises(NotReady, match="Server exiting"):
                    await waiting
            with pytest.raises(NotReady):
                s.submit()

    @on_uvloop
    async def test_deadline(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            with pytest.raises(Cancelled):
                await s.submit(simple_call(deadline=0.0))
            request = await s.broker.request()
            assert (await s.broker.cancel()).id == request.id

    @on_uvloop
    async def test_too_many(self, run_dir: Path) -> None:
        async with setup(run_dir, max_inflight=2) as s:
            s.broker.send(table(entry(), entry(name="other"), entry(name="third"), revision=2))
            await eventually(lambda: s.requester.models.ready_versions("third") == (1,))
            futures = [s.submit(), s.submit(model="other")]
            with pytest.raises(Overloaded, match="too many requests in flight"):
                s.submit(model="third")
            worker = s.worker()
            await worker.answer(*[await s.broker.request() for _ in futures])
            await asyncio.gather(*futures)
            s.submit().cancel()


async def _awaited(future: "asyncio.Future[InferenceResult]") -> InferenceResult:
    return await future


class TestCalls:
    @on_uvloop
    async def test_statistics(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            none = Duration()
            found = ModelStatistics(
                "simple", 1, 5, 6, 7, Duration(8, 9), none, none, none, none, none, none, none, (), 2
            )
            calling = asyncio.create_task(s.requester.call(AskStatistics(0, "simple")))
            asked = await s.broker.receive(AskStatistics)
            assert (asked.name, asked.version) == ("simple", 0)
            s.broker.send(Answer(99))
            s.broker.send(Answer(asked.call, None, [found]))
            assert await calling == [found]
            calling = asyncio.create_task(s.requester.call(AskStatistics(0)))
            asked = await s.broker.receive(AskStatistics)
            s.broker.send(Answer(asked.call, None, [["nonsense"]]))
            with pytest.raises(Internal):
                await calling

    @on_uvloop
    async def test_refused(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            calling = asyncio.create_task(s.requester.call(UnloadModel(0, "simple", True)))
            asked = await s.broker.receive(UnloadModel)
            assert asked.unload_dependents
            s.broker.send(Answer(asked.call, Fault("NotReady", "explicit model load / unload is not allowed")))
            with pytest.raises(NotReady, match="not allowed"):
                await calling


@on_uvloop
async def test_table_is_passed_on(run_dir: Path) -> None:
    async with setup(run_dir) as s:
        seen: list[int] = []
        s.requester.on_table = lambda found: seen.append(found.revision)
        s.broker.send(table(entry(version=5), revision=9))
        await eventually(lambda: seen == [9])
        assert s.requester.models.lookup("simple").version == 5
        s.requester.on_table = _raise
        s.broker.send(table(entry(version=6), revision=10))
        s.broker.send(table(entry(version=7), revision=11))
        await eventually(lambda: s.requester.models.lookup("simple").version == 7)


def _raise(found: object) -> None:
    raise RuntimeError("a callback's bug")
