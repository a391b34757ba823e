"""What requesters and observers ask the broker, and its ``Answer``s."""

from collections.abc import Callable

from broker import status
from broker.custom_metrics import CustomMetrics, MetricsCalls
from broker.fault_metrics import fault_families
from broker.lifecycle import Lifecycle, LifecycleInstruction
from broker.outbox import Outbox
from broker.outlet import Outlet
from broker.peers import Peers
from broker.region_files import Regions
from broker.repository import Override
from broker.scheduling.dispatcher import Dispatcher
from broker.server_settings import SettingsKeeper
from broker.tables import Tables
from conch.messages import (
    Answer,
    AskMetrics,
    AskReady,
    AskStatistics,
    AskStatus,
    Fault,
    LoadModel,
    MetricFamily,
    RegisterCudaRegion,
    RegisterRegion,
    ReportMetrics,
    ServerStatus,
    ToBroker,
    UnloadModel,
    UnregisterRegions,
    UpdateLogSettings,
    UpdateTraceSettings,
)

#: what is answered with an ``Answer``
Call = (
    LoadModel
    | UnloadModel
    | AskReady
    | AskStatistics
    | AskStatus
    | AskMetrics
    | RegisterRegion
    | RegisterCudaRegion
    | UnregisterRegions
    | UpdateLogSettings
    | UpdateTraceSettings
)
_CALL_FAILED = Fault("Internal", "internal error; the server's log has the details")


class Calls:
    """``live`` carries out what the life cycle asks for; ``server_status`` makes the answer to ``AskStatus``."""

    def __init__(
        self,
        epoch: int,
        dispatcher: Dispatcher,
        lifecycle: Lifecycle,
        regions: Regions,
        settings: SettingsKeeper,
        outlet: Outlet,
        outbox: Outbox,
        tables: Tables,
        peers: Peers,
        live: Callable[[list[LifecycleInstruction], float], None],
        server_status: Callable[[float], ServerStatus],
    ) -> None:
        self._epoch = epoch
        self._dispatcher = dispatcher
        self._lifecycle = lifecycle
        self._regions = regions
        self._settings = settings
        self._outlet = outlet
        self._outbox = outbox
        self._tables = tables
        self._peers = peers
        self._live = live
        self._server_status = server_status
        self.metrics = MetricsCalls(CustomMetrics(), self._fault_families, outbox.tell)

    def receive(self, peer: bytes, call: ToBroker, now: float) -> None:
        """A call of a requester or observer that has said HELLO; anything else is nobody's business here."""
        match call:
            case LoadModel():
                override = Override(config=call.config, files=call.files)
                self._live(self._lifecycle.load(call.name, now, peer.decode(), call.call, override), now)
            case UnloadModel():
                self._live(self._lifecycle.unload(call.name, now, peer.decode(), call.call), now)
            case AskStatistics():
                found = self._dispatcher.reports.statistics(call.name, call.version)
                fault = None if found else status.why_no_statistics(call, self._dispatcher.reports)
                self._outbox.tell(peer, Answer(call.call, fault, found))
            case AskReady(number, name, version):
                self._live(self._lifecycle.ask_ready(name, version, now, peer.decode(), number), now)
            case AskStatus():
                self._outbox.tell(peer, Answer(call.call, None, self._server_status(now)))
            case AskMetrics():
                for worker in self.metrics.ask(peer, call, self._peers.workers, now):
                    self._outbox.tell(b"C" + worker.encode(), ReportMetrics())
            case RegisterRegion() | RegisterCudaRegion() | UnregisterRegions():
                self._region_call(peer, call, now)
            case UpdateLogSettings() | UpdateTraceSettings():
                self._settings_call(peer, call)

    def failed(self, peer: bytes, message: ToBroker) -> None:
        """Something was raised for this message: whoever called gets an answer all the same."""
        if isinstance(message, Call):
            self._outbox.tell(peer, Answer(message.call, _CALL_FAILED))

    def _fault_families(self, now: float) -> list[MetricFamily]:
        lifecycle, dispatcher = self._lifecycle, self._dispatcher
        deaths = lifecycle.deaths.by_cause
        return fault_families(lifecycle.entries(), deaths, dispatcher.retries, dispatcher.reports.busy_s(now))

    def _region_call(
        self, peer: bytes, call: RegisterRegion | RegisterCudaRegion | UnregisterRegions, now: float
    ) -> None:
        fault = None
        if isinstance(call, UnregisterRegions):
            changed = self._regions.unregister(call)
        else:
            fault = self._regions.register(call)
            changed = fault is None
        if changed:
            self._tables.regions_changed()
        self._tables.answer(peer, Answer(call.call, fault), now)

    def _settings_call(self, peer: bytes, call: UpdateLogSettings | UpdateTraceSettings) -> None:
        fault, result = self._settings.update(call)
        if fault is None:
            message = self._settings.message(self._epoch)
            for other in self._peers.follow_settings():
                self._outbox.tell(other, message)
            self._outlet.settings_changed(self._settings.changed)
        self._outbox.tell(peer, Answer(call.call, fault, result))
