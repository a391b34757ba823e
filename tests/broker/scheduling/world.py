"""A small world around the dispatcher: requesters, workers, a launcher, and brokers that die and start again.

Every hop is an ordered queue; every delivery, step and death is one action; the next action is drawn by a ``Choices``.
Requesters run the real ``frontends.pending.Pending``; workers follow the worker's view in ``docs/design.md``. The world
checks after every action what must always hold, and ``settle`` what must hold in the end.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from broker.instructions import ToControl, ToData, ToPeer
from broker.scheduling.dispatcher import Dispatcher
from conch import messages
from conch.messages import Batch, Block, Cancel, Done, Drain, Fault, Request, Response, TensorDescription
from conch.model_config import DynamicBatching, ModelConfig, QueuePolicy
from frontends import pending

MODELS = {
    ("plain", 1): ModelConfig(name="plain", max_batch_size=4),
    ("merging", 1): ModelConfig(name="merging", max_batch_size=3, dynamic_batching=DynamicBatching()),
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
GONE = Fault("NotReady", "unloaded")
DEAD = Fault("WorkerDied", "died")
MAX_WORKERS = 5
MAX_REQUESTERS = 3
MAX_INFLIGHT = 6
#: a step out of so many is an accident
ACCIDENT_ONE_IN = 16


class Choices:
    """Draws from a string of bytes, so that Hypothesis can shorten and simplify what led to a failure."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._next = 0

    @property
    def left(self) -> bool:
        return self._next < len(self._source)

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound`` - 1; 0 when there is nothing left."""
        if not self.left:
            return 0
        byte = self._source[self._next]
        self._next += 1
        return byte % bound

    def one_in(self, bound: int) -> bool:
        return self.below(bound) == bound - 1


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
    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.socket = Peer(world, name)
        self.pending = pending.Pending(name, "test", 1, 1000, world.now)
        self.arena: set[int] = set()
        self.answered: dict[int, int] = {}
        self.abandoned: set[int] = set()

    @property
    def alive(self) -> bool:
        return self.socket.alive

    def submit(self, choices: Choices) -> None:
        name, version = list(MODELS)[choices.below(len(MODELS))]
        id = self.pending.new_id()
        self.arena.add(id)
        self.answered[id] = 0
        deadline = self.world.now + 0.05 if choices.one_in(10) else None
        tensor = TensorDescription("x", "FP32", (1,), Block(1, id * 64, 64))
        size = 1 + choices.below(2)
        shape_key = "ab"[choices.below(2)]
        priority = choices.below(3)
        request = Request(id, 1, name, version, size, shape_key, inputs=(tensor,), deadline=deadline, priority=priority)
        entry = pending.Entry(request, idempotent=not choices.one_in(6))
        if not entry.idempotent:
            self.world.once.add((self.name, id))
        self.carry_out(self.pending.submit(entry, self.world.now))

    def abandon(self, choices: Choices) -> None:
        id = sorted(self.arena)[choices.below(len(self.arena))]
        self.abandoned.add(id)
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


class Worker:
    """``epoch``: whose batches it takes up, None between a HELLO and its Welcome."""

    def __init__(self, world: "World", name: str, model: tuple[str, int]) -> None:
        self.world = world
        self.name = name
        self.model = model
        self.control = Peer(world, "C" + name)
        self.data = Peer(world, "D" + name)
        self.batch: Batch | None = None
        self.unanswered: list[int] = []
        self.failed: list[int] = []
        self.undelivered: list[int] = []
        self.unreported: list[Done] = []
        self.started_ns = 0
        self.epoch: int | None = None

    @property
    def alive(self) -> bool:
        return self.control.alive

    def die(self) -> None:
        self.control.alive = self.data.alive = False
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
        name, version = self.model
        hello = messages.WorkerHello(1, self.name, 1, name, version, 0, "hash", "ready", running)
        self.control.send(hello)

    def read_control(self) -> None:
        match self.control.read(self.world.choices):
            case messages.Welcome(epoch=epoch):
                self.epoch = epoch
                self.data.send(messages.Ready(self.name))
                self.report()
            case messages.Unwelcome(fault=fault):
                assert fault is not None
                self.die()
            case Drain():
                assert not self.waiting() and self.batch is None, "drained while it holds something"
                assert not self.unreported
                self.die()
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
        )
        self.unreported.append(done)
        self.batch = None
        self.report()

    def report(self) -> None:
        """Between a HELLO and its Welcome nothing is reported, and nothing is lost for want of a connection."""
        if self.epoch is not None:
            while self.unreported and self.data.send(self.unreported[0]):
                self.unreported.pop(0)


class Broker:
    """What the shell around the dispatcher does: who has said HELLO, and where messages go."""

    def __init__(self, world: "World", epoch: int) -> None:
        self.world = world
        self.epoch = epoch
        self.dispatcher = Dispatcher(epoch)
        self.requesters: set[str] = set()
        self.workers: dict[str, tuple[str, int]] = {}
        self.launcher = False
        self.added: set[tuple[str, int]] = set()
        self.starting = True

    def receive(self, peer: Peer, message: Any) -> None:
        dispatcher = self.dispatcher
        now = self.world.now
        match message:
            case messages.RequesterHello(requester=requester, awaited=awaited):
                last_loss = message.last_loss if message.epoch == self.epoch else 0
                self.send(requester, messages.Welcome(1, self.epoch))
                self.requesters.add(requester)
                dispatcher.requester_hello(requester, awaited, last_loss)
                if not self.world.requesters[requester].alive:
                    self.gone(requester)
            case Request() | Cancel() if peer.name not in self.requesters:
                self.send(peer.name, messages.Unwelcome(self.epoch))
            case Request():
                dispatcher.submit(peer.name, message, now)
            case Cancel(requester=requester, id=id):
                dispatcher.cancel(requester, id, now)
            case messages.WorkerHello(worker=worker, model=model, version=version, running=running):
                if dispatcher.worker_hello(worker, model, version, running, now):
                    self.workers[worker] = (model, version)
                    self.send("C" + worker, messages.Welcome(1, self.epoch))
                    dispatcher.worker_ready(worker, model, version)
                else:
                    self.send("C" + worker, messages.Unwelcome(self.epoch, GONE))
            case messages.Ready(worker=worker):
                if worker in self.workers:
                    dispatcher.worker_ready(worker, *self.workers[worker])
            case Done():
                if peer.name[1:] in self.workers:
                    dispatcher.done(peer.name[1:], message, now)
            case messages.LauncherHello(workers=workers):
                self.launcher = True
                for worker in dispatcher.launcher_hello(workers):
                    self.lost(worker)
            case messages.Died(worker=worker):
                if self.launcher:
                    self.lost(worker)
            case other:
                raise AssertionError(other)

    def lost(self, worker: str) -> None:
        self.workers.pop(worker, None)
        self.dispatcher.worker_lost(worker, DEAD, self.world.now)

    def gone(self, requester: str) -> None:
        self.requesters.discard(requester)
        self.dispatcher.requester_gone(requester)

    def add_model(self, key: tuple[str, int]) -> None:
        self.added.add(key)
        self.dispatcher.add_model(*key, MODELS[key])

    def dispatch(self) -> None:
        instructions = deque(self.dispatcher.dispatch(self.world.now))
        while instructions:
            match instructions.popleft():
                case ToPeer(peer, message):
                    self.send(peer, message)
                case ToControl(worker, message):
                    self.send("C" + worker, message)
                case ToData(worker, message):
                    if not self.send("D" + worker, message):
                        self.dispatcher.unreachable(worker, message.id, self.world.now)
                case other:
                    raise AssertionError(other)

    def send(self, name: str, message: Any) -> bool:
        peer = self.world.peers.get(name)
        if peer is None or not peer.linked:
            return False
        peer.inbox.append((self.epoch, message))
        return True


class World:
    def __init__(self, source: bytes) -> None:
        self.choices = Choices(source)
        self.now = 100.0
        self.epoch = 0
        self.broker: Broker | None
        self.requesters: dict[str, Requester] = {}
        self.workers: dict[str, Worker] = {}
        self.launcher = Peer(self, "L")
        self.unseen_deaths: list[str] = []
        self.peers: dict[str, Peer] = {"L": self.launcher}
        self.to_broker: dict[str, deque[Any]] = defaultdict(deque)
        self.responses: dict[tuple[str, str], deque[Response]] = defaultdict(deque)
        self.runs: dict[tuple[str, int], int] = defaultdict(int)
        self.once: set[tuple[str, int]] = set()
        self.log: list[str] = []
        self.broker = self.start_broker()
        for key in MODELS:
            self.broker.add_model(key)
        for peer in self.peers.values():
            self.link(peer)
        self.notice_launcher()
        self.receive("L")
        for key in MODELS:
            self.spawn(key)
        self.new_requester()
        self.new_requester()

    # ---------------------------------------------------------------------------------------------- one action

    def run(self) -> None:
        while self.choices.left:
            self.step()

    def step(self) -> None:
        actions = self.accidents() if self.choices.one_in(ACCIDENT_ONE_IN) else self.actions()
        name, action = actions[self.choices.below(len(actions))]
        self.log.append(name)
        action()
        self.check()

    def actions(self) -> list[tuple[str, Callable[[], object]]]:
        """What can happen next while all goes well."""
        found: list[tuple[str, Callable[[], object]]] = [("time passes", self.pass_time)]
        add = found.append
        broker = self.broker
        if broker is None:
            add(("broker starts", self.start_broker))
        else:
            add(("broker dispatches", broker.dispatch))
            for name, channel in self.to_broker.items():
                if channel:
                    add((f"broker receives from {name}", partial(self.receive, name)))
            for peer in self.peers.values():
                if peer.alive and not peer.linked:
                    add((f"{peer.name} links", partial(self.link, peer)))
            if self.launcher.unnoticed:
                add(("launcher notices", self.notice_launcher))
            for key in MODELS:
                if key not in broker.added:
                    add((f"{key} is ready", partial(broker.add_model, key)))
            if broker.starting and len(broker.added) == len(MODELS):
                add(("startup finished", self.finish_startup))
            if broker.launcher and len(self.living_workers()) < MAX_WORKERS:
                add(("spawn", self.spawn_any))
            for name in sorted(broker.requesters):
                if not self.requesters[name].alive:
                    add((f"broker sees {name} dead", partial(broker.gone, name)))
        if self.unseen_deaths:
            add(("launcher sees a death", self.see_death))
        for requester in self.living_requesters():
            if len(requester.arena) < MAX_INFLIGHT:
                add((f"{requester.name} submits", partial(requester.submit, self.choices)))
            if requester.socket.inbox:
                add((f"{requester.name} reads", requester.read_socket))
            if requester.socket.unnoticed:
                add((f"{requester.name} notices", requester.notice))
        for worker in self.living_workers():
            if worker.control.unnoticed:
                add((f"{worker.name} notices", worker.notice))
            if worker.control.inbox:
                add((f"{worker.name} reads control", worker.read_control))
            if worker.batch is None and worker.data.inbox and worker.epoch is not None:
                add((f"{worker.name} takes up", worker.take_up))
            if worker.unreported and worker.epoch is not None and worker.data.linked:
                add((f"{worker.name} reports", worker.report))
            if worker.batch is not None and worker.unanswered:
                add((f"{worker.name} responds", partial(worker.respond, self.choices)))
            elif worker.batch is not None:
                add((f"{worker.name} finishes", worker.finish))
        for (worker_name, name), queue in self.responses.items():
            if queue and self.requesters[name].alive:
                add((f"{name} reads from {worker_name}", partial(self.requesters[name].read_response, worker_name)))
        return found

    def accidents(self) -> list[tuple[str, Callable[[], object]]]:
        """What happens seldom."""
        found: list[tuple[str, Callable[[], object]]] = []
        for worker in self.living_workers():
            found.append((f"{worker.name} dies", worker.die))
        for requester in self.living_requesters():
            found.append((f"{requester.name} ticks", partial(self.tick, requester)))
            if requester.socket.linked and not requester.socket.unnoticed:
                found.append((f"{requester.name} says hello again", requester.hello))
                found.append((f"{requester.name} loses its data connection", partial(self.lose_data, requester)))
            if requester.arena:
                found.append((f"{requester.name} abandons", partial(requester.abandon, self.choices)))
        if self.broker is not None:
            found.append(("broker drains", self.drain))
            found.append(("broker dies", self.kill_broker))
        if len(self.living_requesters()) < MAX_REQUESTERS:
            found.append(("new requester", self.new_requester))
        else:
            found.append(("a requester dies", self.kill_requester))
        return found

    def living_workers(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.alive]

    def living_requesters(self) -> list[Requester]:
        return [requester for requester in self.requesters.values() if requester.alive]

    def receive(self, name: str) -> None:
        assert self.broker is not None
        self.broker.receive(*self.to_broker[name].popleft())
        if self.choices.one_in(2):
            self.broker.dispatch()

    def lose_data(self, requester: Requester) -> None:
        """What the broker has not read of it is gone, from some point on; the requester says HELLO again."""
        queue = self.to_broker[requester.name]
        data = [item for item in queue if isinstance(item[1], (Request, Cancel))]
        for item in data[self.choices.below(len(data) + 1) :]:
            queue.remove(item)
        requester.carry_out(requester.pending.unwelcome(messages.Unwelcome(0), self.now))

    def pass_time(self) -> None:
        self.now += 0.007 * (1 + self.choices.below(4))

    def tick(self, requester: Requester) -> None:
        requester.carry_out(requester.pending.tick(self.now))

    def start_broker(self) -> Broker:
        self.epoch += 1
        self.broker = Broker(self, self.epoch)
        return self.broker

    def finish_startup(self) -> None:
        assert self.broker is not None
        self.broker.starting = False
        self.broker.dispatcher.startup_finished(self.now)

    def kill_broker(self) -> None:
        self.broker = None
        self.to_broker.clear()
        for peer in self.peers.values():
            peer.broker_died(self.choices)
        for requester in self.requesters.values():
            requester.pending.disconnected(self.now)

    def link(self, peer: Peer) -> None:
        peer.linked = peer.unnoticed = True

    def notice_launcher(self) -> None:
        self.launcher.unnoticed = False
        listed = [worker for worker in self.workers.values() if worker.alive or worker.name in self.unseen_deaths]
        self.launcher.send(
            messages.LauncherHello(
                1, 1, tuple(messages.LiveWorker(worker.name, 1, *worker.model, 0, "hash") for worker in listed)
            )
        )

    def see_death(self) -> None:
        self.launcher.send(messages.Died(self.unseen_deaths.pop(0), 1, None, 9))

    def spawn_any(self) -> None:
        self.spawn(list(MODELS)[self.choices.below(len(MODELS))])

    def spawn(self, key: tuple[str, int]) -> None:
        assert self.broker is not None
        worker = Worker(self, f"w{len(self.workers)}", key)
        self.workers[worker.name] = worker
        self.peers[worker.control.name] = worker.control
        self.peers[worker.data.name] = worker.data
        self.broker.dispatcher.worker_expected(worker.name)

    def drain(self) -> None:
        """A worker, or a whole model, which may come back later."""
        broker = self.broker
        assert broker is not None
        key = list(MODELS)[self.choices.below(len(MODELS))]
        match self.choices.below(4):
            case 0 if key in broker.added:
                broker.dispatcher.drain_model(*key, GONE)
                broker.added.discard(key)
            case 1 if key in broker.added:
                broker.dispatcher.remove_model(*key, GONE, self.now)
                broker.added.discard(key)
            case _ if broker.workers:
                names = sorted(broker.workers)
                broker.dispatcher.worker_draining(names[self.choices.below(len(names))])

    def new_requester(self) -> None:
        requester = Requester(self, f"r{len(self.requesters)}")
        self.requesters[requester.name] = requester
        self.peers[requester.name] = requester.socket

    def kill_requester(self) -> None:
        living = self.living_requesters()
        living[self.choices.below(len(living))].socket.alive = False

    # -------------------------------------------------------------------------------------------- what must hold

    def check(self) -> None:
        for worker in self.workers.values():
            if not worker.alive or worker.batch is None:
                continue
            for position in worker.unanswered:
                item = worker.batch.items[position]
                requester = self.requesters[item.requester]
                assert not requester.alive or item.request.id in requester.arena, "freed while a worker reads it"
        if self.broker is None:
            return
        for slot in self.broker.dispatcher._workers.values():
            own = [jobs for key, jobs in slot.batches.items() if isinstance(key, int)]
            assert len(own) <= (2 if slot.model.queue.closes_early else 1), "more batches than credit"
            attempts = [job.attempt for jobs in own for job in jobs]
            assert len(attempts) == 1 or all(attempt == 1 for attempt in attempts), "a retried request is not alone"
        for model in self.broker.dispatcher._models.values():
            running = sum(len(jobs) for slot in model.workers.values() for jobs in slot.batches.values())
            assert model.running == running
            assert model.queue.live == len(list(model.queue)) >= 0
            assert model.queue.units == sum(job.size for job in model.queue)

    def settle(self) -> None:
        """Nothing bad happens any more: everything comes to rest, and nothing is left."""
        self.choices = Choices(b"")
        broker = self.broker or self.start_broker()
        for key in MODELS:
            if key not in broker.added:
                broker.add_model(key)
        for _ in range(200):
            if self.is_at_rest():
                break
            self.settle_round(broker)
        for requester in self.requesters.values():
            if requester.alive:
                assert len(requester.pending) == 0, "a request never ended"
                assert not requester.arena, "a block leaked"
                unanswered = {id for id, count in requester.answered.items() if not count}
                assert unanswered <= requester.abandoned, "never answered"
        assert self.is_at_rest(), "does not come to rest"
        dispatcher = broker.dispatcher
        assert dispatcher.is_idle
        assert not any(dispatcher._requesters.jobs.values())
        assert not dispatcher._recovery._missing
        for worker in self.workers.values():
            if worker.alive and not dispatcher._workers[worker.name].draining:
                assert dispatcher._workers[worker.name].place is not None, "a worker is never used again"

    def is_at_rest(self) -> bool:
        if self.broker is None or not self.broker.dispatcher.is_idle or any(self.to_broker.values()):
            return False
        for worker in self.living_workers():
            if worker.batch or worker.data.inbox or worker.control.inbox or worker.unreported:
                return False
            if worker.name not in self.broker.workers:
                return False
        return not any(len(requester.pending) for requester in self.requesters.values() if requester.alive)

    def settle_round(self, broker: Broker) -> None:
        for peer in self.peers.values():
            if peer.alive and not peer.linked:
                self.link(peer)
        if self.launcher.unnoticed:
            self.notice_launcher()
        while self.unseen_deaths:
            self.see_death()
        for name in sorted(broker.requesters):
            if not self.requesters[name].alive:
                broker.gone(name)
        for requester in self.requesters.values():
            if requester.alive:
                if requester.socket.unnoticed:
                    requester.notice()
                self.tick(requester)
                while requester.socket.inbox:
                    requester.read_socket()
        for key in MODELS:
            alive = [worker for worker in self.workers.values() if worker.alive and worker.model == key]
            if broker.launcher and not alive:
                self.spawn(key)
        for worker in [worker for worker in self.workers.values() if worker.alive]:
            self.settle_worker(worker)
        for worker_name, name in list(self.responses):
            while self.requesters[name].alive and self.responses[worker_name, name]:
                self.requesters[name].read_response(worker_name)
        for name in list(self.to_broker):
            while self.to_broker[name]:
                self.receive(name)
        broker.dispatch()
        self.check()
        self.now += 0.05

    def settle_worker(self, worker: Worker) -> None:
        if worker.control.unnoticed:
            worker.notice()
        while worker.control.inbox and worker.alive:
            worker.read_control()
        worker.report()
        while worker.alive and ((worker.data.inbox and worker.epoch is not None) or worker.batch):
            if worker.batch is None:
                worker.take_up()
            elif worker.unanswered:
                worker.respond(self.choices)
            else:
                worker.finish()
            self.check()
