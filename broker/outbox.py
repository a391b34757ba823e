"""Messages to peers, in order, kept while a peer that is known does not read."""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("conch.broker.outbox")

#: messages that wait for a peer that does not read; it has lost its mind when there are more
_MAX_BACKLOG = 100_000
RETRY_S = 0.02


class Outbox:
    """``send`` returns False for a peer that cannot be reached now. For one that is not known nothing is kept."""

    def __init__(self, send: Callable[[bytes, Any], bool], is_known: Callable[[bytes], bool]) -> None:
        self._send = send
        self._is_known = is_known
        self._backlog: dict[bytes, deque[Any]] = {}

    def tell(self, peer: bytes, message: Any) -> None:
        waiting = self._backlog.get(peer)
        if waiting is None and self._send(peer, message):
            return
        if not self._is_known(peer):
            return
        if waiting is None:
            waiting = self._backlog[peer] = deque()
        if len(waiting) >= _MAX_BACKLOG:
            logger.error("%s does not read its messages, some are dropped", peer)
            waiting.popleft()
        waiting.append(message)

    def forget(self, peer: bytes) -> None:
        self._backlog.pop(peer, None)

    def retry(self) -> None:
        """To be called every ``RETRY_S`` while ``waits``."""
        for peer, waiting in list(self._backlog.items()):
            while waiting and self._send(peer, waiting[0]):
                waiting.popleft()
            if not waiting:
                del self._backlog[peer]

    @property
    def waits(self) -> bool:
        return bool(self._backlog)
