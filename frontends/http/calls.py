"""What endpoints ask the broker for."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from frontends.http.errors import RETRY_AFTER, reply_to
from frontends.http.exchange import Pending, Reply, error_reply


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
