"""Tensors that are passed on by reference: from an answer, as an input of the next request."""

import asyncio
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from conch.errors import InvalidArgument, NotReady
from conch.messages import Block, Request, Response, Responses, Retired, TensorDescription
from conch.requester import lent_memory
from conch.requester.inference import InferenceCall, InferenceResult, TensorInput
from conch.requester.results import COPY_LIMIT_NBYTES
from shm.arena import FIRST_SEGMENT_NBYTES
from shm.lent import Lent
from tests.frontends.fakes import FakeWorker, eventually, on_uvloop
from tests.frontends.samples import INT32_16, entry, table
from tests.frontends.setup import Setup, setup

NBYTES = 4 << 20
SHAPE = (NBYTES // 64, 16)


async def one_input(s: Setup, **fields: Any) -> None:
    """The models take one input and large batches."""
    wanted: dict[str, Any] = {
        "max_batch_size": 1_000_000,
        "input": [{"name": "INPUT0", **INT32_16}],
        "output": [{"name": "OUTPUT0", **INT32_16}],
        **fields,
    }
    s.broker.table = table(entry(**wanted), revision=2)
    s.broker.send(s.broker.table)
    await eventually(lambda: len(s.requester.models.lookup("simple").inputs) == 1)


async def answered(s: Setup, worker: FakeWorker, data: bytes) -> InferenceResult:
    """An answer of ``worker`` that holds ``data``, which was copied only into its memory."""
    future = s.submit(InferenceCall([TensorInput("INPUT0", "INT32", (1, 16), bytes(64))]))
    request = await s.broker.request()
    await worker.inputs_of(request)
    block = worker.memory.allocate(len(data))
    worker.memory.arena.view(block)[:] = data
    lease = worker.memory.lease(block, worker.requester)
    outputs = (TensorDescription("OUTPUT0", "INT32", SHAPE, block),)
    response = worker_response(request, outputs=outputs, lease=lease)
    worker.send(Responses((response,)))
    return await future


def worker_response(request: Request, **fields: Any) -> Response:
    return Response(request.id, request.attempt, 0, True, **fields)


def passed_on(result: InferenceResult) -> InferenceCall:
    lent = result.outputs[0].lent
    assert lent is not None
    return InferenceCall([TensorInput("INPUT0", "INT32", SHAPE, b"", lent=lent)])


def reference(request: Request) -> Block:
    found = request.inputs[0].reference
    assert isinstance(found, Block)
    return found


class TestPassingOn:
    @on_uvloop
    async def test_another_process_reads_it_where_it_is(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            data = os.urandom(NBYTES)
            result = await answered(s, s.worker(), data)
            future = s.submit(passed_on(result))
            request = await s.broker.request()
            block = reference(request)
            assert block.nbytes == NBYTES
            arguments = [str(run_dir), s.requester.id, str(block.segment), str(block.offset), str(block.nbytes)]
            reader = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.requester.reader", *arguments, stdout=asyncio.subprocess.PIPE
            )
            said, _ = await reader.communicate()
            assert said.decode().split() == [hashlib.sha256(data).hexdigest(), str(NBYTES)]
            # nothing of it is in our own memory
            assert s.requester._arena.reserved_nbytes == FIRST_SEGMENT_NBYTES
            result.release()
            future.cancel()
            await s.broker.cancel()
            s.broker.send(Retired((request.id,)))
            await eventually(lambda: s.requester.inflight == 0)

    @on_uvloop
    async def test_is_given_back_when_nobody_holds_it(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            owner, reader = s.worker(), s.worker()
            result = await answered(s, owner, b"\x07" * NBYTES)
            call = passed_on(result)
            assert result.outputs[0].data == b"\x07" * NBYTES
            result.release()
            assert owner.outstanding() == 1  # the call holds it
            future = s.submit(call)
            del call
            request = await s.broker.request()
            assert await reader.inputs_of(request) == {"INPUT0": b"\x07" * NBYTES}
            assert owner.outstanding() == 1  # the request holds it
            reader.send(Responses((worker_response(request),)))
            await future
            assert owner.outstanding() == 0

    @on_uvloop
    async def test_cancelled_request_holds_it_until_it_is_retired(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            owner = s.worker()
            result = await answered(s, owner, bytes(NBYTES))
            future = s.submit(passed_on(result))
            result.release()
            request = await s.broker.request()
            future.cancel()
            await s.broker.cancel()
            assert owner.outstanding() == 1
            s.broker.send(Retired((request.id,)))
            await eventually(lambda: owner.outstanding() == 0)

    @on_uvloop
    async def test_outlives_the_owner_s_connection(self, run_dir: Path) -> None:
        """A worker that connects later is told of it all the same."""
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            owner = s.worker()
            result = await answered(s, owner, b"\x05" * NBYTES)
            owner.disconnect()
            await eventually(lambda: len(s.requester._links) == 0)
            future = s.submit(passed_on(result))
            request = await s.broker.request()
            reader = s.worker()
            assert await reader.inputs_of(request) == {"INPUT0": b"\x05" * NBYTES}
            reader.send(Responses((worker_response(request),)))
            await future

    @on_uvloop
    async def test_mixed_with_inputs_that_are_copied(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            owner = s.worker()
            result = await answered(s, owner, b"\x05" * NBYTES)
            s.broker.send(table(entry(max_batch_size=1_000_000), revision=3))
            await eventually(lambda: len(s.requester.models.lookup("simple").inputs) == 2)
            call = passed_on(result)
            call.inputs.append(TensorInput("INPUT1", "INT32", SHAPE, b"\x06" * NBYTES))
            future = s.submit(call)
            request = await s.broker.request()
            assert await owner.inputs_of(request) == {"INPUT0": b"\x05" * NBYTES, "INPUT1": b"\x06" * NBYTES}
            owner.send(Responses((worker_response(request),)))
            await future

    @on_uvloop
    async def test_small_answers_and_ordinary_requesters_copy(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            worker = s.worker()
            result = await answered(s, worker, bytes(COPY_LIMIT_NBYTES))
            assert result.outputs[0].lent is None and worker.outstanding() == 0
        async with setup(run_dir) as s:
            await one_input(s)
            worker = s.worker()
            result = await answered(s, worker, bytes(NBYTES))
            assert result.outputs[0].lent is None and result.borrowed
            result.release()
            assert worker.outstanding() == 0


class TestAnnouncements:
    @on_uvloop
    async def test_once_and_retired_when_idle(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            owner, reader = s.worker(), s.worker()
            result = await answered(s, owner, bytes(NBYTES))
            memory = s.requester._lent_memory
            for _ in range(3):
                future = s.submit(passed_on(result))
                request = await s.broker.request()
                await reader.inputs_of(request)
                memory.retire_idle(1.0)
                memory.retire_idle(1000.0)
                reader.send(Responses((worker_response(request),)))
                await future
            number = reference(request).segment
            reader.read_segments()
            assert reader.retired == [] and number in reader.inputs
            memory.retire_idle(2000.0)
            memory.retire_idle(2000.0 + lent_memory.IDLE_S - 0.1)
            reader.read_segments()
            assert reader.retired == []
            memory.retire_idle(2000.0 + lent_memory.IDLE_S)
            reader.read_segments()
            assert reader.retired == [number] and number not in reader.inputs
            future = s.submit(passed_on(result))
            request = await s.broker.request()
            await reader.inputs_of(request)  # announced anew
            reader.send(Responses((worker_response(request),)))
            await future

    @on_uvloop
    async def test_close_lets_go_of_everything(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            owner = s.worker()
            result = await answered(s, owner, bytes(NBYTES))
            future = s.submit(passed_on(result))
            result.release()
            await s.broker.request()
            await s.requester.close()
            with pytest.raises(NotReady):
                await future
            assert owner.outstanding() == 0


class TestValidation:
    @on_uvloop
    async def test_sizes(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            await one_input(s)
            owner = s.worker()
            result = await answered(s, owner, bytes(NBYTES))
            call = passed_on(result)
            for shape in ((1, 16), (SHAPE[0] + 1, 16)):
                call.inputs[0].shape = shape
                with pytest.raises(InvalidArgument, match="input byte size mismatch"):
                    s.submit(call)
            assert s.requester.inflight == 0 and len(s.requester._lent_memory._announced) == 0

    @pytest.mark.parametrize(("datatype", "shape"), [("TYPE_INT32", (0,)), ("TYPE_STRING", (3,))])
    @on_uvloop
    async def test_variable_shapes(self, run_dir: Path, datatype: str, shape: tuple[int, ...]) -> None:
        """Elements of BYTES are the reader's to check."""
        async with setup(run_dir, worker="w0") as s:
            owner = s.worker()
            await one_input(s)
            result = await answered(s, owner, b"\xff" * NBYTES)
            whole = result.outputs[0].lent
            assert whole is not None
            nbytes = 0 if datatype == "TYPE_INT32" else 12
            lent = Lent(Block(whole.block.segment, whole.block.offset, nbytes), whole.segment, whole.hold)
            inputs = [{"name": "INPUT0", "data_type": datatype, "dims": [-1]}]
            await one_input(s, max_batch_size=0, input=inputs)
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 0)
            name = datatype.replace("TYPE_STRING", "BYTES").removeprefix("TYPE_")
            future = s.submit(InferenceCall([TensorInput("INPUT0", name, shape, b"", lent=lent)]))
            request = await s.broker.request()
            assert await owner.inputs_of(request) == {"INPUT0": b"\xff" * nbytes}
            owner.send(Responses((worker_response(request),)))
            await future
            result.release()

    @on_uvloop
    async def test_empty_input_of_a_fixed_shape(self, run_dir: Path) -> None:
        async with setup(run_dir, worker="w0") as s:
            owner = s.worker()
            await one_input(s)
            result = await answered(s, owner, bytes(NBYTES))
            whole = result.outputs[0].lent
            assert whole is not None
            lent = Lent(Block(whole.block.segment, whole.block.offset, 0), whole.segment, whole.hold)
            inputs = [{"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [0]}]
            await one_input(s, max_batch_size=0, input=inputs)
            await eventually(lambda: s.requester.models.lookup("simple").max_batch_size == 0)
            future = s.submit(InferenceCall([TensorInput("INPUT0", "INT32", (0,), b"", lent=lent)]))
            request = await s.broker.request()
            assert await owner.inputs_of(request) == {"INPUT0": b""}
            owner.send(Responses((worker_response(request),)))
            await future
