"""What endpoints ask the requester for."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from conch.messages import ServerSettings
from frontends.http.errors import RETRY_AFTER, reply_to
from frontends.http.exchange import Pending, Reply, error_reply
from frontends.inference import InferenceCall, Outcome
from frontends.models import ModelTableView, ReadyModel
from frontends.regions import RegionTableView


class AskedLike(Protocol):
    """The part of ``frontends.requester.Asked`` that HTTP uses."""

    def cancel(self) -> None: ...


class RequesterLike(Protocol):
    """The part of ``frontends.requester.Requester`` that HTTP uses."""

    models: ModelTableView
    regions: RegionTableView
    server_settings: ServerSettings
    on_settings: Callable[[ServerSettings], None] | None

    def ask(self, model: ReadyModel, call: InferenceCall, on_answer: Callable[[Outcome], None]) -> AskedLike: ...

    def call(self, message: Any) -> Coroutine[Any, Any, Any]: ...


class BrokerCall(Pending):
    """What the broker was asked. Its result goes through ``render``."""

    __slots__ = ("_future", "_render")

    def __init__(self, call: Coroutine[Any, Any, Any], render: Callable[[Any], Reply]) -> None:
        self._future = asyncio.ensure_future(call)
        self._render = render
        self._future.add_done_callback(lambda future: self.finish(self._reply, future))

    def cancel(self) -> None:
        self._future.cancel()

    def _reply(self, future: "asyncio.Future[Any]") -> Reply:
        if future.cancelled():
            return error_reply(503, "the server is shutting down", RETRY_AFTER)
        error = future.exception()
        return self._render(future.result()) if error is None else reply_to(error)
