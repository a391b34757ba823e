"""The frontend as a process: when it listens, what it says, how it stops."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from conch.run_dir import RunDir
from tests.frontends.fakes import FakeBroker, FakeWorker, eventually, on_uvloop
from tests.frontends.grpc.support import ADDRESS, SERVICE, TIMEOUT_S, pb, simple_request
from tests.frontends.process import Process, check_stop_while_models_load, listens
from tests.frontends.samples import entry, table
from tests.ports import free_port

ENGINES = ["aio", "http2"]


def process_of(run_dir: Path, port: int, **settings: Any) -> Process:
    return Process("grpc", run_dir, port, **settings)


def infer(port: int) -> Any:
    """Blocks: for a thread."""
    with grpc.insecure_channel(f"{ADDRESS}:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary(SERVICE + "ModelInfer")
        return pb.ModelInferResponse.FromString(call(simple_request().SerializeToString(), timeout=TIMEOUT_S))


@pytest.mark.parametrize("engine", ENGINES)
@on_uvloop
async def test_life(run_dir: Path, engine: str) -> None:
    """It listens once the models are there, answers, finishes what is in flight on SIGTERM, and exits 0."""
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    broker.table = table(server="starting")
    process = process_of(run_dir, free_port(), grpc_engine=engine)
    await process.start()
    await eventually(lambda: bool(broker.hellos))
    assert broker.hellos[0].role == "grpc"
    assert not listens(process.port)
    broker.table = table(entry(), revision=2)
    broker.send(broker.table)
    await process.until_logged(f"Started GRPCInferenceService at {ADDRESS}:{process.port}")
    worker = FakeWorker(run_dir, broker.hellos[0].requester)
    asking = asyncio.create_task(asyncio.to_thread(infer, process.port))
    request = await broker.request()
    process.terminate()
    await process.until_logged("stopping; 1 RPCs in flight")
    await worker.answer(request)
    response = await asking
    assert np.frombuffer(response.raw_output_contents[0], np.int32).tolist() == list(range(16))
    assert await process.ended() == 0
    worker.close()
    broker.close()


@on_uvloop
async def test_a_second_signal_cuts_off(run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    process = process_of(run_dir, free_port())
    await process.start()
    await process.until_logged("Started GRPCInferenceService")
    asking = asyncio.create_task(asyncio.to_thread(infer, process.port))
    await broker.request()
    process.terminate()
    await process.until_logged("stopping; 1 RPCs in flight")
    process.terminate()
    with pytest.raises(grpc.RpcError):
        await asking
    assert await process.ended() == 1
    assert "a second signal: 1 RPCs are cut off" in process.log
    broker.close()


@on_uvloop
async def test_stop_while_models_load(run_dir: Path) -> None:
    await check_stop_while_models_load(process_of(run_dir, free_port()), run_dir)


@pytest.mark.parametrize("reuse", [False, True])
@on_uvloop
async def test_port_in_use(run_dir: Path, reuse: bool) -> None:
    """gRPC alone would share the port without a word."""
    RunDir(run_dir).create()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((ADDRESS, 0))
        taken.listen()
        process = process_of(run_dir, taken.getsockname()[1], reuse_grpc_port=reuse)
        await process.start()
        assert await process.ended() == 1
        assert f"Socket '{ADDRESS}:{process.port}' already in use" in process.log


@on_uvloop
async def test_settings_that_cannot_work(run_dir: Path) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    for settings, text in (
        ({"grpc_restricted_protocol": ("nope:a=b",)}, "unknown restricted protocol 'nope'"),
        (
            {"grpc_use_ssl": True, "grpc_server_cert": "/nowhere", "grpc_server_key": "/nowhere"},
            "--grpc-server-cert '/nowhere' cannot be read",
        ),
    ):
        process = process_of(run_dir, free_port(), **settings)
        await process.start()
        assert await process.ended() == 1
        assert text in process.log
    broker.close()


@pytest.mark.parametrize("engine", ENGINES)
@on_uvloop
async def test_processes_share_the_port(run_dir: Path, engine: str) -> None:
    RunDir(run_dir).create()
    broker = FakeBroker(run_dir)
    port = free_port()
    processes = [process_of(run_dir, port, grpc_process_count=2, grpc_engine=engine) for _ in range(2)]
    for process in processes:
        await process.start()
        await process.until_logged("Started GRPCInferenceService")
    stranger = process_of(run_dir, port)
    await stranger.start()
    assert await stranger.ended() == 1
    processes[0].terminate()
    assert await processes[0].ended() == 0
    assert listens(port)
    processes[1].terminate()
    assert await processes[1].ended() == 0
    assert not listens(port)
    broker.close()


@on_uvloop
async def test_when_grpc_is_off(run_dir: Path) -> None:
    process = process_of(run_dir, free_port(), allow_grpc=False)
    await process.start()
    assert await process.ended() == 0
