"""What the broker's exchange needs from the shell around it."""

from typing import Any, Protocol

from broker.lifecycle import DropFolder, FindNames, Poll, PollAll, Remember, Watch
from broker.server_settings import Changed
from conch.messages import Batch

Work = Poll | PollAll | FindNames | Watch | Remember | DropFolder


class Outlet(Protocol):
    def send(self, peer: bytes, message: Any) -> bool:
        """To the socket with this routing id; False if it cannot be reached now."""
        ...

    def send_batch(self, worker: str, batch: Batch) -> bool:
        """On the worker's data connection; False if there is none now, or it is full."""
        ...

    def work(self, effect: Work) -> None:
        """File work, in order, off the loop; results come back to ``polled``, ``polled_all`` and ``names_found``."""
        ...

    def watch(self, peer: bytes, pid: int) -> None:
        """``gone(peer)`` is to be called when the process dies, and soon if it is dead already."""
        ...

    def settings_changed(self, changed: Changed) -> None:
        """They count in this process too, and a broker that comes after this one is to know them."""
        ...
