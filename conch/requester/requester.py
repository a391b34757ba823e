"""The shell around a requester: sockets, arena and futures, driven by one asyncio event loop.

What to do is decided by the pure machines in ``conch.requester.pending`` and ``conch.requester.calls``; this file
carries it out.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import msgspec

from conch.errors import Overloaded, from_fault
from conch.later import Later
from conch.messages import (
    Answer,
    AskReady,
    AskStatistics,
    Block,
    Cancel,
    Fault,
    LogSettings,
    Lost,
    ModelStatistics,
    ModelTable,
    RegionTable,
    RegisterCudaRegion,
    Rejected,
    Request,
    RequesterHello,
    Response,
    Retired,
    SegmentAdded,
    ServerSettings,
    TableSeen,
    TensorDescription,
    ToRequester,
    TraceSettings,
    Unwelcome,
    UpdateLogSettings,
    UpdateTraceSettings,
    Welcome,
)
from conch.process import set_logging
from conch.requester.asked import Asked, OnAnswer, OnResponse, Stream, cancel_with, settle
from conch.requester.broker_calls import NOT_SENDABLE, BrokerCalls
from conch.requester.broker_link import BrokerLink
from conch.requester.broker_socket import BrokerSocket
from conch.requester.calls import Call, Order
from conch.requester.cuda_check import CudaCheck
from conch.requester.delivery import deliver
from conch.requester.growth import Growth
from conch.requester.inference import InferenceCall, InferenceResult
from conch.requester.lent_memory import LentMemory
from conch.requester.links import Links, WorkerLink, announcement
from conch.requester.models import ModelTableView, ReadyModel
from conch.requester.pending import (
    HOLD_LIMIT_S,
    Deliver,
    Entry,
    Fail,
    FreeInputs,
    GiveBack,
    Instruction,
    Pending,
    Send,
)
from conch.requester.region_memory import RegionMemory, output_targets, place
from conch.requester.regions import RegionTableView
from conch.requester.shares import Shares
from conch.requester.validation import Checked, validate
from conch.run_dir import RunDir, new_peer_id
from shm.arena import Arena

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

logger = logging.getLogger("conch.requester.requester")

TICK_S = 0.25
#: ticks between two looks for idle segments
_RETIRE_TICKS = 20
_ALIGNMENT_NBYTES = 64


class Requester:
    """One per process. All methods belong to the thread of the loop that ``start`` ran on.

    ``worker``: the worker in which it lives. Its results can be passed on as inputs, and the broker tells it of models
    alone.

    ``models`` and ``regions`` are the broker's latest tables, ``server_settings`` its latest settings. ``on_table`` and
    ``on_settings`` are called after each change of ``models`` and of the settings.
    While no broker has welcomed us (``connected``), requests are held for up to 10 s.
    """

    def __init__(
        self,
        run_dir: RunDir,
        *,
        role: str = "http",
        arena_cap_nbytes: int = 4 << 30,
        max_inflight: int = 8192,
        worker: str = "",
    ) -> None:
        self.id = new_peer_id()
        self._worker = worker
        self.models = ModelTableView(inside=bool(worker))
        self.regions = RegionTableView()
        self.server_settings = ServerSettings(0, LogSettings(), {"": TraceSettings()})
        self.on_table: Callable[[ModelTable], None] | None = None
        self.on_settings: Callable[[ServerSettings], None] | None = None
        self._run_dir = run_dir
        self._max_inflight = max_inflight
        # inside a worker one model asks, and nobody else is to be left room for
        part = 1 if worker else 2
        self._shares = Shares(-(-max_inflight // part), arena_cap_nbytes // part)
        self._pending = Pending(self.id, role, os.getpid(), max_inflight, time.monotonic())
        self._calls = BrokerCalls(lambda: self._pending.welcome, lambda message: self._broker.send(message))
        self._arena = Arena(arena_cap_nbytes, "input")
        self._links = Links(self._on_response, self._announcements, keep_descriptors=bool(worker))
        self._arena.on_segment_added = lambda segment: self._links.announce(*announcement(segment))
        self._arena.on_segment_retired = self._links.retire
        self._region_memory = RegionMemory(self._links.announce, self._links.retire)
        self._lent_memory = LentMemory(self._links.announce, self._links.retire)
        #: what could not be sent: until it is, the broker sends no other table
        self._table_seen: TableSeen | None = None
        self._started = False
        self._closing = False
        self._ticks = 0
        self._timer: asyncio.TimerHandle | None = None
        self._growth: Growth
        self._cuda_check: CudaCheck
        self._data: BrokerLink
        self._broker: BrokerSocket[ToRequester]
        self._loop: asyncio.AbstractEventLoop
        self._thread: int

    # --------------------------------------------------------------------------------------------------- life time

    async def start(self) -> None:
        """Listens for workers and connects to the broker. Returns without waiting for one. Raises ``OSError``,
        ``ArenaFull`` and ``zmq.ZMQError``; may be tried again then."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._growth = Growth(self._arena)
        self._cuda_check = CudaCheck()
        self._links.open(self._run_dir.requester_socket(self.id))
        try:
            if self._arena.needs_growth(1):
                await self._loop.run_in_executor(None, self._arena.grow, 1)
            self._arena.free(self._arena.allocate(1))  # takes the new segment over
            self._data = BrokerLink(self._run_dir.broker_data_socket, self.id, self._on_data_lost)
            self._broker = BrokerSocket(
                self._run_dir.broker_socket, self.id.encode(), ToRequester, self._from_broker, self._on_connection
            )
        except BaseException:
            self._links.close()
            raise
        self._started = True
        self._tick()

    def stop_loading(self) -> None:
        """To be called when the server is about to exit: nobody waits any more for models to be loaded."""
        self._calls.stop_loading()

    async def close(self) -> None:
        """Answers everything pending with ``NotReady``, then closes sockets, links and the arena. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if not self._started:
            self._arena.close()
            return
        self._carry_out(self._pending.close())
        await self._growth.close()
        self._calls.close()
        if self._timer is not None:
            self._timer.cancel()
        self._data.close()
        self._broker.close()
        self._links.close()
        self._arena.close()
        self._region_memory.close()
        self._lent_memory.close()

    @property
    def connected(self) -> bool:
        return self._pending.welcome

    @property
    def inflight(self) -> int:
        """Requests that hold inputs, answered or not."""
        return len(self._pending) + len(self._growth)

    # ----------------------------------------------------------------------------------------------- what callers do

    def submit(self, model: ReadyModel, call: InferenceCall) -> "asyncio.Future[InferenceResult]":
        """``ask`` with a future for the answer. Cancelling the future (also by cancelling the task that awaits it)
        cancels the request."""
        future: asyncio.Future[InferenceResult] = self._loop.create_future()
        asked = self.ask(model, call, partial(settle, future))
        future.add_done_callback(partial(cancel_with, asked))
        return future

    def ask(self, model: ReadyModel, call: InferenceCall, on_answer: OnAnswer) -> Asked:
        """Validates, copies the inputs into the arena and sends the request.

        Raises ``ClientError`` (invalid request) and ``Unavailable`` (too much in flight, closed) at once. Otherwise
        ``on_answer`` gets the result, or an exception out of ``conch.errors``, later and never from inside ``ask``; it
        is called where the answer arrives, not in a turn of the loop of its own. Whoever gets a result must ``release``
        it. ``cancel`` on what this returns tells the broker that nobody waits any more. Of a decoupled model's
        responses only the last is given: ``stream`` is for those.

        Where the arena has to grow, the inputs are copied a little later: they must stay as they are until there is an
        answer.
        """
        return self._start(model, call, Asked(self._cancelled, on_answer))

    def stream(self, model: ReadyModel, call: InferenceCall, on_response: OnResponse) -> Asked:
        """``ask`` for any number of responses; a model that is not decoupled gives one.

        ``on_response`` gets each response in order, and whether it was the last: a result, an error (also one after
        which more follow), or None for a last one that holds nothing. An error without a response, for instance of a
        worker that died, is the last. Nothing comes after the last one, nor after ``cancel``.

        Every result is lent until it is released, even a small one: the model waits when too many are not.
        """
        return self._start(model, call, Stream(self._cancelled, on_response, self._say_read, model.decoupled))

    def _start(self, model: ReadyModel, call: InferenceCall, asked: Asked) -> Asked:
        checked = validate(model, call)
        self._pending.check_capacity()
        nbytes = 0
        for tensor in call.inputs:
            nbytes += (len(tensor.data) + 63) & -64
        nbytes = nbytes or _ALIGNMENT_NBYTES
        share = model.share or self._shares.of(model)
        share.check(nbytes)
        if checked.elsewhere or call.targets:
            asked.regions = self._region_memory.take(call)
            asked.targets = call.targets
            asked.lent = self._lent_memory.take(call)
        block = self._arena.allocate_within(nbytes)
        if block is None and self.inflight >= self._max_inflight:
            self._let_go(asked)
            raise Overloaded("too many requests in flight; try again")
        asked.share = share
        share.add(nbytes)
        if block is not None:
            self._send_request(model, call, checked, block, asked)
        else:
            self._growth.begin(asked, nbytes, partial(self._go_on, model, call, checked, asked, nbytes))
        return asked

    @overload
    async def call(self, message: Order) -> None: ...
    @overload
    async def call(self, message: AskReady) -> bool: ...
    @overload
    async def call(self, message: AskStatistics) -> list[ModelStatistics]: ...
    @overload
    async def call(self, message: UpdateLogSettings) -> LogSettings: ...
    @overload
    async def call(self, message: UpdateTraceSettings) -> TraceSettings: ...
    async def call(self, message: Call) -> Any:
        """Asks the broker (``message.call`` is filled in here; pass 0).

        Raises what the broker answers, as an error out of ``conch.errors``, and ``NotReady`` when there is no broker
        for 10 s or it went away before it answered.
        """
        if isinstance(message, RegisterCudaRegion):
            await self._cuda_check.run(message, self.regions)
        return await self._calls.ask(message)

    # ------------------------------------------------------------------------------------------------ a request's way

    def _send_request(
        self, model: ReadyModel, call: InferenceCall, checked: Checked, block: Block, asked: Asked
    ) -> None:
        segment, start = block.segment, block.offset
        view = self._arena.view(block)
        descriptions = []
        offset = 0
        for tensor in call.inputs:
            data = tensor.data
            nbytes = len(data)
            if not nbytes and (tensor.region is not None or asked.lent):
                elsewhere = place(tensor)
                if elsewhere is not None:
                    descriptions.append(TensorDescription(tensor.name, tensor.datatype, tensor.shape, elsewhere))
                    continue
            end = offset + nbytes
            view[offset:end] = data
            descriptions.append(
                TensorDescription(tensor.name, tensor.datatype, tensor.shape, Block(segment, start + offset, nbytes))
            )
            offset = (end + 63) & -64
        pending = self._pending
        asked.id = id = pending.new_id()
        asked.block = block
        request = Request(
            id,
            1,
            model.name,
            model.version,
            checked.batch_size,
            checked.shape_key,
            tuple(descriptions),
            call.outputs,
            call.client_id,
            call.parameters,
            call.priority,
            call.timeout_us,
            call.deadline,
            call.sequence,
            call.parent,
            call.depth,
            call.trace,
            targets=output_targets(call.targets) if call.targets else (),
        )
        repeatable = model.idempotent and not (call.targets and self._region_memory.overwrites_inputs(call))
        if pending.admit(Entry(request, repeatable, asked), time.monotonic()):
            self._send_data(request)

    def _go_on(
        self, model: ReadyModel, call: InferenceCall, checked: Checked, asked: Asked, nbytes: int, block: Block | None
    ) -> None:
        """The rest of ``ask`` once the arena has grown."""
        if block is None:
            assert asked.share is not None
            asked.share.remove(nbytes)
            self._let_go(asked)
        else:
            self._send_request(model, call, checked, block, asked)

    def _cancelled(self, id: int) -> None:
        self._carry_out(self._pending.abandon(id))

    def _carry_out(self, instructions: list[Instruction], link: WorkerLink | None = None) -> None:
        """``link`` is that of the worker whose response this is about."""
        for instruction in instructions:
            match instruction:
                case Send():
                    message = instruction.message
                    if isinstance(message, RequesterHello):
                        self._data.forget_waiting()
                        hello = msgspec.structs.replace(message, regions=self._region_memory.held, worker=self._worker)
                        self._broker.send(hello)
                    else:
                        self._send_data(message)
                case FreeInputs():
                    self._free_inputs(instruction.entry.owner)
                case Deliver():
                    assert link is not None
                    deliver(instruction.entry, instruction.response, link)
                case Fail():
                    instruction.entry.owner.answer(from_fault(instruction.fault))
                case GiveBack():
                    assert link is not None
                    link.mappings.give_back(instruction.lease)

    def _free_inputs(self, asked: Asked) -> None:
        block, share = asked.block, asked.share
        assert block is not None and share is not None
        self._arena.free(block)
        share.remove(block.nbytes)
        if asked.regions or asked.lent:
            self._let_go(asked)

    def _let_go(self, asked: Asked) -> None:
        """Of the memory that is not ours."""
        self._region_memory.release(asked.regions)
        self._lent_memory.release(asked.lent)
        asked.regions = asked.lent = ()

    def _on_response(self, response: Response, link: WorkerLink) -> None:
        entry = self._pending.finish(response)
        if entry is None:
            self._carry_out(self._pending.response(response), link)
        else:
            self._free_inputs(entry.owner)
            deliver(entry, response, link)

    def _say_read(self, link: WorkerLink, id: int, responses: int) -> None:
        """From any thread: whoever has read a result may have handed it to another one."""
        if threading.get_ident() == self._thread:
            self._links.say_read(link, id, responses)
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended: so have the streams
            self._loop.call_soon_threadsafe(self._links.say_read, link, id, responses)

    # ---------------------------------------------------------------------------------------------------- the broker

    def _send_data(self, message: Request | Cancel) -> None:
        try:
            if self._data.send(message):
                return
        except NOT_SENDABLE as error:
            if not isinstance(message, Request):
                raise
            fault = Fault("InvalidArgument", f"the request cannot be passed on: {error}")
            # later: this may be inside of ``ask``
            self._loop.call_soon(self._reject, Rejected(message.id, message.attempt, fault))
            return
        if isinstance(message, Request):
            self._pending.not_sent(message, time.monotonic())

    def _reject(self, rejected: Rejected) -> None:
        self._carry_out(self._pending.rejected(rejected))

    def _on_data_lost(self) -> None:
        """The broker is gone, or has dropped the connection: what it knows of us is found out by a HELLO."""
        # an answer that the broker could not send yet is dropped when it hears the HELLO
        self._calls.broker_lost()
        self._carry_out(self._pending.unwelcome(Unwelcome(0), time.monotonic()))

    def _from_broker(self, message: ToRequester) -> None:
        match message:
            case Retired():
                self._carry_out(self._pending.retired(message))
            case Rejected():
                self._carry_out(self._pending.rejected(message))
            case Lost():
                # A broker that restarted knows no worker's name: the answer may lie in any connection.
                self._links.drain(message.worker)
                self._carry_out(self._pending.lost(message, time.monotonic()))
            case ModelTable():
                try:
                    self.models.update(message)
                    if self.on_table is not None:
                        self.on_table(message)
                finally:
                    self._say_seen(TableSeen(message.epoch, message.revision))
            case RegionTable():
                try:
                    self.regions.update(message)
                    self._region_memory.update(message.regions)
                finally:
                    self._say_seen(TableSeen(message.epoch, message.revision))
            case ServerSettings():
                self.server_settings = message
                set_logging(message.log)
                if self.on_settings is not None:
                    self.on_settings(message)
            case Answer():
                self._calls.answered(message)
            case Welcome():
                if not self._data.connect(message.epoch):
                    return  # that broker has gone again; without a Welcome, HELLO is repeated
                self.models.broker_absent = False
                self._carry_out(self._pending.welcomed(message))
                self._calls.send_waiting()
            case Unwelcome():
                if message.fault is not None:
                    logger.error("the broker refused us: %s", message.fault.message)
                self._calls.broker_lost()
                self._carry_out(self._pending.unwelcome(message, time.monotonic()))

    def _say_seen(self, seen: TableSeen) -> None:
        if self._worker:
            return  # the broker waits for nothing
        self._table_seen = None if self._broker.send(seen) else seen

    def _on_connection(self, up: bool) -> None:
        now = time.monotonic()
        self._table_seen = None
        self._calls.broker_lost()
        if up:
            self._carry_out(self._pending.connected(now))
        else:
            self._pending.disconnected(now)

    def _tick(self) -> None:
        now = time.monotonic()
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._carry_out(self._pending.tick(now))
        self._calls.tick(now)
        self.models.broker_absent = self._pending.outage_s(now) > HOLD_LIMIT_S
        self._region_memory.open_missing()
        if self._table_seen is not None:
            self._say_seen(self._table_seen)
        self._ticks += 1
        if self._ticks % _RETIRE_TICKS == 0:
            self._arena.retire_idle(now)
            self._lent_memory.retire_idle(now)

    def _announcements(self) -> Iterator[tuple[SegmentAdded, int]]:
        yield from map(announcement, self._arena.segments)
        yield from self._region_memory.announcements()
        yield from self._lent_memory.announcements()
