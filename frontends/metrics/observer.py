"""The metrics frontend's way to the broker: it asks for statistics and models' metrics, and sends no requests.

It is an observer and no requester: it needs no arena, and nobody has to wait until it has seen a table.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from conch.messages import (
    PROTOCOL_VERSION,
    Answer,
    AskMetrics,
    AskStatistics,
    MetricFamily,
    ModelStatistics,
    ModelTable,
    ObserverHello,
    ServerSettings,
    ToObserver,
    Unwelcome,
)
from conch.process import set_logging
from conch.requester.broker_socket import BrokerSocket
from conch.run_dir import RunDir, new_peer_id

logger = logging.getLogger("conch.frontends.metrics.observer")

#: a broker that is there answers within milliseconds
ANSWER_WITHIN_S = 0.9


class Known(NamedTuple):
    """What the broker says of all models: their statistics, and the metrics that they have made."""

    statistics: list[ModelStatistics]
    custom: list[MetricFamily]


OnKnown = Callable[[Known | None], None]


class Observer:
    """All methods belong to the thread of the loop that ``start`` ran on. ``loaded`` is set once the models that are to
    be loaded at start have been, or have failed."""

    def __init__(self, run_dir: RunDir) -> None:
        self.loaded = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[OnKnown] = []
        #: of the question for metrics; the one for statistics is the one after
        self._call = 0
        self._custom: list[MetricFamily] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._broker: BrokerSocket[ToObserver] = BrokerSocket(
            run_dir.broker_socket, new_peer_id().encode(), ToObserver, self._from_broker, self._on_connection
        )

    def close(self) -> None:
        self._tell(None)
        self._broker.close()

    def ask(self, on_known: OnKnown) -> None:
        """``on_known`` gets None when the broker has not answered in time. All who ask while there is a question on its
        way share its answer."""
        self._waiting.append(on_known)
        if self._timer is None:
            self._timer = self._loop.call_later(ANSWER_WITHIN_S, self._tell, None)
            self._send_question()

    def _send_question(self) -> None:
        """Metrics first: the broker asks the workers for them, and the statistics are then as new as they are."""
        self._call += 2
        self._custom = None
        self._broker.send(AskMetrics(self._call))

    def _tell(self, known: Known | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, []
        for on_known in waiting:
            on_known(known)

    # ---------------------------------------------------------------------------------------------------- the broker

    def _say_hello(self) -> None:
        self._broker.send(ObserverHello(PROTOCOL_VERSION, os.getpid()))
        if self._waiting:
            self._send_question()

    def _on_connection(self, up: bool) -> None:
        if up:
            self._say_hello()

    def _from_broker(self, message: ToObserver) -> None:
        match message:
            case ModelTable():
                if message.server != "starting":
                    self.loaded.set()
            case ServerSettings():
                set_logging(message.log)
            case Answer() if self._waiting:
                self._take_answer(message)
            case Unwelcome():
                if message.fault is None:
                    self._say_hello()
                else:
                    logger.error("the broker refused us: %s", message.fault.message)

    def _take_answer(self, answer: Answer) -> None:
        try:
            if answer.call == self._call and self._custom is None:
                # a broker that fails here has said so in its log; the statistics are shown all the same
                self._custom = [] if answer.fault else msgspec.convert(answer.result, list[MetricFamily])
                self._broker.send(AskStatistics(self._call + 1))
            elif answer.call == self._call + 1 and self._custom is not None:
                self._tell(Known(msgspec.convert(answer.result, list[ModelStatistics]), self._custom))
        except msgspec.ValidationError as error:
            logger.error("the broker's answer is not readable: %s", error)
            self._tell(None)
