"""Requests with many responses: order, errors among them, flow control, and every way to end."""

import time
from pathlib import Path
from typing import Any

import pytest

from conch import windows
from conch.errors import Cancelled, Internal, InvalidArgument, ModelError, NotReady, Overloaded, WorkerDied
from conch.messages import Block, Fault, Lost, Request, Response, Responses, Retired, TensorDescription, Window
from conch.requester.asked import Asked
from conch.requester.inference import InferenceCall, InferenceResult, Outcome
from conch.requester.results import COPY_LIMIT_NBYTES
from tests.frontends.fakes import FakeWorker, eventually, on_uvloop
from tests.frontends.samples import entry, simple_call, table
from tests.frontends.setup import DATA0, DATA1, Setup, call, data_of, setup

CAUSE = Fault("WorkerDied", "the worker died of signal 9")


class Reader:
    """Asks ``simple`` and keeps what comes."""

    def __init__(self, s: Setup, call: InferenceCall | None = None, model: str = "talker") -> None:
        self.outcomes: list[Outcome | None] = []
        self.finals: list[bool] = []
        self.asked: Asked = s.requester.stream(s.requester.models.lookup(model), call or simple_call(), self._take)

    def _take(self, outcome: Outcome | None, final: bool) -> None:
        self.outcomes.append(outcome)
        self.finals.append(final)

    @property
    def over(self) -> bool:
        return self.finals[-1:] == [True]

    def result(self, position: int) -> InferenceResult:
        found = self.outcomes[position]
        assert isinstance(found, InferenceResult)
        return found


async def talker(s: Setup) -> None:
    """A model that is decoupled, and takes large batches."""
    decoupled = entry("talker", max_batch_size=100_000, model_transaction_policy={"decoupled": True})
    s.broker.send(table(entry(max_batch_size=100_000), decoupled, revision=2))
    await eventually(lambda: "talker" in [found.name for found in s.requester.models.index()])


def response(request: Request, index: int, final: bool = False, **fields: Any) -> Response:
    return Response(request.id, request.attempt, index, final, **fields)


