"""One union per direction: what a receiver's typed decoder accepts."""

from conch.messages.hellos import (
    DataLink,
    LauncherHello,
    ObserverHello,
    RequesterHello,
    Unwelcome,
    Welcome,
    WorkerHello,
)
from conch.messages.metrics import AskMetrics, ReportMetrics
from conch.messages.models import Answer, AskReady, AskStatistics, AskStatus, LoadModel, ModelTable, UnloadModel
from conch.messages.regions import RegionTable, RegisterCudaRegion, RegisterRegion, TableSeen, UnregisterRegions
from conch.messages.requests import Batch, Cancel, Closed, Done, Lost, Rejected, Request, Retired
from conch.messages.responses import Link, Responses, SegmentAdded, SegmentRetired, Window
from conch.messages.settings import ServerSettings, UpdateLogSettings, UpdateTraceSettings
from conch.messages.workers import (
    Checked,
    CheckReady,
    Completed,
    Configured,
    Died,
    Drain,
    Forget,
    Kill,
    LoadFailed,
    MetricsReport,
    Preparing,
    Ready,
    Spawn,
    Spawned,
    SpawnFailed,
)

WorkerToRequester = Link | Responses | SegmentAdded | SegmentRetired
RequesterToWorker = SegmentAdded | SegmentRetired | Window
ToBroker = (
    RequesterHello
    | ObserverHello
    | WorkerHello
    | LauncherHello
    | Preparing
    | Spawned
    | SpawnFailed
    | Died
    | Completed
    | LoadFailed
    | Checked
    | MetricsReport
    | LoadModel
    | UnloadModel
    | AskStatistics
    | AskStatus
    | AskReady
    | AskMetrics
    | RegisterRegion
    | RegisterCudaRegion
    | UnregisterRegions
    | TableSeen
    | UpdateLogSettings
    | UpdateTraceSettings
)
ToRequester = Retired | Lost | Rejected | ModelTable | RegionTable | ServerSettings | Answer | Welcome | Unwelcome
ToObserver = ModelTable | ServerSettings | Answer | Welcome | Unwelcome
ToWorkerData = Batch
ToBrokerData = DataLink | Request | Done | Closed | Cancel | Ready
#: a batch comes on the control socket only if it is too long for the data connection
ToWorkerControl = (
    Batch | Configured | Cancel | CheckReady | ReportMetrics | Drain | Forget | ServerSettings | Welcome | Unwelcome
)
ToLauncher = Spawn | Kill | ServerSettings | Welcome | Unwelcome
