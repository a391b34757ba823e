"""Who is connected to the broker in the scheduling world, and the models that are asked for and served.

Requesters run the real ``conch.requester.pending.Pending``; workers follow the worker's view in ``docs/design.md``.
"""

from typing import TYPE_CHECKING, Any

from conch import messages
from conch.messages import Batch, Block, Cancel, Closed, Dispatch, Done, Drain, Request, Response, TensorDescription
from conch.messages.requests import Parent
from conch.model_config import DynamicBatching, ModelConfig, QueuePolicy, StringParameter
from conch.requester import pending
from tests.broker.scheduling.choices import Choices

if TYPE_CHECKING:
    from tests.broker.scheduling.world import World

MODELS = {
    ("plain", 1): ModelConfig(name="plain", max_batch_size=4),
    ("merging", 1): ModelConfig(
        name="merging",
        max_batch_size=3,
        dynamic_batching=DynamicBatching(),
        parameters={"EXECUTION_TIMEOUT_S": StringParameter("0.2")},
    ),
    ("waiting", 1): ModelConfig(
        name="waiting",
        max_batch_size=4,
        dynamic_batching=DynamicBatching(
            preferred_batch_size=(2, 4),
            max_queue_delay_microseconds=20_000,
            priority_levels=2,
            default_priority_level=2,
            default_queue_policy=QueuePolicy(max_queue_size=3, default_timeout_microseconds=200_000),
        ),
    ),
}


