"""``GET /metrics``, served by the HTTP engine."""

import time

from frontends.http.exchange import Pending, Reply, Request, error_reply
from frontends.metrics.custom import custom_families
from frontends.metrics.exposition import CONTENT_TYPE, exposition
from frontends.metrics.families import Family, machine_families, model_families
from frontends.metrics.machine import Machine
from frontends.metrics.observer import Known, Observer

#: what the models did as of this long ago is shown while the broker is being started again
_KNOWN_FOR_S = 10.0


class MetricsApplication:
    """``machine`` is what the machine was like at the last look; None: no metrics of it."""

    def __init__(self, observer: Observer, *, latencies: bool) -> None:
        self.machine: Machine | None = None
        self._observer = observer
        self._latencies = latencies
        self._known = Known([], [])
        self._known_since_s = -_KNOWN_FOR_S

    def refuse(self, request: Request, nbytes: int) -> Reply | None:
        return error_reply(413, "there is nothing here that takes a body")

    def answer(self, request: Request) -> Reply | Pending:
        if request.target.partition(b"?")[0] != b"/metrics":
            return error_reply(404, "Not Found")
        if request.method != b"GET":
            return error_reply(405, "Method Not Allowed", b"Allow: GET\r\n")
        return Scrape(self, self._observer)

    def page(self, known: Known | None) -> Reply:
        """``known`` None: the broker did not say."""
        now_s = time.monotonic()
        if known is not None:
            self._known, self._known_since_s = known, now_s
        elif now_s - self._known_since_s >= _KNOWN_FOR_S:
            return error_reply(503, "the server is restarting; try again")
        families: list[Family] = model_families(self._known.statistics, self._latencies)
        if self.machine is not None:
            families += machine_families(self.machine)
        families += custom_families(self._known.custom)
        return Reply(200, CONTENT_TYPE, exposition(families))


class Scrape(Pending):
    """One request for the page."""

    __slots__ = ("_application", "_gone")

    def __init__(self, application: MetricsApplication, observer: Observer) -> None:
        self._application = application
        self._gone = False
        observer.ask(self._on_known)

    def cancel(self) -> None:
        self._gone = True

    def _on_known(self, known: Known | None) -> None:
        if not self._gone:
            self.finish(self._application.page, known)
