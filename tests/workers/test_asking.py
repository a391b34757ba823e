"""``workers.asking``: models that ask others, from any thread, against a broker and workers played by the test."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from conch.errors import Internal, InvalidArgument, ModelError, NotFound, NotReady, Overloaded
from conch.messages import (
    Answer,
    AskReady,
    Fault,
    LoadModel,
    Parent,
    Rejected,
    Request,
    Response,
    Responses,
    TensorDescription,
    Window,
)
from conch.requester.inference import InferenceCall, InferenceResult, Outcome, TensorInput
from conch.requester.results import COPY_LIMIT_NBYTES
from conch.run_dir import RunDir
from conch.windows import READ_RESPONSES
from tests.frontends.conftest import uvloop_is_warm  # noqa: F401 - a fixture of every test
from tests.frontends.fakes import FakeBroker, FakeWorker, eventually, on_uvloop
from tests.frontends.samples import entry, simple_call, table
from tests.frontends.setup import DATA0, call, data_of
from workers import asking
from workers.asking import Asker, Handle

LIMIT_S = 10.0


class Scene:
    def __init__(self, path: Path, asker: Asker) -> None:
        self.path = path
        self.asker = asker
        self.broker = FakeBroker(path)
        decoupled = entry("talker", model_transaction_policy={"decoupled": True})
        self.broker.table = table(entry(max_batch_size=1_000_000), entry(version=2), decoupled)
        self.workers: list[FakeWorker] = []

    async def worker(self) -> FakeWorker:
        await eventually(lambda: bool(self.broker.hellos))
        worker = FakeWorker(self.path, self.broker.hellos[0].requester)
        self.workers.append(worker)
        return worker


@asynccontextmanager
async def scene(path: Path) -> AsyncIterator[Scene]:
    RunDir(path).create()
    asker = Asker(RunDir(path), "w0", 64 << 20)
    made = Scene(path, asker)
    try:
        yield made
    finally:
        await asyncio.to_thread(asker.close)
        made.broker.close()
        for worker in made.workers:
            worker.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "asker"]


class Inbox:
    """What one request got, with the thread that gave it."""

    def __init__(self) -> None:
        self.responses: queue.Queue[tuple[Outcome | None, bool]] = queue.Queue()
        self.threads: set[str] = set()

    def put(self, outcome: Outcome | None, final: bool) -> None:
        self.threads.add(threading.current_thread().name)
        self.responses.put((outcome, final))

    async def get(self) -> tuple[Outcome | None, bool]:
        return await asyncio.to_thread(self.responses.get, timeout=LIMIT_S)

    async def last(self) -> Outcome | None:
        outcome, final = await self.get()
        assert final
        return outcome

    async def error(self) -> Any:
        outcome = await self.last()
        assert isinstance(outcome, Exception)
        return outcome


def ask(s: Scene, model: str = "simple", version: int = -1, call: InferenceCall | None = None) -> tuple[Inbox, Handle]:
    inbox = Inbox()
    return inbox, s.asker.ask(model, version, call or simple_call(), None, inbox.put)


def response(request: Request, index: int, final: bool = False, **fields: Any) -> Response:
    return Response(request.id, request.attempt, index, final, **fields)


class TestAsking:
    @on_uvloop
    async def test_answer(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            inbox = Inbox()
            request_call = call()
            request_call.depth = 3
            s.asker.ask("simple", 1, request_call, Parent("somebody", 7), inbox.put)
            request = await s.broker.request()
            (hello,) = s.broker.hellos
            assert (hello.role, hello.worker) == ("model", "w0")
            assert (request.version, request.parent, request.depth) == (1, Parent("somebody", 7), 3)
            worker = await s.worker()
            await worker.answer(request)
            result = await inbox.last()
            assert isinstance(result, InferenceResult)
            assert data_of(result)["OUTPUT0"] == DATA0
            assert inbox.threads == {"asker"}
            assert s.broker.seen == []  # the broker waits for no worker

    @on_uvloop
    async def test_latest_version(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            inbox, _ = ask(s)
            request = await s.broker.request()
            assert request.version == 2
            assert (await asyncio.to_thread(s.asker.model, "simple", -1)).version == 2
            assert (await asyncio.to_thread(s.asker.model, "simple", 1)).version == 1
            (await s.worker()).fail(request, Fault("ModelError", "it raised"))
            assert isinstance(await inbox.error(), ModelError)

    @on_uvloop
    async def test_stream_from_a_decoupled_model(self, run_dir: Path) -> None:
        """What the model's thread has read is said by the asker's."""
        async with scene(run_dir) as s:
            inbox, _ = ask(s, "talker")
            request = await s.broker.request()
            worker = await s.worker()
            await worker.inputs_of(request)
            for i in range(READ_RESPONSES):
                block = worker.memory.allocate(4)
                outputs = (TensorDescription("OUTPUT0", "INT32", (1,), block),)
                lease = worker.memory.lease(block, worker.requester)
                worker.send(Responses((response(request, i, outputs=outputs, lease=lease),)))
            for _ in range(READ_RESPONSES):
                outcome, final = await inbox.get()
                assert isinstance(outcome, InferenceResult) and not final
                await asyncio.to_thread(outcome.release)

            def told() -> bool:
                worker.read_segments()
                return worker.windows == [Window(request.id, READ_RESPONSES)]

            await eventually(told)
            worker.send(Responses((response(request, READ_RESPONSES, True),)))
            assert await inbox.last() is None

    @on_uvloop
    async def test_outputs_are_passed_on_by_reference(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            first, second = call(COPY_LIMIT_NBYTES), call(COPY_LIMIT_NBYTES)
            inbox, _ = ask(s, version=1, call=first)
            worker, reader = await s.worker(), await s.worker()
            await worker.answer(await s.broker.request())
            result = await inbox.last()
            assert isinstance(result, InferenceResult)
            lent = [output.lent for output in result.outputs]
            inputs = zip(second.inputs, lent, strict=True)
            second.inputs = [TensorInput(i.name, i.datatype, i.shape, b"", lent=place) for i, place in inputs]
            result.release()
            inbox, _ = ask(s, version=1, call=second)
            request = await s.broker.request()
            assert [i.reference for i in request.inputs] == [place.block for place in lent if place is not None]
            assert (await reader.inputs_of(request))["INPUT1"] == b"\x02" * COPY_LIMIT_NBYTES
            del lent, second, inputs
            assert worker.outstanding() == 1
            reader.send(Responses((response(request, 0, True),)))
            await inbox.last()
            await eventually(lambda: worker.outstanding() == 0)

    @on_uvloop
    async def test_from_many_threads_at_once(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            inboxes = [Inbox() for _ in range(200)]

            def model_thread(mine: list[Inbox]) -> None:
                for inbox in mine:
                    s.asker.ask("simple", -1, call(), None, inbox.put)

            threads = [threading.Thread(target=model_thread, args=(inboxes[i::8],)) for i in range(8)]
            for thread in threads:
                thread.start()
            worker = await s.worker()
            for _ in inboxes:
                await worker.answer(await s.broker.request())
            for inbox in inboxes:
                assert isinstance(await inbox.last(), InferenceResult)
            for thread in threads:
                thread.join(LIMIT_S)
            assert worker.outstanding() == 0 and len(s.broker.hellos) == 1

    @on_uvloop
    async def test_what_the_receiver_raises_harms_nothing(
        self, run_dir: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with scene(run_dir) as s:

            def break_down(outcome: Outcome | None, final: bool) -> None:
                raise RuntimeError("a bug")

            s.asker.ask("none", -1, simple_call(), None, break_down)
            inbox, _ = ask(s, "none")
            await inbox.error()
            assert "could not be handed on" in caplog.text


class TestErrors:
    @pytest.mark.parametrize(("model", "version"), [("none", -1), ("simple", 9), ("simple", 0)])
    @on_uvloop
    async def test_model_that_is_not_ready(self, run_dir: Path, model: str, version: int) -> None:
        async with scene(run_dir) as s:
            inbox, _ = ask(s, model, version)
            expected = f"Failed for execute the inference request. Model '{model}' is not ready."
            assert (await inbox.error()).message == expected
            with pytest.raises(NotFound):
                await asyncio.to_thread(s.asker.model, model, version)

    @on_uvloop
    async def test_invalid_requests(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            wrong: dict[type[Exception], InferenceCall] = {
                InvalidArgument: InferenceCall([]),
                Overloaded: call(48 << 20),
                Internal: simple_call(),
            }
            wrong[Internal].inputs[0].shape = 5  # type: ignore[assignment]
            for kind, wrong_call in wrong.items():
                inbox, _ = ask(s, version=1, call=wrong_call)
                assert isinstance(await inbox.error(), kind)

    @on_uvloop
    async def test_refused_by_the_broker(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            inbox, _ = ask(s)
            request = await s.broker.request()
            s.broker.send(Rejected(request.id, 1, Fault("InvalidArgument", "it would wait for itself")))
            assert (await inbox.error()).message == "it would wait for itself"

    @on_uvloop
    async def test_no_table_in_time(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asking, "TABLE_TIMEOUT_S", 0.2)
        async with scene(run_dir) as s:
            s.broker.welcoming = False
            inbox, _ = ask(s)
            with pytest.raises(NotReady, match="which models there are"):
                await asyncio.to_thread(s.asker.model, "simple", -1)
            assert "which models there are" in (await inbox.error()).message

    @on_uvloop
    async def test_no_socket(self, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
        async with scene(run_dir) as s:
            (run_dir / "requesters").rmdir()
            inbox, _ = ask(s)
            assert "cannot be asked" in (await inbox.error()).message
            with pytest.raises(NotReady, match="cannot be asked"):
                await asyncio.to_thread(s.asker.call, LoadModel(0, "simple"))
            assert caplog.text.count("other models cannot be asked") == 1
            (run_dir / "requesters").mkdir()
            await eventually(lambda: bool(s.broker.hellos))
            assert (await asyncio.to_thread(s.asker.model, "simple", -1)).name == "simple"
            caplog.clear()  # the traceback holds on to memory


class TestCancelling:
    @on_uvloop
    async def test_under_way(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            inbox, handle = ask(s)
            request = await s.broker.request()
            handle.cancel()
            handle.cancel()
            assert (await s.broker.cancel()).id == request.id
            worker = await s.worker()
            await worker.answer(request)
            await eventually(lambda: worker.outstanding() == 0)
            other, _ = ask(s, "none")
            await other.error()
            assert inbox.responses.empty()

    @on_uvloop
    async def test_before_it_is_sent(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            s.broker.welcoming = False
            inbox, handle = ask(s)
            await eventually(lambda: bool(s.broker.hellos))
            handle.cancel()
            s.broker.welcome()
            other, _ = ask(s, "none")
            await other.error()
            assert inbox.responses.empty() and s.broker.has_nothing()


class TestCalls:
    @on_uvloop
    async def test_of_every_kind(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            loading = asyncio.create_task(asyncio.to_thread(s.asker.call, LoadModel(0, "simple")))
            s.broker.send(Answer((await s.broker.receive(LoadModel)).call))
            await loading
            asking_ready = asyncio.create_task(asyncio.to_thread(s.asker.call, AskReady(0, "simple", 1)))
            s.broker.send(Answer((await s.broker.receive(AskReady)).call, None, False))
            assert await asking_ready is False
            refused = asyncio.create_task(asyncio.to_thread(s.asker.call, LoadModel(0, "none")))
            fault = Fault("InvalidArgument", "failed to load 'none'")
            s.broker.send(Answer((await s.broker.receive(LoadModel)).call, fault))
            with pytest.raises(InvalidArgument, match="failed to load"):
                await refused


class TestClosing:
    @on_uvloop
    async def test_never_started(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            s.asker.close()
            s.asker.close()
            inbox, handle = ask(s)
            handle.cancel()
            assert "exiting" in (await inbox.error()).message
            with pytest.raises(NotReady, match="exiting"):
                s.asker.call(LoadModel(0, "simple"))
            with pytest.raises(NotReady, match="exiting"):
                s.asker.model("simple", -1)
            assert s.broker.hellos == []

    @pytest.mark.parametrize("welcomed", [True, False])
    @on_uvloop
    async def test_with_requests_under_way(self, run_dir: Path, welcomed: bool) -> None:
        async with scene(run_dir) as s:
            s.broker.welcoming = welcomed
            inboxes = [ask(s)[0] for _ in range(20)]
            calling = asyncio.create_task(asyncio.to_thread(s.asker.call, LoadModel(0, "simple")))
            await eventually(lambda: bool(s.broker.hellos))
            for _ in range(21 if welcomed else 0):
                await s.broker.receive(object)
            knowing = asyncio.create_task(asyncio.to_thread(s.asker.model, "simple", -1))
            await asyncio.to_thread(s.asker.close)
            for inbox in inboxes:
                assert "exiting" in (await inbox.error()).message
            with pytest.raises(NotReady):
                await calling
            await asyncio.gather(knowing, return_exceptions=True)
            assert welcomed or isinstance(knowing.exception(), NotReady)

    @on_uvloop
    async def test_lent_results_are_given_back_afterwards(self, run_dir: Path) -> None:
        async with scene(run_dir) as s:
            inbox, _ = ask(s, "talker")
            request = await s.broker.request()
            worker = await s.worker()
            await worker.inputs_of(request)
            nbytes = 2 << 20
            block = worker.memory.allocate(nbytes)
            outputs = (TensorDescription("OUTPUT0", "INT32", (nbytes // 4,), block),)
            lease = worker.memory.lease(block, worker.requester)
            worker.send(Responses((response(request, 0, outputs=outputs, lease=lease),)))
            result, _ = await inbox.get()
            await asyncio.to_thread(s.asker.close)
            assert isinstance(result, InferenceResult)
            assert worker.outstanding() == 1
            result.release()
            assert worker.outstanding() == 0