class Peer:
    """One ZeroMQ socket that is connected to the broker, or not. ``inbox`` holds (epoch of the sender, message): what
    is left of a former connection and what comes over the present one may be read in any order."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.linked = False
        self.unnoticed = False
        self.inbox: list[tuple[int, Any]] = []

    def read(self, choices: Choices) -> Any:
        epochs = list(dict.fromkeys(epoch for epoch, _ in self.inbox))
        epoch = epochs[choices.below(len(epochs))]
        position = next(position for position, item in enumerate(self.inbox) if item[0] == epoch)
        return self.inbox.pop(position)[1]

    def send(self, message: Any) -> bool:
        if not self.linked:
            return False
        self.world.to_broker[self.name].append((self, message))
        return True

    def broker_died(self, choices: Choices) -> None:
        self.linked = False
        self.unnoticed = False
        for _ in range(choices.below(len(self.inbox) + 1)):
            self.inbox.pop()


class Requester:
    """``worker``: the one in which it lives and with which it dies."""

    def __init__(self, world: "World", name: str, worker: "Worker | None" = None) -> None:
        self.world = world
        self.name = name
        self.worker = worker
        self.socket = Peer(world, name)
        self.pending = pending.Pending(name, "test", 1, 1000, world.now)
        self.arena: set[int] = set()
        self.answered: dict[int, int] = {}
        self.abandoned: set[int] = set()

    @property
    def alive(self) -> bool:
        return self.socket.alive

    def submit(self, choices: Choices, parent: Parent | None = None, depth: int = 0) -> int:
        name, version = list(MODELS)[choices.below(len(MODELS))]
        id = self.pending.new_id()
        self.arena.add(id)
        self.answered[id] = 0
        deadline = self.world.now + 0.05 if choices.one_in(10) else None
        tensor = TensorDescription("x", "FP32", (1,), Block(1, id * 64, 64))
        size = 1 + choices.below(2)
        shape_key = "ab"[choices.below(2)]
        priority = choices.below(3)
        request = Request(
            id,
            1,
            name,
            version,
            size,
            shape_key,
            inputs=(tensor,),
            deadline=deadline,
            priority=priority,
            parent=parent,
            depth=depth,
        )
        entry = pending.Entry(request, idempotent=not choices.one_in(6))
        if not entry.idempotent:
            self.world.once.add((self.name, id))
        self.carry_out(self.pending.submit(entry, self.world.now))
        return id

    def abandon(self, choices: Choices) -> None:
        id = sorted(self.arena)[choices.below(len(self.arena))]
        self.abandoned.add(id)
        if self.worker is not None:
            self.worker.waits_for.discard(id)
        self.carry_out(self.pending.abandon(id))

    def read_socket(self) -> None:
        match self.socket.read(self.world.choices):
            case messages.Welcome() as message:
                self.carry_out(self.pending.welcomed(message))
            case messages.Unwelcome() as message:
                self.carry_out(self.pending.unwelcome(message, self.world.now))
            case messages.Retired() as message:
                self.carry_out(self.pending.retired(message))
            case messages.Rejected() as message:
                self.carry_out(self.pending.rejected(message))
            case messages.Lost() as message:
                for worker, requester in list(self.world.responses):
                    if requester == self.name and message.worker in ("", worker):
                        while self.world.responses[worker, requester]:
                            self.read_response(worker)
                self.carry_out(self.pending.lost(message, self.world.now))
            case other:
                raise AssertionError(other)

    def read_response(self, worker: str) -> None:
        self.carry_out(self.pending.response(self.world.responses[worker, self.name].popleft()))

    def notice(self) -> None:
        """A new connection: everything there is is read before HELLO, so that nothing older is taken for an answer."""
        self.socket.unnoticed = False
        while self.socket.inbox:
            self.read_socket()
        self.hello()

    def hello(self) -> None:
        self.carry_out(self.pending.connected(self.world.now))

    def carry_out(self, instructions: list[pending.Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case pending.Send(message):
                    if not self.socket.send(message) and isinstance(message, Request):
                        self.pending.not_sent(message, self.world.now)
                case pending.Deliver(entry, response):
                    if response.final:
                        self.answer(entry)
                case pending.Fail(entry, _):
                    self.answer(entry)
                case pending.FreeInputs(entry):
                    self.arena.remove(entry.request.id)

    def answer(self, entry: pending.Entry) -> None:
        self.answered[entry.request.id] += 1
        assert self.answered[entry.request.id] == 1, "answered twice"
        if self.worker is not None:
            self.worker.waits_for.discard(entry.request.id)


class Worker:
    """``epoch``: whose batches it takes up, None between a HELLO and its Welcome.

    ``unanswered``, ``opened`` and ``again``: positions in ``batch``. ``open``: what it goes on answering after its
    batch, and whether that has been answered and only its inputs are still read. ``requester``: what its model asks
    others with; the batch is not over before ``waits_for`` has been answered.
    """

    def __init__(self, world: "World", name: str, model: tuple[str, int]) -> None:
        self.world = world
        self.name = name
        self.model = model
        self.control = Peer(world, "C" + name)
        self.data = Peer(world, "D" + name)
        self.batch: Batch | None = None
        self.unanswered: list[int] = []
        self.opened: list[int] = []
        self.again: list[int] = []
        self.open: dict[tuple[str, int], tuple[Dispatch, bool]] = {}
        self.requester: Requester | None = None
        self.waits_for: set[int] = set()
        self.draining = False
        self.failed: list[int] = []
        self.undelivered: list[int] = []
        self.unreported: list[Done | Closed] = []
        self.started_ns = 0
        self.epoch: int | None = None

    @property
    def alive(self) -> bool:
        return self.control.alive

    def die(self) -> None:
        self.control.alive = self.data.alive = False
        if self.requester is not None:
            self.requester.socket.alive = False
        self.world.unseen_deaths.append(self.name)

    def notice(self) -> None:
        """Says HELLO, after reading what there is; from here on it takes up no batch of an earlier broker."""
        self.control.unnoticed = False
        while self.control.inbox and self.alive:
            self.read_control()
        if not self.alive:
            return
        self.epoch = None
        self.unreported.clear()  # what is done is not listed
        running: tuple[messages.Running, ...] = ()
        if self.batch is not None:
            running = tuple(
                messages.Running(item.requester, item.request.id, item.request.attempt, self.batch.epoch, self.batch.id)
                for item in self.batch.items
            )
        running += tuple(
            messages.Running(item.requester, item.request.id, item.request.attempt) for item, _ in self.open.values()
        )
        name, version = self.model
        hello = messages.WorkerHello(1, self.name, 1, name, version, 0, "hash", "ready", running)
        self.control.send(hello)

    def read_control(self) -> None:
        match self.control.read(self.world.choices):
            case messages.Welcome(epoch=epoch):
                self.epoch = epoch
                if not self.draining:
                    self.data.send(messages.Ready(self.name))
                self.report()
            case messages.Unwelcome(fault=fault):
                assert fault is not None
                self.die()
            case Drain():
                assert not self.waiting() and self.batch is None, "drained while it holds something"
                self.draining = True
                for key in [key for key, (_, answered) in self.open.items() if answered]:
                    self.close(key)
                self.end_if_drained()
            case Cancel() | messages.Forget():
                pass
            case other:
                raise AssertionError(other)

    def waiting(self) -> list[Batch]:
        return [batch for _, batch in self.data.inbox if batch.epoch == self.epoch]

    def take_up(self) -> None:
        batch = self.data.read(self.world.choices)
        if batch.epoch != self.epoch:
            assert self.epoch is not None and batch.epoch < self.epoch
            return
        self.batch = batch
        self.unanswered = list(range(len(batch.items)))
        self.failed = []
        self.undelivered = []
        self.opened = []
        self.again = []
        self.started_ns = int(self.world.now * 1e9)
        for item in batch.items:
            key = (item.requester, item.request.id)
            self.world.runs[key] += 1
            assert self.world.runs[key] == 1 or key not in self.world.once, "ran again what may run only once"
            if item.request.attempt > 1:
                assert len(batch.items) == 1 and not self.waiting(), "a retried request is not alone"

    def respond(self, choices: Choices) -> None:
        assert self.batch is not None
        position = self.unanswered[choices.below(len(self.unanswered))]
        item = self.batch.items[position]
        requester = self.world.requesters[item.requester]
        if not requester.alive or choices.one_in(30):
            self.undelivered.append(position)
        elif choices.one_in(12):
            self.again.append(position)
            self.world.runs[item.requester, item.request.id] -= 1
        elif choices.one_in(3):
            self.opened.append(position)
        else:
            channel = self.world.responses[self.name, item.requester]
            if choices.one_in(4):
                channel.append(Response(item.request.id, item.request.attempt, 0, False))
                return
            if choices.one_in(6):
                self.failed.append(position)
            channel.append(Response(item.request.id, item.request.attempt, 1, True))
        self.unanswered.remove(position)

    def finish(self) -> None:
        assert self.batch is not None
        now_ns = int(self.world.now * 1e9)
        done = Done(
            self.batch.epoch,
            self.batch.id,
            self.started_ns,
            self.started_ns,
            now_ns,
            now_ns,
            tuple(self.failed),
            tuple(self.undelivered),
            tuple(self.opened),
            tuple(self.again),
        )
        for position in self.opened:
            item = self.batch.items[position]
            self.open[item.requester, item.request.id] = (item, False)
        self.unreported.append(done)
        self.batch = None
        self.report()

    def ask(self, choices: Choices) -> None:
        """Its model asks another, or itself, and mostly waits for the answer."""
        assert self.batch is not None and self.requester is not None
        first = self.batch.items[0]
        parent = Parent(first.requester, first.request.id)
        id = self.requester.submit(choices, parent, first.request.depth + 1)
        if not choices.one_in(4) and not self.requester.answered[id]:
            self.waits_for.add(id)

    def go_on(self, choices: Choices) -> None:
        """The next step of an open request."""
        key = list(self.open)[choices.below(len(self.open))]
        item, answered = self.open[key]
        request = item.request
        failed = undelivered = False
        if not answered:
            if not self.world.requesters[item.requester].alive or choices.one_in(30):
                undelivered = True
            else:
                final = choices.below(3) == 0
                held = final and choices.one_in(3)
                failed = final and choices.one_in(6)
                response = Response(request.id, request.attempt, 1, final, inputs_held=held)
                self.world.responses[self.name, item.requester].append(response)
                if held or not final:
                    self.open[key] = (item, final)
                    return
        self.close(key, failed, undelivered)
        self.end_if_drained()

    def close(self, key: tuple[str, int], failed: bool = False, undelivered: bool = False) -> None:
        request = self.open.pop(key)[0].request
        self.unreported.append(Closed(key[0], request.id, request.attempt, failed, undelivered))
        self.report()

    def end_if_drained(self) -> None:
        if self.draining and not self.open:
            self.die()

    def report(self) -> None:
        """Between a HELLO and its Welcome nothing is reported, and nothing is lost for want of a connection."""
        if self.epoch is not None:
            while self.unreported and self.data.send(self.unreported[0]):
                self.unreported.pop(0)
