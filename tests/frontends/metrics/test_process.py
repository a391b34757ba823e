"""The metrics frontend against a broker that answers, that is silent, that goes and comes back."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from conch.messages import (
    Answer,
    AskMetrics,
    AskStatistics,
    Fault,
    LogSettings,
    MetricFamily,
    MetricSample,
    ModelStatistics,
    ObserverHello,
    ServerSettings,
    TraceSettings,
    Unwelcome,
)
from conch.run_dir import RunDir
from frontends.http.engine import Engine
from frontends.metrics.application import MetricsApplication
from frontends.metrics.observer import Observer
from tests.frontends.fakes import FakeBroker, eventually, on_uvloop
from tests.frontends.metrics.test_pages import statistics
from tests.frontends.process import ADDRESS, Process, listens
from tests.frontends.samples import entry, table
from tests.ports import free_port


async def ask(port: int, target: str = "/metrics", method: str = "GET") -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection(ADDRESS, port)
    try:
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 200 " in head:
        assert b"Content-Type: text/plain; charset=utf-8" in head
    return int(head.split()[1]), body


async def tell_metrics(broker: FakeBroker, *families: MetricFamily) -> None:
    question = await broker.receive(AskMetrics)
    broker.send(Answer(question.call, None, msgspec.to_builtins(families)))


async def tell(broker: FakeBroker, *models: ModelStatistics, families: Sequence[MetricFamily] = ()) -> None:
    await tell_metrics(broker, *families)
    question = await broker.receive(AskStatistics)
    assert (question.name, question.version) == ("", 0)
    broker.send(Answer(question.call, None, msgspec.to_builtins(models)))


@asynccontextmanager
async def serving(run_dir: Path) -> AsyncIterator[int]:
    observer = Observer(RunDir(run_dir))
    engine = Engine(MetricsApplication(observer, latencies=True))
    listener = socket.create_server((ADDRESS, 0))
    port: int = listener.getsockname()[1]
    await engine.listen(listener)
    try:
        yield port
    finally:
        await engine.close()
        observer.close()


@on_uvloop
async def test_scrapes_at_the_same_time_share_one_question(run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    async with serving(run_dir) as port:
        await broker.receive(ObserverHello)
        scrapes = [asyncio.create_task(ask(port)) for _ in range(5)]
        await tell_metrics(broker)
        question = await broker.receive(AskStatistics)
        await asyncio.sleep(0.05)
        broker.send(Answer(question.call, None, msgspec.to_builtins([statistics()])))
        pages = await asyncio.gather(*scrapes)
        assert broker.has_nothing()
        assert {status for status, _ in pages} == {200}
        assert all(b'nv_inference_count{model="simple",version="1"} 8\n' in page for _, page in pages)

        # the next one asks again
        scrape = asyncio.create_task(ask(port, "/metrics?format=text"))
        await tell(broker)
        assert await scrape == (200, b"")
    broker.close()


@on_uvloop
async def test_models_metrics_come_last(run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    async with serving(run_dir) as port:
        await broker.receive(ObserverHello)
        scrape = asyncio.create_task(ask(port))
        made = MetricFamily("made", "by a model", "gauge", (MetricSample({"y": "1", "x": "2"}, 2.5),))
        await tell(broker, statistics(), families=[made])
        lines = (await scrape)[1].decode().splitlines()
        assert lines[-3:] == ["# HELP made by a model", "# TYPE made gauge", 'made{x="2",y="1"} 2.5']
        assert lines[0].startswith("# HELP nv_inference_request_success")
    broker.close()


@on_uvloop
async def test_a_broker_without_metrics_or_with_unreadable_ones(run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    async with serving(run_dir) as port:
        await broker.receive(ObserverHello)
        scrape = asyncio.create_task(ask(port))
        question = await broker.receive(AskMetrics)
        broker.send(Answer(question.call, Fault("Internal", "it failed")))
        statistics_question = await broker.receive(AskStatistics)
        broker.send(Answer(statistics_question.call, None, msgspec.to_builtins([statistics()])))
        assert b"nv_inference_count" in (await scrape)[1]

        scrape = asyncio.create_task(ask(port))
        question = await broker.receive(AskMetrics)
        broker.send(Answer(question.call, None, [["name"]]))
        assert b"nv_inference_count" in (await scrape)[1]  # as it was
    broker.close()


@on_uvloop
async def test_nothing_else_is_there(run_dir: Path) -> None:
    RunDir(run_dir).create()
    async with serving(run_dir) as port:
        assert await ask(port, "/") == (404, b'{"error":"Not Found"}')
        assert (await ask(port, "/v2"))[0] == 404
        assert (await ask(port, method="POST"))[0] == 405


@on_uvloop
async def test_a_broker_that_is_away(run_dir: Path) -> None:
    """Nothing is known: 503 within a second. Then what was known is told, until there is a broker again."""
    RunDir(run_dir).create()
    async with serving(run_dir) as port:
        begin = time.monotonic()
        assert (await ask(port))[0] == 503
        assert time.monotonic() - begin < 1.5

        broker = FakeBroker(run_dir)
        await broker.receive(ObserverHello)
        scrape = asyncio.create_task(ask(port))
        await tell(broker, statistics())
        assert (await scrape)[0] == 200
        broker.close()

        status, page = await ask(port)
        assert status == 200 and b"nv_inference_count" in page

        # asked while there is none, answered by the next
        scrape = asyncio.create_task(ask(port))
        broker = FakeBroker(run_dir, epoch=2)
        await broker.receive(ObserverHello)
        await tell(broker, statistics("other"))
        assert b'model="other"' in (await scrape)[1]
        broker.close()


@on_uvloop
async def test_a_client_that_leaves_harms_nobody(run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    async with serving(run_dir) as port:
        await broker.receive(ObserverHello)
        _, writer = await asyncio.open_connection(ADDRESS, port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        await tell_metrics(broker)
        question = await broker.receive(AskStatistics)
        writer.transport.abort()
        scrape = asyncio.create_task(ask(port))
        await asyncio.sleep(0.02)
        broker.send(Answer(question.call, None, msgspec.to_builtins([statistics()])))
        assert (await scrape)[0] == 200
    broker.close()


@on_uvloop
async def test_an_unwelcome_observer_says_hello_again(run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    async with serving(run_dir) as port:
        await broker.receive(ObserverHello)
        scrape = asyncio.create_task(ask(port))
        await tell_metrics(broker)
        await broker.receive(AskStatistics)
        broker.send(Unwelcome(2))
        await broker.receive(ObserverHello)
        await tell(broker, statistics())
        assert (await scrape)[0] == 200
    broker.close()


@on_uvloop
async def test_log_settings_of_the_server_count_here(run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    process = Process("metrics", run_dir, free_port())
    await process.start()
    await broker.receive(ObserverHello)
    broker.send(ServerSettings(1, LogSettings(info=False), {"": TraceSettings()}))
    broker.send(table(entry()))
    await eventually(lambda: listens(process.port))
    process.terminate()
    assert await process.ended() == 0
    assert "Started Metrics Service" not in process.log
    broker.close()


@on_uvloop
async def test_life_of_the_process(run_dir: Path) -> None:
    """It listens once the models are there, and exits 0."""
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    process = Process("metrics", run_dir, free_port(), allow_cpu_metrics=True)
    await process.start()
    await broker.receive(ObserverHello)
    broker.send(table(entry(), server="starting"))
    assert not listens(process.port)
    broker.send(table(entry(), revision=2))
    await eventually(lambda: listens(process.port))
    scrape = asyncio.create_task(ask(process.port))
    await tell(broker, statistics())
    status, page = await scrape
    assert status == 200 and b"nv_cpu_memory_total_bytes " in page
    process.terminate()
    assert await process.ended() == 0
    broker.close()
