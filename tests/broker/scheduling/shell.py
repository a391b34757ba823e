"""The broker in the scheduling world: a real dispatcher, and a simulated shell around it."""

from collections import deque
from typing import TYPE_CHECKING, Any

from broker.instructions import ToControl, ToData, ToPeer
from broker.scheduling.dispatcher import Dispatcher
from conch import messages
from conch.messages import Cancel, Done, Fault, Request
from tests.broker.scheduling.peers import MODELS, Peer

if TYPE_CHECKING:
    from tests.broker.scheduling.world import World

GONE = Fault("NotReady", "unloaded")
DEAD = Fault("WorkerDied", "died")


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
                dispatcher.requester_hello(requester, awaited, last_loss, inside=bool(message.worker))
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
            case messages.Closed():
                if peer.name[1:] in self.workers:
                    dispatcher.closed(peer.name[1:], message, now)
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

    def expire(self) -> None:
        """Has those killed that have taken too long."""
        for overdue in self.dispatcher.timeouts.overdue(self.world.now):
            assert overdue.worker in self.workers
            self.world.condemned.append(overdue.worker)

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
