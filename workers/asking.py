"""How a model asks other models: a requester of the worker's own, on a thread of its own."""

import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from conch.errors import ConchError, NotReady, from_fault, to_fault
from conch.later import Later
from conch.messages import ModelTable, Parent
from conch.requester.asked import Asked
from conch.requester.inference import InferenceCall, Outcome
from conch.requester.models import ReadyModel
from conch.requester.requester import Requester
from conch.run_dir import RunDir
from workers.copies import COPIES

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

logger = logging.getLogger("conch.workers.asking")

OnResponse = Callable[[Outcome | None, bool], None]

#: how long requests wait for the first table of models
TABLE_TIMEOUT_S = 10.0
_JOIN_TIMEOUT_S = 5.0
#: after which the requester is started once more if it could not be
_RETRY_S = 1.0
_EXITING = "Server exiting"
_SHORT = "other models cannot be asked at the moment: the server is short of memory or of files"


class Handle:
    """A request that is on its way."""

    __slots__ = ("_cancel", "_on_response", "asked", "cancelled")

    def __init__(self, on_response: OnResponse, cancel: "Callable[[Handle], None]") -> None:
        self._on_response = on_response
        self._cancel = cancel
        #: belongs to the asker's thread; None until the request is sent
        self.asked: Asked | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """From any thread. ``on_response`` is not called any more, unless it is being called at this moment."""
        if not self.cancelled:
            self.cancelled = True
            self._cancel(self)

    def respond(self, outcome: Outcome | None, final: bool) -> None:
        """Raises nothing."""
        if self.cancelled:
            return
        try:
            self._on_response(outcome, final)
        except Exception:
            logger.exception("a response could not be handed on")


