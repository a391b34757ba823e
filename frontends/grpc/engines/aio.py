"""The engine on ``grpc.aio``: everything that gRPC has."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from conch.errors import Unavailable
from conch.settings import Settings
from conch.tls import server_context
from frontends.grpc.errors import CANCELLED, INTERNAL
from frontends.grpc.exchange import Application, Call, Failure, Metadata, Pending, Reply
from frontends.grpc.http2.limits import Limits
from frontends.listening import most_connections

logger = logging.getLogger("conch.frontends.grpc.engines.aio")

_MAX_MESSAGE_NBYTES: Final = 2**31 - 1
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_BUG: Final = Failure(INTERNAL, "internal error")
#: how often it is looked whether gRPC's server is still there
_LOOK_S: Final = 0.1
#: levels as Triton's flag has them: gRPC's Python API knows algorithms only
_COMPRESSIONS: Final = {
    "none": None,
    "low": grpc.Compression.Gzip,
    "medium": grpc.Compression.Gzip,
    "high": grpc.Compression.Deflate,
}


class AioEngine:
    """Implements ``frontends.grpc.exchange.Engine``.

    One client that names a method in bytes that are no UTF-8 ends ``grpc.aio``'s server: it goes on with the RPCs that
    it has and takes no more. So it is watched, and another one takes its place.
    """

    def __init__(self, application: Application, settings: Settings) -> None:
        self._application = application
        self._compression = _COMPRESSIONS[settings.grpc_infer_response_compression_level]
        self._credentials = credentials(settings)
        self._options = options(settings)
        self._handlers = _Handlers(application, self._unary, self._stream)
        self._server: grpc.aio.Server | None = None
        self._watcher: asyncio.Task[None] | None = None
        #: how often another server has taken the place of one that had ended
        self.replaced = 0

    async def listen(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        try:
            # gRPC binds a socket of its own beside ours, which does not listen
            await self.listen_at(f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}")
        except RuntimeError as error:
            raise Unavailable(f"Socket '{host}:{port}' already in use") from error
        finally:
            listener.close()

    async def listen_at(self, address: str) -> None:
        """``address`` as gRPC writes it. Raises ``RuntimeError`` when it cannot be had."""
        self._server = await self._serve(address)
        self._watcher = asyncio.ensure_future(self._watch(address))

    def part(self) -> None:
        """Nothing: a ``grpc.aio`` server sends GOAWAY only when it ends."""

    async def close(self, grace_s: float) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _serve(self, address: str) -> grpc.aio.Server:
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers((self._handlers,))
        if self._credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, self._credentials)
        await server.start()
        return server

    async def _watch(self, address: str) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            # there is no public way to ask: wait_for_termination waits for the last RPC as well
            if self._server is None or self._server._server.is_running():
                continue
            try:
                self._server = await self._serve(address)
            except RuntimeError as error:
                logger.error("gRPC's server has ended, and no other can begin: %s", error)
            else:
                self.replaced += 1
                logger.warning("gRPC's server has ended; another one serves now")

    # ------------------------------------------------------------------------------------------------------- handlers

    async def _unary(self, method: str, payload: bytes, context: Any) -> bytes:
        reply = await self._answer(_call(method, payload, context))
        if type(reply) is Failure:
            await context.abort(_CODES[reply.code], reply.message)
        if self._compression is not None:
            context.set_compression(self._compression)
        assert isinstance(reply, bytes)
        return reply

    async def _answer(self, call: Call) -> Reply:
        try:
            reply = self._application.answer(call)
        except Exception:
            logger.exception("a request failed")
            return _BUG
        if not isinstance(reply, Pending):
            return reply
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        reply.on_reply = lambda reply: None if future.done() else future.set_result(reply)
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():  # otherwise the answer came in this very moment
                reply.cancel()
            raise

    async def _stream(self, method: str, requests: AsyncIterator[bytes], context: Any) -> None:
        if self._compression is not None:
            context.set_compression(self._compression)
        failure = None
        replies = self._application.stream(_call(method, b"", context), requests)
        try:
            async for messages in replies:
                if isinstance(messages, Failure):
                    failure = messages
                    break
                for message in messages:
                    await context.write(message)
        except Exception:
            if context.cancelled():
                failure = Failure(CANCELLED, "")
            else:
                logger.exception("a stream failed")
                failure = _BUG
        finally:
            await replies.aclose()  # type: ignore[attr-defined]
        if failure is not None:
            await context.abort(_CODES[failure.code], failure.message)


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Bytes in, bytes out."""

    def __init__(self, application: Application, unary: Callable[..., Any], stream: Callable[..., Any]) -> None:
        self._handlers = {
            **{method: _unary_handler(unary, method) for method in application.methods},
            **{method: _stream_handler(stream, method) for method in application.streams},
        }

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._handlers.get(details.method)


