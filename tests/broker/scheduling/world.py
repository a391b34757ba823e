"""A small world around the dispatcher: requesters, workers, a launcher, and brokers that die and start again.

Every hop is an ordered queue; every delivery, step and death is one action; the next action is drawn by a ``Choices``.
Requesters and workers are in ``peers``, the broker is in ``shell``. The world checks after every action what must
always hold, and ``settle`` what must hold in the end.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from conch import messages
from conch.messages import Cancel, Request, Response
from tests.broker.scheduling.choices import Choices
from tests.broker.scheduling.peers import MODELS, Peer, Requester, Worker
from tests.broker.scheduling.shell import GONE, Broker

MAX_WORKERS = 5
MAX_REQUESTERS = 3
MAX_INFLIGHT = 6
#: requests that the model of a worker has in flight
MAX_ASKED = 2
#: a step out of so many is an accident
ACCIDENT_ONE_IN = 16


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
        #: workers that the launcher was told to kill
        self.condemned: list[str] = []
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
            if broker.dispatcher.timeouts.look_at <= self.now:
                add(("broker looks who is overdue", broker.expire))
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
        if self.condemned:
            add(("launcher kills", self.kill_condemned))
        if self.unseen_deaths:
            add(("launcher sees a death", self.see_death))
        for requester in self.living_requesters():
            if len(requester.arena) < MAX_INFLIGHT and requester.worker is None:
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
            elif worker.batch is not None and not worker.waits_for:
                add((f"{worker.name} finishes", worker.finish))
            if worker.open:
                add((f"{worker.name} goes on", partial(worker.go_on, self.choices)))
            if worker.batch is not None and worker.requester is not None and len(worker.requester.arena) < MAX_ASKED:
                add((f"{worker.name} asks", partial(worker.ask, self.choices)))
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
        if len(self.living_clients()) < MAX_REQUESTERS:
            found.append(("new requester", self.new_requester))
        else:
            found.append(("a requester dies", self.kill_requester))
        return found

    def living_workers(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.alive]

    def living_requesters(self) -> list[Requester]:
        return [requester for requester in self.requesters.values() if requester.alive]

    def living_clients(self) -> list[Requester]:
        return [requester for requester in self.living_requesters() if requester.worker is None]

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

    def kill_condemned(self) -> None:
        worker = self.workers[self.condemned.pop(0)]
        if worker.alive:
            worker.die()

    def spawn_any(self) -> None:
        self.spawn(list(MODELS)[self.choices.below(len(MODELS))])

    def spawn(self, key: tuple[str, int]) -> None:
        assert self.broker is not None
        worker = Worker(self, f"w{len(self.workers)}", key)
        self.workers[worker.name] = worker
        self.peers[worker.control.name] = worker.control
        self.peers[worker.data.name] = worker.data
        worker.requester = self.new_requester(worker)
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

    def new_requester(self, worker: Worker | None = None) -> Requester:
        requester = Requester(self, f"r{len(self.requesters)}", worker)
        self.requesters[requester.name] = requester
        self.peers[requester.name] = requester.socket
        return requester

    def kill_requester(self) -> None:
        living = self.living_clients()
        living[self.choices.below(len(living))].socket.alive = False

    # -------------------------------------------------------------------------------------------- what must hold

    def check(self) -> None:
        for worker in self.workers.values():
            if not worker.alive:
                continue
            reads = [item for item, _ in worker.open.values()]
            if worker.batch is not None:
                reads += [worker.batch.items[position] for position in worker.unanswered + worker.opened + worker.again]
            for item in reads:
                requester = self.requesters[item.requester]
                assert not requester.alive or item.request.id in requester.arena, "freed while a worker reads it"
        if self.broker is None:
            return
        for slot in self.broker.dispatcher._workers.values():
            own = [jobs for key, jobs in slot.batches.items() if isinstance(key, int)]
            assert len(own) <= (2 if slot.model.queue.closes_early else 1), "more batches than credit"
            assert not slot.condemned or slot.place is None, "a worker that is being killed may get a batch"
            attempts = [job.attempt for jobs in own for job in jobs]
            assert len(attempts) == 1 or all(attempt == 1 for attempt in attempts), "a retried request is not alone"
        for model in self.broker.dispatcher._models.values():
            running = sum(1 for slot in model.workers.values() for _ in slot.jobs())
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
        assert not dispatcher._requesters._orphans
        assert not dispatcher._recovery._missing
        for worker in self.workers.values():
            if worker.alive and not dispatcher._workers[worker.name].draining:
                assert dispatcher._workers[worker.name].place is not None, "a worker is never used again"

    def is_at_rest(self) -> bool:
        if self.broker is None or not self.broker.dispatcher.is_idle or any(self.to_broker.values()):
            return False
        for worker in self.living_workers():
            if worker.batch or worker.open or worker.data.inbox or worker.control.inbox or worker.unreported:
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
        broker.expire()
        while self.condemned:
            self.kill_condemned()
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
            if broker.launcher and all(self.is_left_over(broker, worker) for worker in alive):
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

    def is_left_over(self, broker: Broker, worker: Worker) -> bool:
        """Whether it belongs to a version that was removed and has come back since."""
        slot = broker.dispatcher._workers.get(worker.name)
        return slot is not None and slot.model is not broker.dispatcher._models[worker.model]

    def settle_worker(self, worker: Worker) -> None:
        if worker.control.unnoticed:
            worker.notice()
        while worker.control.inbox and worker.alive:
            worker.read_control()
        worker.report()
        while worker.open:
            worker.go_on(self.choices)
            self.check()
        while worker.alive and ((worker.data.inbox and worker.epoch is not None) or worker.batch):
            if worker.batch is None:
                worker.take_up()
            elif worker.unanswered:
                worker.respond(self.choices)
            elif worker.waits_for:
                return
            else:
                worker.finish()
            self.check()
