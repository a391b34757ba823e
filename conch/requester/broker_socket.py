"""A frontend's control connection to the broker, on an asyncio (uvloop) event loop."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import zmq

from conch.channels import BadMessage
from conch.channels.zeromq import DealerChannel
from conch.later import Later
from conch.messages import ToBroker

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

logger = logging.getLogger("conch.requester.broker_socket")

In = TypeVar("In")


class BrokerSocket(Generic[In]):
    """Belongs to the thread of the running loop. ``on_message`` gets what the broker says. ``on_connection`` is told
    when the connection is up (True), which asks for a HELLO, and when it is down; what had come before it is up has
    been given to ``on_message`` by then. Neither is called from inside the constructor.
    """

    def __init__(
        self,
        path: Path,
        routing_id: bytes,
        incoming: Any,
        on_message: Callable[[In], None],
        on_connection: Callable[[bool], None],
    ) -> None:
        self._on_message = on_message
        self._on_connection = on_connection
        self._look_again = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._channel: DealerChannel[ToBroker, In] = DealerChannel(self._context, path, routing_id, incoming)
        self._loop.add_reader(self._channel.fileno(), self._drain)
        self._loop.add_reader(self._channel.monitor_fileno(), self._look_at_connection)
        self._loop.call_soon(self._look_at_connection)

    def send(self, message: ToBroker) -> bool:
        """False if it cannot be sent now. Raises what MessagePack raises for numbers of more than 64 bits."""
        if not self._look_again:
            # sending may swallow the signal that something has arrived
            self._look_again = True
            self._loop.call_soon(self._look)
        return self._channel.send_nowait(message)

    def close(self) -> None:
        self._closed = True
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_reader(self._channel.monitor_fileno())
        self._channel.close()
        self._context.destroy(linger=0)

    def _look(self) -> None:
        self._look_again = False
        if not self._closed and self._channel.is_readable():
            self._drain()

    def _drain(self) -> None:
        """Takes everything that has arrived. Nothing may end this early: the descriptor would stay silent for ever."""
        while True:
            try:
                message = self._channel.receive_nowait()
                if message is None:
                    return
                self._on_message(message)
            except BadMessage as error:
                logger.error("the broker sent something unreadable: %s", error)
            except Exception:
                logger.exception("a message of the broker could not be handled")

    def _look_at_connection(self) -> None:
        if self._closed:
            return
        for up in self._channel.connection_changes():
            if up:
                # the socket takes note of its new connection only while it is asked for something
                self._drain()
            self._on_connection(up)