def _unary_handler(unary: Callable[..., Any], method: str) -> Any:
    async def handle(payload: bytes, context: Any) -> bytes:
        encoded: bytes = await unary(method, payload, context)
        return encoded

    return grpc.unary_unary_rpc_method_handler(handle)


def _stream_handler(stream: Callable[..., Any], method: str) -> Any:
    async def handle(requests: AsyncIterator[bytes], context: Any) -> None:
        await stream(method, requests, context)

    return grpc.stream_stream_rpc_method_handler(handle)


def _call(method: str, payload: bytes, context: Any) -> Call:
    remaining = context.time_remaining()
    metadata: Metadata = tuple((key, value) for key, value in context.invocation_metadata() or ())
    return Call(method, payload, metadata, None if remaining is None else time.monotonic() + remaining)


# ----------------------------------------------------------------------------------------------------------- settings


def max_request_nbytes(settings: Settings) -> int:
    return min(_MAX_MESSAGE_NBYTES, settings.frontend_arena_nbytes)


def options(settings: Settings) -> list[tuple[str, int]]:
    """gRPC's channel arguments."""
    found = [
        ("grpc.so_reuseport", int(settings.reuse_grpc_port or settings.grpc_process_count > 1)),
        ("grpc.max_receive_message_length", max_request_nbytes(settings)),
        ("grpc.max_send_message_length", _MAX_MESSAGE_NBYTES),
        ("grpc.max_concurrent_streams", settings.max_inflight),
        ("grpc.max_allowed_incoming_connections", most_connections(Limits().connections)),
        ("grpc.keepalive_time_ms", settings.grpc_keepalive_time),
        ("grpc.keepalive_timeout_ms", settings.grpc_keepalive_timeout),
        ("grpc.keepalive_permit_without_calls", int(settings.grpc_keepalive_permit_without_calls)),
        ("grpc.http2.max_pings_without_data", settings.grpc_http2_max_pings_without_data),
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            settings.grpc_http2_min_recv_ping_interval_without_data,
        ),
        ("grpc.http2.max_ping_strikes", settings.grpc_http2_max_ping_strikes),
    ]
    if settings.grpc_max_connection_age:
        found.append(("grpc.max_connection_age_ms", settings.grpc_max_connection_age))
    if settings.grpc_max_connection_age_grace:
        found.append(("grpc.max_connection_age_grace_ms", settings.grpc_max_connection_age_grace))
    return found


def credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """None without TLS. Raises ``InvalidArgument`` for files that do not serve."""
    # gRPC says no more of a wrong file than that it cannot have the port
    if server_context(settings, "grpc") is None:
        return None
    mutual = settings.grpc_use_ssl_mutual
    pair = (Path(settings.grpc_server_key).read_bytes(), Path(settings.grpc_server_cert).read_bytes())
    root = Path(settings.grpc_root_cert).read_bytes() if mutual else None
    return grpc.ssl_server_credentials([pair], root, mutual)
