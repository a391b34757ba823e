"""What each message to the broker leads to: who has said HELLO, which machine is told, what is sent to whom.

No sockets and no clock: ``Outlet`` is the server's shell. The wiring is what ``broker.lifecycle.machine`` and
``docs/design.md`` say.
"""

import logging
import os
import signal
from collections.abc import Iterable
from math import inf

from broker import status
from broker.calls import Calls
from broker.instructions import (
    CallFinished,
    ModelDraining,
    ModelGone,
    ModelReady,
    TableChanged,
    ToControl,
    ToData,
    ToLauncher,
    ToPeer,
    WorkerDraining,
    WorkerReady,
)
from broker.lifecycle import DropFolder, FindNames, Lifecycle, LifecycleInstruction, Poll, PollAll, Remember, Watch
from broker.outbox import RETRY_S, Outbox
from broker.outlet import Outlet
from broker.peers import Known, Peers
from broker.region_files import Regions
from broker.repository import Found, Snapshot
from broker.scheduling.dispatcher import Dispatcher
from broker.server_settings import SettingsKeeper
from broker.tables import Tables
from conch.messages import (
    PROTOCOL_VERSION,
    Answer,
    Batch,
    Cancel,
    Checked,
    Closed,
    Completed,
    Died,
    Done,
    Fault,
    LauncherHello,
    LoadFailed,
    MetricsReport,
    ModelTable,
    ObserverHello,
    PeerStatus,
    Preparing,
    Ready,
    RegionTable,
    Request,
    RequesterHello,
    ServerState,
    ServerStatus,
    Spawn,
    Spawned,
    SpawnFailed,
    TableSeen,
    ToBroker,
    Unwelcome,
    Welcome,
    WorkerHello,
)

logger = logging.getLogger("conch.broker.exchange")


