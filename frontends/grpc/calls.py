"""RPCs: what each needs, how its answer becomes bytes, and which are on their way."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from conch.categories import Category
from frontends.grpc.codec import read_request
from frontends.grpc.errors import SHUTTING_DOWN, UNAVAILABLE, UNREADABLE, failure_of
from frontends.grpc.exchange import Call, Failure, Pending, Reply

logger = logging.getLogger("conch.frontends.grpc.calls")

SERVICE = "/inference.GRPCInferenceService/"


class Traffic:
    """RPCs that are on their way. While ``leaving``, the server and its models are not ready. Once ``stopped``, no
    inference begins; ``until_idle`` returns when all RPCs that had begun have their answers."""

    def __init__(self) -> None:
        self.leaving = False
        self.stopped = asyncio.Event()
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        self.count += 1
        self._idle.clear()

    def leave(self) -> None:
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def until_idle(self) -> None:
        await self._idle.wait()


def _encode(message: Any) -> bytes:
    encoded: bytes = message.SerializeToString()
    return encoded


class CountedPending(Pending):
    """On its way from here until it has its answer or is cancelled, whichever is first."""

    __slots__ = ("_traffic",)

    def __init__(self, traffic: Traffic) -> None:
        self._traffic: Traffic | None = traffic
        traffic.enter()

    def leave(self) -> None:
        traffic, self._traffic = self._traffic, None
        if traffic is not None:
            traffic.leave()

    def finish(self, render: Callable[[Any], Reply], outcome: Any) -> None:
        self.leave()
        super().finish(render, outcome)


class Work(CountedPending):
    """A coroutine that returns what ``encode`` turns into the response, or raises."""

    __slots__ = ("_task",)

    def __init__(
        self, traffic: Traffic, coroutine: Coroutine[Any, Any, Any], encode: Callable[[Any], bytes] = _encode
    ) -> None:
        super().__init__(traffic)
        self._task = asyncio.ensure_future(coroutine)
        self._task.add_done_callback(partial(self.finish, partial(_render, encode)))

    def cancel(self) -> None:
        self.leave()
        self._task.cancel()


def _render(encode: Callable[[Any], bytes], task: "asyncio.Task[Any]") -> Reply:
    if task.cancelled():
        return Failure(UNAVAILABLE, SHUTTING_DOWN)
    error = task.exception()
    if error is not None:
        return failure_of(error)
    return encode(task.result())


class Rpc(NamedTuple):
    """A unary RPC. None can be written down without the group of restrictions that it belongs to. ``answer`` raises
    nothing but ``ConchError``."""

    category: Category
    answer: Callable[[Call], Reply | Pending]


def replying(category: Category, request_type: Any, handler: Callable[[Any], Reply | Pending]) -> Rpc:
    """``handler`` gets the request's message."""

    def answer(call: Call) -> Reply | Pending:
        try:
            request = read_request(request_type, call.payload)
        except DecodeError:
            return UNREADABLE
        return handler(request)

    return Rpc(category, answer)


def unary(category: Category, request_type: Any, handler: Callable[[Any], Any]) -> Rpc:
    """``handler`` gets the request's message and returns the response's at once."""
    return replying(category, request_type, lambda request: _encode(handler(request)))


def unary_later(
    category: Category, request_type: Any, handler: Callable[[Any], Coroutine[Any, Any, Any]], traffic: Traffic
) -> Rpc:
    """``handler`` is a coroutine function that gets the request's message and returns the response's."""
    return replying(category, request_type, lambda request: Work(traffic, handler(request)))
