"""The two transports between processes, behind one contract.

A channel has two methods that never wait: ``send_nowait`` and ``receive_nowait``. Which hop uses which transport is
decided where the processes are wired, and was decided by measurement (``docs/design.md``).
"""

from typing import Protocol, TypeVar

Outgoing = TypeVar("Outgoing", contravariant=True)
Incoming = TypeVar("Incoming", covariant=True)


class ChannelClosed(Exception):
    """The peer closed the connection or broke it; everything it had sent has been received."""


class BadMessage(Exception):
    """A peer sent something that is not a message of this direction. The text is for the log only."""


class Channel(Protocol[Outgoing, Incoming]):
    """One connection to one peer, for one thread."""

    def send_nowait(self, message: Outgoing) -> bool:
        """Hands the message to the transport. False if it would have to wait or the peer is not connected: nothing was
        sent, and the caller decides whether to keep it. Raises ``ChannelClosed``."""
        ...

    def receive_nowait(self) -> Incoming | None:
        """The next message, or None if there is none now. Raises ``ChannelClosed`` and ``BadMessage``."""
        ...

    def fileno(self) -> int:
        """Becomes readable when ``receive_nowait`` may have something."""
        ...

    def close(self) -> None: ...
