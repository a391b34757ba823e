"""A requester with a broker and workers around it, for one test."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from conch.requester.inference import InferenceCall, InferenceResult, TensorInput
from conch.requester.requester import Requester
from conch.run_dir import RunDir
from tests.frontends.fakes import FakeBroker, FakeWorker, eventually
from tests.frontends.samples import simple_call

DATA0 = struct.pack("<16i", *range(16))
DATA1 = struct.pack("<16i", *range(100, 116))


class Setup:
    def __init__(self, path: Path, requester: Requester, broker: FakeBroker) -> None:
        self.path = path
        self.requester = requester
        self.broker = broker
        self.workers: list[FakeWorker] = []

    def worker(self, name: str = "") -> FakeWorker:
        worker = FakeWorker(self.path, self.requester.id, name)
        self.workers.append(worker)
        return worker

    def submit(self, call: InferenceCall | None = None, model: str = "simple") -> "asyncio.Future[InferenceResult]":
        return self.requester.submit(self.requester.models.lookup(model), call or simple_call())


@asynccontextmanager
async def setup(path: Path, **options: Any) -> AsyncIterator[Setup]:
    RunDir(path).create()
    requester = Requester(RunDir(path), **options)
    await requester.start()
    made = Setup(path, requester, FakeBroker(path))
    try:
        await eventually(lambda: requester.models.known)
        yield made
    finally:
        await requester.close()
        made.broker.close()
        for worker in made.workers:
            worker.close()
    assert requester.inflight == 0
    assert not any(share.requests or share.nbytes for share in requester._shares._shares.values())


def call(nbytes: int = 64) -> InferenceCall:
    """Two inputs; big ones have data that tells them apart."""
    first, second = (DATA0, DATA1) if nbytes == 64 else (b"\x01" * nbytes, b"\x02" * nbytes)
    return InferenceCall(
        [
            TensorInput("INPUT0", "INT32", (nbytes // 64, 16), first),
            TensorInput("INPUT1", "INT32", (nbytes // 64, 16), second),
        ]
    )


def data_of(result: InferenceResult) -> dict[str, bytes]:
    return {output.name: bytes(output.data) for output in result.outputs}
