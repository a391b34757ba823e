"""The shell around a requester: sockets, arena and futures, driven by one asyncio (uvloop) event loop."""

import asyncio
from collections.abc import Callable
from typing import overload

from conch.messages import AskStatistics, LoadModel, ModelStatistics, ModelTable, UnloadModel
from conch.run_dir import RunDir
from frontends.inference import InferenceCall, InferenceResult
from frontends.models import ModelTableView, ReadyModel


class Requester:
    """One per frontend process. All methods belong to the thread of the loop that ``start`` ran on.

    ``models`` is the broker's latest table. ``on_table`` is called after each change of it. ``connected`` says whether a
    broker has welcomed us; while none has, requests are held for up to 10 s.
    """

    models: ModelTableView
    on_table: Callable[[ModelTable], None] | None
    connected: bool

    def __init__(
        self, run_dir: RunDir, *, role: str = "http", arena_cap_nbytes: int = 4 << 30, max_inflight: int = 10_000
    ) -> None: ...

    async def start(self) -> None:
        """Listens for workers and connects to the broker. Returns at once, whether or not a broker is there."""

    async def close(self) -> None:
        """Answers everything pending with ``NotReady``, then closes sockets, links and the arena."""

    def submit(self, model: ReadyModel, call: InferenceCall) -> "asyncio.Future[InferenceResult]":
        """Validates, copies the inputs into the arena and sends the request.

        Raises ``ClientError`` (invalid request) and ``Overloaded`` (too much in flight, arena full) at once. The future
        gets the result, or an exception out of ``conch.errors``. Cancelling the future (also by cancelling the task that
        awaits it) tells the broker that nobody waits any more. Whoever gets a result must ``release`` it.
        """
        raise NotImplementedError

    @overload
    async def call(self, message: LoadModel | UnloadModel) -> None: ...
    @overload
    async def call(self, message: AskStatistics) -> list[ModelStatistics]: ...
    async def call(self, message: LoadModel | UnloadModel | AskStatistics) -> list[ModelStatistics] | None:
        """Asks the broker (``message.call`` is filled in here; pass 0). Raises what the broker answers, as an error out
        of ``conch.errors``, and ``NotReady`` when no broker answers within 10 s of being disconnected."""
        raise NotImplementedError

    @property
    def inflight(self) -> int:
        """Requests that hold inputs, answered or not."""
        raise NotImplementedError
