"""What a gRPC engine and the application hand to each other: one call, one answer, as encoded messages.

Engines do HTTP/2 and gRPC; the application parses and writes protobuf. A stream's requests and answers take the same
road, one message at a time.
"""

import socket
from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from frontends.deferred import Deferred

Metadata = tuple[tuple[str, str | bytes], ...]
#: an encoded message; a large one may be a view, of bytes, of memory that is used again once nobody has a view of it
Payload = bytes | memoryview


class Call(NamedTuple):
    """One RPC. ``method`` is the full name, ``/inference.GRPCInferenceService/ModelInfer``. ``deadline`` is in seconds
    of ``time.monotonic``, None for none. The engine keeps neither payload nor metadata beyond ``answer``."""

    method: str
    payload: Payload
    metadata: Metadata
    deadline: float | None


class Failure(NamedTuple):
    """An RPC's status other than OK. ``code`` is the number of a ``grpc.StatusCode``."""

    code: int
    message: str


#: the encoded response, or why there is none
Reply = bytes | Failure
#: encoded responses that a stream has at the moment, in order, or why there are no more
Replies = list[bytes] | Failure


class Pending(Deferred[Reply]):
    __slots__ = ()

    def internal_error(self) -> Reply:
        return Failure(13, "internal error")


class Application(Protocol):
    """What an engine serves. Nothing here raises: an exception is a bug, logged and answered INTERNAL. Everything runs
    on the loop's thread."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Full names of the unary methods."""
        ...

    @property
    def streams(self) -> tuple[str, ...]:
        """Full names of the methods with a stream in both directions."""
        ...

    def answer(self, call: Call) -> Reply | Pending: ...

    def stream(self, call: Call, requests: AsyncIterator[Payload]) -> AsyncIterator[Replies]:
        """``call.payload`` is empty. A ``Failure`` is the last item. The next item is asked for when the client's
        windows and the transport have taken the last one. Closing the iterator cancels what is on its way: the client
        has gone."""
        ...


class Engine(Protocol):
    """Serves one application on one port. Made from ``(application, settings)``, as ``frontends.grpc.engines`` does.
    All methods belong to the loop's thread."""

    async def listen(self, listener: socket.socket) -> None:
        """Serves from now on. ``listener`` is bound to the port and does not listen yet; the engine closes it when it
        binds a socket of its own. Raises ``Unavailable`` and ``InvalidArgument`` (certificates)."""
        ...

    def part(self) -> None:
        """Asks clients to connect anew for their next RPCs: to another server, if a load balancer knows already that
        this one is about to end."""
        ...

    async def close(self, grace_s: float) -> None:
        """Closes the port. Replies that there are already are written for at most ``grace_s``, everything else is cut
        off. To refuse new RPCs and to wait for those in flight is the application's and the server's business."""
        ...