def part(worker: FakeWorker, request: Request, index: int, data: bytes, final: bool = False) -> Response:
    """A response that holds ``data``."""
    block = worker.memory.allocate(len(data))
    worker.memory.arena.view(block)[:] = data
    lease = worker.memory.lease(block, worker.requester)
    outputs = (TensorDescription("OUTPUT0", "INT32", (len(data) // 4,), block),)
    return response(request, index, final, outputs=outputs, lease=lease)


def windows_of(worker: FakeWorker) -> list[Window]:
    worker.read_segments()
    return worker.windows


class TestResponses:
    @on_uvloop
    async def test_in_order_with_errors_between_and_an_empty_end(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            await worker.inputs_of(request)
            error = response(request, 500, error=Fault("ModelError", "not this one"))
            said = [error if i == 500 else part(worker, request, i, i.to_bytes(4, "little")) for i in range(1000)]
            for start in range(0, 1000, 100):
                worker.send(Responses(tuple(said[start : start + 100])))
            worker.send(Responses((response(request, 1000, True),)))
            await eventually(lambda: reader.over)
            assert len(reader.outcomes) == 1001
            assert reader.outcomes[-1] is None and reader.finals == [False] * 1000 + [True]
            assert isinstance(reader.outcomes[500], ModelError)
            found = [data_of(reader.result(i))["OUTPUT0"] for i in range(1000) if i != 500]
            assert found == [i.to_bytes(4, "little") for i in range(1000) if i != 500]
            assert (worker.outstanding(), s.requester.inflight) == (0, 0)

    @on_uvloop
    async def test_large_ones_are_lent_until_they_are_released(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            await worker.inputs_of(request)
            large = bytes(COPY_LIMIT_NBYTES + 4)
            worker.send(Responses((part(worker, request, 0, large), part(worker, request, 1, large, True))))
            await eventually(lambda: reader.over)
            assert worker.outstanding() == 2
            assert all(reader.result(i).borrowed for i in range(2))
            reader.result(1).release()
            assert worker.outstanding() == 1
            reader.outcomes.clear()  # dropped is released
            assert worker.outstanding() == 0

    @on_uvloop
    async def test_model_that_is_not_decoupled_gives_one(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            reader = Reader(s, call(), model="simple")
            worker = s.worker()
            await worker.answer(await s.broker.request())
            await eventually(lambda: reader.over)
            assert data_of(reader.result(0)) == {"OUTPUT0": DATA0, "OUTPUT1": DATA1}
            reader = Reader(s, model="simple")
            request = await s.broker.request()
            worker.send(Responses((response(request, 0, True),)))
            await eventually(lambda: reader.over)
            assert reader.result(0).outputs == []

    @on_uvloop
    async def test_an_unusable_one_is_an_error(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            outputs = (TensorDescription("OUTPUT0", "INT32", (1,), Block(99, 0, 4)),)
            worker.send(Responses((response(request, 0, outputs=outputs), response(request, 1, True))))
            await eventually(lambda: reader.over)
            assert isinstance(reader.outcomes[0], Internal) and reader.outcomes[1] is None

    @on_uvloop
    async def test_what_the_receiver_raises_harms_nothing(
        self, run_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            finals: list[bool] = []

            def break_down(outcome: Outcome | None, final: bool) -> None:
                finals.append(final)
                raise RuntimeError("a bug")

            s.requester.stream(s.requester.models.lookup("talker"), simple_call(), break_down)
            request = await s.broker.request()
            worker = s.worker()
            worker.send(Responses((response(request, 0), response(request, 1, True))))
            await eventually(lambda: finals == [False, True])
            assert "could not be handed on" in caplog.text
            caplog.clear()  # the traceback holds on to memory

    @on_uvloop
    async def test_refusals(self, run_dir: Path) -> None:
        async with setup(run_dir, max_inflight=1) as s:
            await talker(s)
            with pytest.raises(InvalidArgument):
                Reader(s, InferenceCall([]))
            reader = Reader(s)
            with pytest.raises(Overloaded):
                Reader(s)
            request = await s.broker.request()
            s.worker().send(Responses((response(request, 0, True),)))
            await eventually(lambda: reader.over)
            reader = Reader(s, simple_call(parameters={"a": 2**70}))
            await eventually(lambda: reader.over)
            assert isinstance(reader.outcomes[0], InvalidArgument)


class TestFlowControl:
    @on_uvloop
    async def test_says_what_has_been_released(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            other, worker = s.worker(), s.worker()
            await worker.inputs_of(request)
            count = windows.READ_RESPONSES
            for i in range(2 * count):
                worker.send(Responses((part(worker, request, i, bytes(4)),)))
            await eventually(lambda: len(reader.outcomes) == 2 * count)
            assert all(reader.result(i).borrowed for i in range(2 * count))
            for i in range(count - 1):
                reader.result(i).release()
                reader.result(i).release()
            assert windows_of(worker) == []
            reader.result(count).release()
            assert windows_of(worker) == [Window(request.id, count)]
            reader.outcomes.clear()
            assert windows_of(worker) == [Window(request.id, count)] * 2
            assert windows_of(other) == []
            worker.send(Responses((response(request, 0, True),)))
            await eventually(lambda: reader.over)

    @on_uvloop
    async def test_bytes_count_too(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            await worker.inputs_of(request)
            half = bytes(windows.READ_NBYTES // 2)
            for i in range(2):
                worker.send(Responses((part(worker, request, i, half),)))
            await eventually(lambda: len(reader.outcomes) == 2)
            reader.result(0).release()
            assert windows_of(worker) == []
            reader.result(1).release()
            assert windows_of(worker) == [Window(request.id, 2)]
            reader.asked.cancel()

    @on_uvloop
    async def test_errors_count_when_they_are_handed_on(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            for i in range(windows.READ_RESPONSES):
                worker.send(Responses((response(request, i, error=CAUSE),)))
            await eventually(lambda: windows_of(worker) == [Window(request.id, windows.READ_RESPONSES)])
            assert len(reader.outcomes) == windows.READ_RESPONSES

    @on_uvloop
    async def test_a_stream_that_is_over_says_nothing(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            cancelled, ended = Reader(s), Reader(s)
            worker = s.worker()
            for reader in (cancelled, ended):
                request = await s.broker.request()
                await worker.inputs_of(request)
                for i in range(2 * windows.READ_RESPONSES):
                    worker.send(Responses((part(worker, request, i, bytes(4), reader is ended and i == 63),)))
            await eventually(lambda: ended.over)
            cancelled.asked.cancel()
            for reader in (cancelled, ended):
                assert len(reader.outcomes) == 2 * windows.READ_RESPONSES
                reader.outcomes.clear()
            assert windows_of(worker) == []
            assert worker.outstanding() == 0

    @on_uvloop
    async def test_worker_that_does_not_read_is_told_later(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            await worker.inputs_of(request)
            for _ in range(2000):
                s.requester._links.retire(7)
            for i in range(windows.READ_RESPONSES):
                worker.send(Responses((part(worker, request, i, bytes(4)),)))
            await eventually(lambda: len(reader.outcomes) == windows.READ_RESPONSES)
            reader.outcomes.clear()
            await eventually(lambda: windows_of(worker) == [Window(request.id, windows.READ_RESPONSES)])
            assert len(worker.retired) == 2000


class TestEnds:
    @on_uvloop
    async def test_cancelled_in_mid_stream(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            await worker.inputs_of(request)
            worker.send(Responses((part(worker, request, 0, bytes(4)),)))
            await eventually(lambda: len(reader.outcomes) == 1)
            reader.asked.cancel()
            reader.asked.cancel()
            assert (await s.broker.cancel()).id == request.id
            large = bytes(COPY_LIMIT_NBYTES + 4)
            worker.send(Responses((part(worker, request, 1, large), part(worker, request, 2, large))))
            await eventually(lambda: worker.outstanding() == 0)
            assert s.requester.inflight == 1  # a worker may still read its inputs
            s.broker.send(Retired((request.id,)))
            await eventually(lambda: s.requester.inflight == 0)
            assert reader.finals == [False] and s.broker.has_nothing()

    @on_uvloop
    async def test_cancelled_by_whom_a_response_is_given_to(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            taken: list[bool] = []

            def take(outcome: Outcome | None, final: bool) -> None:
                taken.append(final)
                asked.cancel()

            asked = s.requester.stream(s.requester.models.lookup("talker"), simple_call(), take)
            request = await s.broker.request()
            worker = s.worker()
            await worker.inputs_of(request)
            said = [part(worker, request, i, bytes(COPY_LIMIT_NBYTES + 4), i == 2) for i in range(3)]
            worker.send(Responses(tuple(said)))
            await eventually(lambda: worker.outstanding() == 0 and s.requester.inflight == 0)
            assert taken == [False]

    @pytest.mark.parametrize("responded", [True, False])
    @on_uvloop
    async def test_worker_dies(self, run_dir: Path, responded: bool) -> None:
        """What it had sent is read first; then there is an error, or another attempt where nothing had come yet."""
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            dying = s.worker("w1")
            await dying.inputs_of(request)
            if responded:
                dying.send(Responses((part(dying, request, 0, bytes(4)), part(dying, request, 1, bytes(4)))))
            dying.disconnect()
            s.requester._from_broker(Lost("w1", (request.id,), True, CAUSE, (1,)))
            if responded:
                assert reader.finals == [False, False, True]
                assert isinstance(reader.outcomes[2], WorkerDied)
                reader.result(0).release()
                assert s.requester.inflight == 0
            else:
                again = await s.broker.request()
                assert again.attempt == 2
                s.worker().send(Responses((response(again, 0, True),)))
                await eventually(lambda: reader.finals == [True])

    @on_uvloop
    async def test_deadline(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s, simple_call(deadline=time.monotonic() + 0.2))
            request = await s.broker.request()
            worker = s.worker()
            worker.send(Responses((response(request, 0),)))
            assert (await s.broker.cancel()).id == request.id
            assert reader.over
            assert isinstance(reader.outcomes[-1], Cancelled)
            worker.send(Responses((response(request, 1), response(request, 2, True))))
            await eventually(lambda: s.requester.inflight == 0)
            assert reader.finals.count(True) == 1 and reader.over

    @on_uvloop
    async def test_inputs_that_are_still_read_are_kept(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            worker.send(Responses((response(request, 0), response(request, 1, True, inputs_held=True))))
            await eventually(lambda: reader.over)
            assert s.requester.inflight == 1
            assert (await s.broker.cancel()).id == request.id
            s.broker.send(Retired((request.id,)))
            await eventually(lambda: s.requester.inflight == 0)

    @on_uvloop
    async def test_requester_closes(self, run_dir: Path) -> None:
        async with setup(run_dir) as s:
            await talker(s)
            reader = Reader(s)
            request = await s.broker.request()
            worker = s.worker()
            await worker.inputs_of(request)
            worker.send(Responses((part(worker, request, 0, bytes(COPY_LIMIT_NBYTES + 4)),)))
            await eventually(lambda: len(reader.outcomes) == 1)
            await s.requester.close()
            assert reader.over and isinstance(reader.outcomes[1], NotReady)
            reader.result(0).release()
            assert worker.outstanding() == 0
