"""The metrics frontend's way to the broker: it asks for statistics, and sends no requests.

It is an observer and no requester: it needs no arena, and nobody has to wait until it has seen a table.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from conch.channels import BadMessage
from conch.channels.zeromq import DealerChannel
from conch.messages import (
    PROTOCOL_VERSION,
    Answer,
    AskStatistics,
    ModelStatistics,
    ModelTable,
    ObserverHello,
    ToBroker,
    ToObserver,
    Unwelcome,
)
from conch.run_dir import RunDir, new_peer_id

logger = logging.getLogger("conch.frontends.metrics.observer")

#: a broker that is there answers within milliseconds
ANSWER_WITHIN_S = 0.9
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

OnStatistics = Callable[[list[ModelStatistics] | None], None]


class Observer:
    """All methods belong to the thread of the loop that ``start`` ran on. ``loaded`` is set once the models that are to
    be loaded at start have been, or have failed."""

    def __init__(self, run_dir: RunDir) -> None:
        self.loaded = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[OnStatistics] = []
        self._call = 0
        self._timer: asyncio.TimerHandle | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._channel: DealerChannel[ToBroker, ToObserver] = DealerChannel(
            self._context, run_dir.broker_socket, new_peer_id().encode(), ToObserver
        )
        self._loop.add_reader(self._channel.fileno(), self._on_broker)
        self._loop.add_reader(self._channel.monitor_fileno(), self._on_monitor)
        self._on_monitor()

    def close(self) -> None:
        self._tell(None)
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_reader(self._channel.monitor_fileno())
        self._channel.close()
        self._context.destroy(linger=0)

    def ask(self, on_statistics: OnStatistics) -> None:
        """``on_statistics`` gets the statistics of all models, or None when the broker has not answered in time. All
        who ask while there is a question on its way share its answer."""
        self._waiting.append(on_statistics)
        if self._timer is None:
            self._timer = self._loop.call_later(ANSWER_WITHIN_S, self._tell, None)
            self._send_question()

    def _send_question(self) -> None:
        self._call += 1
        self._send(AskStatistics(self._call))

    def _tell(self, statistics: list[ModelStatistics] | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for on_statistics in waiting:
            on_statistics(statistics)

    # ---------------------------------------------------------------------------------------------------- the broker

    def _send(self, message: ToBroker) -> None:
        self._channel.send_nowait(message)
        # sending may swallow the signal that something has arrived
        self._loop.call_soon(self._look)

    def _look(self) -> None:
        if not self._channel.socket.closed and int(self._channel.socket.getsockopt(_EVENTS)) & _POLLIN:
            self._on_broker()

    def _say_hello(self) -> None:
        self._send(ObserverHello(PROTOCOL_VERSION, os.getpid()))
        if self._waiting:
            self._send_question()

    def _on_monitor(self) -> None:
        for up in self._channel.connection_changes():
            if up:
                # the socket takes note of its new connection only while it is asked for something
                self._on_broker()
                self._say_hello()

    def _on_broker(self) -> None:
        """Takes everything that has arrived. Nothing may end this early: the descriptor would stay silent for ever."""
        while True:
            try:
                message = self._channel.receive_nowait()
                if message is None:
                    return
                self._from_broker(message)
            except BadMessage as error:
                logger.error("the broker sent something unreadable: %s", error)
            except Exception:
                logger.exception("a message of the broker could not be handled")

    def _from_broker(self, message: ToObserver) -> None:
        match message:
            case ModelTable():
                if message.server != "starting":
                    self.loaded.set()
            case Answer() if message.call == self._call and self._waiting:
                self._tell(_statistics(message.result))
            case Unwelcome():
                if message.fault is None:
                    self._say_hello()
                else:
                    logger.error("the broker refused us: %s", message.fault.message)


def _statistics(result: Any) -> list[ModelStatistics] | None:
    try:
        return msgspec.convert(result, list[ModelStatistics])
    except msgspec.ValidationError as error:
        logger.error("the broker's statistics are not readable: %s", error)
        return None
