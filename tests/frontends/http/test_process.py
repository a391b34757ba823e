"""The frontend as a process: when it listens, what it says, how it stops."""

import asyncio
import json
import resource
import socket
from pathlib import Path
from typing import Any

from conch.run_dir import RunDir
from tests.frontends.fakes import FakeBroker, FakeWorker, eventually, on_uvloop
from tests.frontends.http.support import simple_request
from tests.frontends.process import ADDRESS, Process, check_stop_while_models_load, listens
from tests.frontends.samples import entry, table
from tests.ports import free_port


def process_of(run_dir: Path, port: int, **settings: Any) -> Process:
    return Process("http", run_dir, port, **settings)


async def post(port: int, body: bytes) -> tuple[bytes, bytes]:
    reader, writer = await asyncio.open_connection(ADDRESS, port)
    writer.write(b"POST /v2/models/simple/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
    answer = await reader.readexactly(length)
    writer.close()
    return head.split(b"\r\n")[0], answer


@on_uvloop
async def test_life(run_dir: Path) -> None:
    """It listens once the models are there, answers, finishes what is in flight on SIGTERM, and exits 0."""
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    broker.table = table(entry(), server="starting")
    process = process_of(run_dir, free_port())
    await process.start()
    await eventually(lambda: bool(broker.hellos))
    assert broker.hellos[0].role == "http"
    assert not listens(process.port)
    broker.table = table(entry(), revision=2)
    broker.send(broker.table)
    await process.until_logged(f"Started HTTPService at {ADDRESS}:{process.port}")
    worker = FakeWorker(run_dir, broker.hellos[0].requester)
    posting = asyncio.create_task(post(process.port, json.dumps(simple_request()).encode()))
    request = await broker.request()
    process.terminate()
    await eventually(lambda: not listens(process.port))
    await worker.answer(request)
    status, answer = await posting
    assert status == b"HTTP/1.1 200 OK"
    assert json.loads(answer)["outputs"][0]["data"] == list(range(16))
    assert await process.ended() == 0
    worker.close()
    broker.close()


@on_uvloop
async def test_stop_while_models_load(run_dir: Path) -> None:
    await check_stop_while_models_load(process_of(run_dir, free_port()), run_dir)


@on_uvloop
async def test_port_in_use(run_dir: Path) -> None:
    RunDir(run_dir).create()
    with socket.create_server((ADDRESS, 0)) as taken:
        process = process_of(run_dir, taken.getsockname()[1])
        await process.start()
        assert await process.ended() == 1
        assert f"Socket '{ADDRESS}:{process.port}' already in use" in process.log


async def answers(port: int) -> bool:
    reader, writer = await asyncio.open_connection(ADDRESS, port)
    writer.write(b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.startswith(b"HTTP/1.1 200 OK")


@on_uvloop
async def test_processes_share_the_port(run_dir: Path) -> None:
    """One of them may be stopped and started again while the other serves; a stranger does not get the port."""
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    port = free_port()
    started = f"Started HTTPService at {ADDRESS}:{port}"
    first, second, third = (process_of(run_dir, port, http_process_count=2) for _ in range(3))
    stranger = process_of(run_dir, port)
    for process in (first, second):
        await process.start()
        await process.until_logged(started)
    assert all([await answers(port) for _ in range(20)])
    await stranger.start()
    assert await stranger.ended() == 1
    assert "already in use" in stranger.log
    first.terminate()
    assert await first.ended() == 0
    assert all([await answers(port) for _ in range(20)])
    await third.start()
    await third.until_logged(started)
    second.terminate()
    assert await second.ended() == 0
    assert all([await answers(port) for _ in range(20)])
    third.terminate()
    assert await third.ended() == 0
    broker.close()


@on_uvloop
async def test_no_memory_to_begin_with(run_dir: Path) -> None:
    RunDir(run_dir).create()
    process = process_of(run_dir, free_port())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # inherited: no segment can be made
    try:
        await process.start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await process.ended() == 1
    assert "the HTTP frontend cannot run: no memory for a segment of" in process.log
    assert "make room in /dev/shm" in process.log
    assert "Traceback" not in process.log


@on_uvloop
async def test_certificates_that_do_not_serve(run_dir: Path) -> None:
    process = process_of(
        run_dir, free_port(), http_use_ssl=True, http_server_cert="/nowhere", http_server_key="/nowhere"
    )
    await process.start()
    assert await process.ended() == 1
    assert "the HTTP frontend cannot run: --http-server-cert '/nowhere' cannot be read: No such file" in process.log