class Asker:
    """Its thread starts when it is first needed. All methods are for any thread but its own, which calls
    ``on_response``.

    ``arena_cap_nbytes`` limits the memory for inputs that have to be copied.
    """

    def __init__(self, run_dir: RunDir, worker: str, arena_cap_nbytes: int) -> None:
        self._requester = Requester(run_dir, role="model", arena_cap_nbytes=arena_cap_nbytes, worker=worker)
        # of the kind that its holder may take again: a garbage collection may cancel requests anywhere
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        #: the requester could not be started yet
        self._broken = False
        #: set once it is known whether models can be asked
        self._decided: asyncio.Event
        self._stop: asyncio.Event
        #: sends requests that came before the first table
        self._waiting: set[asyncio.Task[None]] = set()

    def ask(
        self, model_name: str, version: int, call: InferenceCall, parent: Parent | None, on_response: OnResponse
    ) -> Handle:
        """Raises nothing: every error comes as the last response. ``version`` -1 is the latest.

        ``on_response`` gets each response in order, as that of ``Requester.stream``. What inputs refer to must stay as
        it is until there is a response. After ``close``, ``on_response`` is called at once.
        """
        handle = Handle(on_response, self._cancel)
        for tensor in call.inputs:
            COPIES.request += len(tensor.data)
        if parent is not None:
            call.parent = parent
        try:
            with self._lock:
                self._running_loop().call_soon_threadsafe(self._begin, handle, model_name, version, call)
        except NotReady as error:
            handle.respond(error, True)
        return handle

    def call(self, message: Any) -> Any:
        """``Requester.call``, and waits for the answer. Raises what that raises."""
        return self._run(self._call(message))

    def model(self, name: str, version: int) -> ReadyModel:
        """Waits until it is known which models there are, at most ``TABLE_TIMEOUT_S``. Raises ``NotFound`` and
        ``NotReady``."""
        if not self._requester.models.known:
            self._run(self._first_table())
        return self._requester.models.lookup(name, _version_text(version))

    def close(self) -> None:
        """Whatever is under way is answered with ``NotReady``. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._loop is None or self._thread is None:
                return
            self._loop.call_soon_threadsafe(self._stop.set)
            thread = self._thread
        thread.join(_JOIN_TIMEOUT_S)
        if thread.is_alive():
            logger.error("the thread that asks other models does not end")

    # ------------------------------------------------------------------------------------------------- other threads

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Raises what it raises, and ``NotReady`` once this is closed."""
        with self._lock:
            try:
                loop = self._running_loop()
            except NotReady:
                coroutine.close()
                raise
            future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        return future.result()

    def _cancel(self, handle: Handle) -> None:
        with self._lock, contextlib.suppress(NotReady):
            self._running_loop().call_soon_threadsafe(_cancel_sent, handle)

    def _running_loop(self) -> "asyncio.AbstractEventLoop":
        """To be called with the lock held, so that what is then given to the loop comes before its end. Raises
        ``NotReady``."""
        if self._closed:
            raise NotReady(_EXITING)
        if self._loop is None:
            self._decided = asyncio.Event()
            self._stop = asyncio.Event()
            try:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self._serve, args=(loop,), name="asker", daemon=True)
                thread.start()
            except (OSError, RuntimeError) as error:
                raise NotReady(_SHORT) from error
            self._loop, self._thread = loop, thread
        return self._loop

    # ----------------------------------------------------------------------------------------------------- its thread

    def _serve(self, loop: "asyncio.AbstractEventLoop") -> None:
        try:
            loop.run_until_complete(self._main())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    async def _main(self) -> None:
        self._requester.on_table = self._on_table
        while not self._stop.is_set() and not await self._start():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _RETRY_S)
        await self._stop.wait()
        self._decided.set()
        await self._requester.close()
        # they have their answers, and are yet to hand them on
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    async def _start(self) -> bool:
        try:
            await self._requester.start()
        except Exception:  # no descriptor, no memory: whoever asks must hear of it
            if not self._broken:
                logger.exception("other models cannot be asked")
            self._broken = True
            self._decided.set()
            return False
        if self._broken:
            self._broken = False
            self._decided.clear()
        return True

    def _on_table(self, table: ModelTable) -> None:
        self._decided.set()

    async def _call(self, message: Any) -> Any:
        await self._first_table()  # or a requester that could not be started would let it wait for ever
        return await self._requester.call(message)

    async def _first_table(self) -> None:
        """Raises ``NotReady``."""
        try:
            await asyncio.wait_for(self._decided.wait(), TABLE_TIMEOUT_S)
        except asyncio.TimeoutError as error:
            raise NotReady("the server does not say which models there are; try again") from error
        if self._broken:
            raise NotReady(_SHORT)
        if self._closed:
            raise NotReady(_EXITING)

    def _begin(self, handle: Handle, model_name: str, version: int, call: InferenceCall) -> None:
        if self._requester.models.known:
            self._send(handle, model_name, version, call)
        else:
            task = asyncio.get_running_loop().create_task(self._send_later(handle, model_name, version, call))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _send_later(self, handle: Handle, model_name: str, version: int, call: InferenceCall) -> None:
        try:
            await self._first_table()
        except NotReady as error:
            handle.respond(error, True)
        else:
            self._send(handle, model_name, version, call)

    def _send(self, handle: Handle, model_name: str, version: int, call: InferenceCall) -> None:
        if handle.cancelled:
            return
        try:
            model = self._requester.models.lookup(model_name, _version_text(version))
        except ConchError:
            text = f"Failed for execute the inference request. Model '{model_name}' is not ready."
            handle.respond(NotReady(text), True)
            return
        try:
            handle.asked = self._requester.stream(model, call, handle.respond)
        except ConchError as error:
            handle.respond(error, True)
        except Exception as error:  # whoever asked waits for an answer, whatever is wrong with the call
            logger.exception("a request to model '%s' could not be sent", model_name)
            handle.respond(from_fault(to_fault(error)), True)


def _cancel_sent(handle: Handle) -> None:
    if handle.asked is not None:
        handle.asked.cancel()


def _version_text(version: int) -> str:
    return "" if version < 0 else str(version)