class Exchange:
    def __init__(
        self,
        epoch: int,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        regions: Regions,
        settings: SettingsKeeper,
        outlet: Outlet,
        started_ms: int,
    ) -> None:
        self.epoch = epoch
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._regions = regions
        self._settings = settings
        self._outlet = outlet
        self._peers = Peers()
        self._outbox = Outbox(outlet.send, self._peers.knows)
        self._tables = Tables(self._outbox.tell, self._model_table, self._region_table)
        self._state_times = status.StateTimes()
        self._calls = Calls(
            epoch,
            dispatcher,
            lifecycle,
            regions,
            settings,
            outlet,
            self._outbox,
            self._tables,
            self._peers,
            self._live,
            self._status,
        )
        self._started_ms = started_ms
        self._started = False
        self._exiting = False
        self._draining = False
        self._lifecycle_wakeup: float | None = None

    # ----------------------------------------------------------------------------------------------------- the shell

    def start(self, now: float) -> None:
        self._carry_out(self._lifecycle.start(now), now)

    def flush(self, now: float) -> None:
        """Sends what the dispatcher has; to be called after one or many messages."""
        instructions = self._dispatcher.dispatch(now)
        if instructions:
            self._carry_out(instructions, now)
        if self._exiting and not self._draining and self._dispatcher.is_idle:
            self._drain(now)

    def tick(self, now: float) -> None:
        """To be called when ``next_wakeup`` has come; ``flush`` afterwards."""
        if self._lifecycle_wakeup is not None and self._lifecycle_wakeup <= now:
            self._live(self._lifecycle.tick(now), now)
        self._outbox.retry()
        self._tables.tick(now)
        self._calls.metrics.tick(now)
        if self._dispatcher.timeouts.look_at <= now:
            for worker, reason in self._dispatcher.timeouts.overdue(now):
                self._live(self._lifecycle.kill(worker, reason, now), now)

    def next_wakeup(self, now: float) -> float | None:
        wakeup = inf
        for time in (
            self._lifecycle_wakeup,
            self._dispatcher.next_wakeup,
            self._dispatcher.timeouts.look_at,
            self._tables.next_wakeup,
            self._calls.metrics.next_wakeup,
        ):
            if time is not None and time < wakeup:
                wakeup = time
        if self._outbox.waits:
            wakeup = min(wakeup, now + RETRY_S)
        return None if wakeup == inf else wakeup

    def exit(self, now: float) -> None:
        """What is accepted still runs, and so do the models that it asks. Then every model is unloaded."""
        self._exiting = True
        self._dispatcher.exit()
        self._live(self._lifecycle.exit(now), now)
        self._tables.models_changed()
        self._tables.stop_waiting()
        self._watch_workers(now)

    def _drain(self, now: float) -> None:
        self._draining = True
        self._live(self._lifecycle.drain_all(now), now)
        self._carry_out(self._dispatcher.dispatch(now), now)
        self._watch_workers(now)

    def _watch_workers(self, now: float) -> None:
        """A launcher that dies while the server exits has no successor: workers' deaths are then seen here. A worker
        that has not spoken is not waited for, and is refused if it speaks."""
        if not self._exiting or self._peers.launcher is not None:
            return
        for each in self._lifecycle.instances(now):
            known = self._peers.workers.get(each.worker)
            if known is not None:
                self._outlet.watch(b"C" + each.worker.encode(), known.pid)
            elif each.worker:
                self._worker_died(Died(each.worker, each.pid, None, None), now)

    def kill_all(self, now: float) -> None:
        """After ``exit``, when there is no more time."""
        if not self._draining:
            self._drain(now)
        self._live(self._lifecycle.kill_all(now), now)

    @property
    def drained(self) -> bool:
        return self._draining and self._lifecycle.drained

    @property
    def state(self) -> ServerState:
        if self._exiting:
            return "exiting"
        return "ready" if self._started else "starting"

    def gone(self, peer: bytes, now: float) -> None:
        """The process behind ``peer`` is dead."""
        self._outbox.forget(peer)
        self._tables.gone(peer)
        self._peers.observers.pop(peer, None)
        requester = self._peers.requesters.pop(peer, None)
        if requester is not None:
            logger.info("%s is gone, pid %s", requester, requester.pid)
            self._dispatcher.requester_gone(requester.name)
        if self._peers.launcher is not None and self._peers.launcher[0] == peer:
            logger.error("the launcher is gone, pid %s", self._peers.launcher[1].pid)
            self._peers.launcher = None
            self._live(self._lifecycle.launcher_gone(now), now)
            self._watch_workers(now)
        worker = self._peers.worker_sockets.get(peer)
        if worker is not None:
            self._worker_died(Died(worker, self._peers.workers[worker].pid, None, None), now)

    # --------------------------------------------------------------------------------------------- results of file work

    def polled(self, operation: int, result: Snapshot | Fault, now: float) -> None:
        self._live(self._lifecycle.polled(operation, result, now), now)

    def polled_all(self, found: Found, snapshots: dict[str, Snapshot | Fault], now: float) -> None:
        self._live(self._lifecycle.polled_all(found, snapshots, now), now)

    def names_found(self, found: Found, now: float) -> None:
        self._live(self._lifecycle.names_found(found, now), now)

    def watched(self, digests: dict[str, bytes], now: float) -> None:
        self._live(self._lifecycle.watched(digests, now), now)

    # -------------------------------------------------------------------------------------------------------- messages

    def receive(self, peer: bytes, message: ToBroker, now: float) -> None:
        """A message from the socket with routing id ``peer``. ``flush`` afterwards."""
        match message:
            case RequesterHello() | ObserverHello() | WorkerHello() | LauncherHello():
                self._hello(peer, message, now)
            case Preparing() | Spawned() | SpawnFailed() | Died():
                if self._peers.launcher is not None and self._peers.launcher[0] == peer:
                    self._from_launcher(message, now)
            case MetricsReport():
                if self._peers.worker_sockets.get(peer) == message.worker:
                    self._calls.metrics.reported(message, self._peers.workers[message.worker].model, now)
            case Completed() | LoadFailed() | Checked():
                if self._peers.worker_sockets.get(peer) == message.worker:
                    self._from_worker(message, now)
            case _ if peer not in self._peers.requesters and peer not in self._peers.observers:
                self._unwelcome(peer)
            case TableSeen(epoch, revision):
                if epoch == self.epoch:
                    self._tables.seen(peer, revision)
            case _:
                self._calls.receive(peer, message, now)

    def failed(self, peer: bytes, message: ToBroker) -> None:
        """``receive`` raised something for this message: whoever called gets an answer all the same."""
        self._calls.failed(peer, message)

    def receive_data(self, name: str, message: Request | Done | Closed | Cancel | Ready, now: float) -> None:
        """A message on the data connection of this requester or worker. ``flush`` afterwards.

        Before the HELLO of a requester is given to ``receive``, everything that it sent on this connection has to be
        given here: it awaits that.
        """
        if isinstance(message, (Done, Closed, Ready)):
            if name not in self._peers.workers:
                return
            if isinstance(message, Done):
                self._dispatcher.done(name, message, now)
            elif isinstance(message, Closed):
                self._dispatcher.closed(name, message, now)
            else:
                self._live(self._lifecycle.ready(name, now, message.checks), now)
            return
        peer = name.encode()
        if peer not in self._peers.requesters:
            self._unwelcome(peer)
        elif isinstance(message, Request):
            self._dispatcher.submit(name, message, now)
        else:
            self._dispatcher.cancel(name, message.id, now)

    def data_broken(self, name: str, now: float) -> None:
        """This peer's data connection was dropped with what may have been on it. A requester says HELLO again; of a
        worker nobody knows any more what it holds, so it is ended, and what it held comes back as lost."""
        if name in self._peers.workers:
            logger.error("worker %s sent what cannot be read, and is ended", name)
            self._live(self._lifecycle.kill(name, "", now), now)

    def _unwelcome(self, peer: bytes) -> None:
        """Workers and the launcher are not told: their HELLO comes by itself, and must come once."""
        self._outlet.send(peer, Unwelcome(self.epoch))

    def _hello(
        self, peer: bytes, hello: RequesterHello | ObserverHello | WorkerHello | LauncherHello, now: float
    ) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            text = f"protocol version {hello.protocol} is not {PROTOCOL_VERSION}, which the broker speaks"
            logger.error("%s of pid %s: %s", type(hello).__name__, hello.pid, text)
            self._outlet.send(peer, Unwelcome(self.epoch, Fault("Unsupported", text)))
            return
        match hello:
            case RequesterHello():
                self._requester_hello(peer, hello, now)
            case ObserverHello():
                self._peers.observers[peer] = Known(peer.decode(errors="replace"), "observer", hello.pid)
                self._welcome(peer)
                self._tables.add_observer(peer)
                self._outlet.watch(peer, hello.pid)
            case WorkerHello():
                self._worker_hello(peer, hello, now)
            case LauncherHello():
                self._launcher_hello(peer, hello, now)

    def _requester_hello(self, peer: bytes, hello: RequesterHello, now: float) -> None:
        if hello.requester.encode() != peer:
            logger.error("a requester says that it is %s, its socket is %s", hello.requester, peer)
            return
        known = Known(hello.requester, hello.role, hello.pid, hello.worker)
        if peer not in self._peers.requesters:
            logger.info("%s is here, pid %s", known, known.pid)
        self._peers.requesters[peer] = known
        self._outbox.forget(peer)
        self._welcome(peer, with_settings=not hello.worker)
        # From before this broker's time. It gets no table of regions before its own are in it, so that it drops none.
        if hello.epoch != self.epoch and self._regions.restore(hello.regions):
            self._tables.regions_changed()
        if hello.worker:
            self._tables.add_observer(peer)
        else:
            self._tables.add_requester(peer)
        last_loss = hello.last_loss if hello.epoch == self.epoch else 0
        self._dispatcher.requester_hello(hello.requester, hello.awaited, last_loss, inside=bool(hello.worker))
        self._outlet.watch(peer, hello.pid)

    def _worker_hello(self, peer: bytes, hello: WorkerHello, now: float) -> None:
        worker = hello.worker
        if b"C" + worker.encode() != peer:
            logger.error("a worker says that it is %s, its socket is %s", worker, peer)
            return
        if not self._dispatcher.worker_hello(worker, hello.model, hello.version, hello.running, now):
            logger.error("worker %s of '%s', pid %s, is not expected here", worker, hello.model, hello.pid)
            self._outlet.send(peer, Unwelcome(self.epoch, Fault("Internal", "this worker is not expected")))
            self._live(self._lifecycle.kill(worker, "", now), now)
            return
        self._peers.workers[worker] = hello
        self._peers.worker_sockets[b"C" + worker.encode()] = worker
        self._welcome(peer)
        self._live(self._lifecycle.worker_hello(hello, now), now)

    def _launcher_hello(self, peer: bytes, hello: LauncherHello, now: float) -> None:
        repeated = self._peers.launcher is not None and self._peers.launcher[1].pid == hello.pid
        self._peers.launcher = (peer, Known(peer.decode(errors="replace"), "launcher", hello.pid))
        self._welcome(peer)
        if repeated:  # the list may have crossed a Spawn, see docs/design.md
            return
        logger.info("the launcher is here, pid %s, with %s workers", hello.pid, len(hello.workers))
        for worker in self._dispatcher.launcher_hello(hello.workers):
            self._worker_lost(Died(worker, 0, None, None), now)
        self._live(self._lifecycle.launcher_hello(hello.workers, now), now)
        self._outlet.watch(peer, hello.pid)

    def _worker_lost(self, died: Died, now: float) -> int:
        worker = died.worker
        self._peers.workers.pop(worker, None)
        self._peers.worker_sockets.pop(b"C" + worker.encode(), None)
        self._outbox.forget(b"C" + worker.encode())
        self._calls.metrics.gone(worker, now)
        memory_fault = died.signal == signal.SIGBUS
        return self._dispatcher.worker_lost(worker, self._lifecycle.death_fault(died), now, memory_fault)

    def _from_launcher(self, message: Preparing | Spawned | SpawnFailed | Died, now: float) -> None:
        match message:
            case Preparing(worker):
                self._live(self._lifecycle.preparing(worker, now), now)
            case Spawned(worker, pid):
                self._live(self._lifecycle.spawned(worker, pid, now), now)
            case SpawnFailed(worker, fault):
                self._live(self._lifecycle.spawn_failed(worker, fault, now), now)
            case Died():
                self._worker_died(message, now)

    def _worker_died(self, died: Died, now: float) -> None:
        self._live(self._lifecycle.died(died, self._worker_lost(died, now), now), now)

    def _from_worker(self, message: Completed | LoadFailed | Checked, now: float) -> None:
        match message:
            case Completed(worker, config, ends):
                self._live(self._lifecycle.completed(worker, config, now, ends), now)
            case LoadFailed(worker, fault):
                self._live(self._lifecycle.load_failed(worker, fault, now), now)
            case Checked(worker, number, ready):
                self._live(self._lifecycle.checked(worker, number, ready, now), now)

    def _welcome(self, peer: bytes, with_settings: bool = True) -> None:
        self._outbox.tell(peer, Welcome(PROTOCOL_VERSION, self.epoch))
        if with_settings:
            self._outbox.tell(peer, self._settings.message(self.epoch))

    # ---------------------------------------------------------------------------------------------------- instructions

    def _live(self, instructions: list[LifecycleInstruction], now: float) -> None:
        """Carries out what the life cycle asks for, after any event that it was told."""
        self._carry_out(instructions, now)
        self._lifecycle_wakeup = self._lifecycle.next_wakeup
        if not self._started and self._lifecycle.startup_finished:
            self._started = True
            self._dispatcher.startup_finished(now)
            if not self._exiting:
                logger.info("every model has been loaded or has failed; pid %s serves", os.getpid())
                self._tables.models_changed()

    def _carry_out(self, instructions: Iterable[LifecycleInstruction], now: float) -> None:
        dispatcher = self._dispatcher
        for instruction in instructions:
            match instruction:
                case ToData(worker, message):
                    self._send_batch(worker, message, now)
                case ToPeer(name, message):
                    self._outbox.tell(name.encode(), message)
                case ToControl(worker, message):
                    self._outbox.tell(b"C" + worker.encode(), message)
                case ToLauncher(message):
                    if isinstance(message, Spawn):
                        dispatcher.worker_expected(message.worker)
                    if self._peers.launcher is not None:
                        self._outbox.tell(self._peers.launcher[0], message)
                case TableChanged():
                    self._state_times.update(self._lifecycle.entries(), now)
                    self._tables.models_changed()
                case CallFinished(name, call, fault):
                    self._tables.answer(name.encode(), Answer(call, fault), now)
                case ModelReady(name, version, config, fresh_statistics):
                    dispatcher.add_model(name, version, config, fresh_statistics)
                case ModelDraining(name, version, fault):
                    dispatcher.drain_model(name, version, fault)
                case ModelGone(name, version, fault):
                    dispatcher.remove_model(name, version, fault, now)
                case WorkerReady(worker, model, version):
                    dispatcher.worker_ready(worker, model, version)
                case WorkerDraining(worker):
                    dispatcher.worker_draining(worker)
                case Poll() | PollAll() | FindNames() | Watch() | Remember() | DropFolder():
                    self._outlet.work(instruction)

    def _send_batch(self, worker: str, batch: Batch, now: float) -> None:
        if not self._outlet.send_batch(worker, batch):
            self._dispatcher.unreachable(worker, batch.id, now)

    def _model_table(self, revision: int) -> ModelTable:
        return ModelTable(self.epoch, revision, self.state, self._lifecycle.entries())

    def _region_table(self, revision: int) -> RegionTable:
        return RegionTable(self.epoch, revision, self._regions.registered)

    def _status(self, now: float) -> ServerStatus:
        processes = [PeerStatus("broker", os.getpid())]
        if self._peers.launcher is not None:
            processes.append(PeerStatus("launcher", self._peers.launcher[1].pid))
        processes += [
            PeerStatus(known.role, known.pid, self._dispatcher.reports.inflight_of(known.name))
            for known in self._peers.requesters.values()
        ]
        lifecycle, times, work = self._lifecycle, self._state_times, self._dispatcher.reports
        return status.server_status(self.epoch, self.state, self._started_ms, processes, lifecycle, times, work, now)
