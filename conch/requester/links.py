"""Connections from workers: what they announce is mapped, what they answer is handed on.

Each worker connects to the requester's own socket. A connection's mappings are its own, so that a worker can refer only
to memory that it announced itself.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from conch.channels import BadMessage, ChannelClosed
from conch.channels.seqpacket import SeqpacketChannel, listen
from conch.later import Later
from conch.messages import (
    PROTOCOL_VERSION,
    Link,
    RequesterToWorker,
    Response,
    Responses,
    SegmentAdded,
    SegmentRetired,
    Window,
    WorkerToRequester,
)
from conch.repeated import Repeated
from conch.seldom import Seldom
from shm.base import BadReference, CannotOpen
from shm.mapping import Mappings
from shm.segment import Segment

if TYPE_CHECKING:
    import asyncio
else:
    asyncio = Later("asyncio")

logger = logging.getLogger("conch.requester.links")

#: how long no connection is accepted after the system had no descriptor for one
_ACCEPT_PAUSE_S = 0.1
#: messages of one worker that are taken before others get their turn
_MESSAGES_PER_TURN = 16
#: how long nothing is sent to a worker after the kernel was short of memory, or of descriptors on their way
_SEND_PAUSE_S = 0.02


class WorkerLink:
    """One accepted connection. ``worker`` is empty until it has said who it is. ``is_short``: there was no descriptor
    for memory that it announced. On its next connection it announces everything anew."""

    __slots__ = ("backlog", "channel", "is_short", "mappings", "worker")

    def __init__(self, connection: socket.socket, keep_descriptors: bool) -> None:
        self.channel: SeqpacketChannel[RequesterToWorker, WorkerToRequester] = SeqpacketChannel(
            connection, WorkerToRequester
        )
        self.mappings = Mappings(keep_descriptors)
        self.worker = ""
        self.is_short = False
        self.backlog: deque[tuple[RequesterToWorker, int | None]] = deque()


class Links:
    """The listening socket and all connections. ``on_response`` gets each response with the connection that it came on,
    and must not raise. ``announcements`` are what each new connection is told of: the requester's own segments, and
    others' memory that it has open, with their descriptors. ``keep_descriptors``: see ``Mappings``."""

    def __init__(
        self,
        on_response: Callable[[Response, WorkerLink], None],
        announcements: Callable[[], Iterable[tuple[SegmentAdded, int]]],
        keep_descriptors: bool = False,
    ) -> None:
        self._on_response = on_response
        self._announcements = announcements
        self._keep_descriptors = keep_descriptors
        self._broken = Repeated()
        self._short = Seldom()
        self._refused = Seldom()
        self._links: dict[int, WorkerLink] = {}  # by descriptor
        self._listener: socket.socket | None = None
        self._path = Path()
        self._loop: asyncio.AbstractEventLoop

    def open(self, path: Path) -> None:
        """Listens at ``path``, on the running loop. Raises ``OSError``."""
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._listener = listen(path)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = None
        self._path.unlink(missing_ok=True)
        for link in list(self._links.values()):
            self._close(link)

    def __len__(self) -> int:
        return len(self._links)

    def drain(self, worker: str) -> None:
        """Accepts every waiting connection and reads everything that ``worker`` has sent; that of all workers if
        ``worker`` is empty. To be called once it is known to be dead, or to have said what it runs."""
        self._accept()
        for link in list(self._links.values()):
            if not worker or link.worker in (worker, ""):
                while self._read(link):
                    pass

    def announce(self, message: SegmentAdded, descriptor: int) -> None:
        """Tells every worker. ``descriptor`` stays open until the segment's ``retire``, or right before that."""
        for link in self._links.values():
            self._send(link, message, descriptor)

    def retire(self, number: int) -> None:
        """A worker that has not been sent the announcement, because it does not read, hears of neither: clients can
        register memory much faster than a busy worker reads."""
        for link in self._links.values():
            unannounced = next((item for item in link.backlog if _announces(item[0], number)), None)
            if unannounced is None:
                self._send(link, SegmentRetired(number), None)
            else:
                link.backlog.remove(unannounced)

    def say_read(self, link: WorkerLink, id: int, responses: int) -> None:
        """So many more responses of the request have been read by whoever asked."""
        if self._links.get(link.channel.fileno()) is link:
            self._send(link, Window(id, responses), None)

    # ------------------------------------------------------------------------------------------------------ inside

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if self._refused.is_told(time.monotonic()):
                    logger.error("a worker's connection cannot be accepted: %s", error)
                self._loop.remove_reader(self._listener.fileno())
                self._loop.call_later(_ACCEPT_PAUSE_S, self._resume_accepting)
                return
            link = WorkerLink(connection, self._keep_descriptors)
            descriptor = link.channel.fileno()
            self._links[descriptor] = link
            self._loop.add_reader(descriptor, self._read_on, link)
            for message, kept in self._announcements():
                self._send(link, message, kept)

    def _resume_accepting(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener.fileno(), self._accept)
            self._accept()

    def _read_on(self, link: WorkerLink) -> None:
        """Takes several messages, so that a busy loop is not asked about each. The descriptor is level-triggered: what
        is left wakes the loop again."""
        for _ in range(_MESSAGES_PER_TURN):
            if not self._read(link):
                return

    def _read(self, link: WorkerLink) -> bool:
        """Takes one message. False if there was none, or the connection is closed now."""
        try:
            received = link.channel.receive_nowait()
            if received is None:
                return False
            message, descriptor = received
            if isinstance(message, Responses) and descriptor is None and link.worker:
                for response in message.items:
                    self._on_response(response, link)
            else:
                self._handle(link, message, descriptor)
        except ChannelClosed:
            self._close(link)
            return False
        except CannotOpen as error:
            link.is_short = True
            if self._short.is_told(time.monotonic()):
                logger.error("memory of worker %s cannot be opened at the moment: %s", link.worker, error)
        except (BadMessage, BadReference) as error:
            # Not closed yet: answers may lie behind it, which the worker counts as delivered. What it cannot send any
            # more it reports as undelivered, and that comes back to us as lost.
            worker = link.worker or "unknown"
            if self._broken.is_told():
                text = "worker %s broke the protocol, its connection is closed, the %s. so far: %s"
                logger.error(text, worker, self._broken.count, str(error))
            link.channel.refuse_more()
        return True

    def _handle(self, link: WorkerLink, message: WorkerToRequester, descriptor: int | None) -> None:
        """Anything but an ordinary ``Responses``. Raises ``BadMessage`` and ``BadReference``."""
        if isinstance(message, SegmentAdded) and link.worker:
            if descriptor is None:
                raise CannotOpen("no descriptor is left")
            link.mappings.add(message.segment, descriptor, message.lease_page)
            return
        if descriptor is not None:
            os.close(descriptor)
            raise BadMessage("a descriptor came with a message that has none")
        if isinstance(message, Link) and not link.worker and message.worker:
            if message.protocol != PROTOCOL_VERSION:
                raise BadMessage(f"protocol {message.protocol}, not {PROTOCOL_VERSION}")
            link.worker = message.worker
        elif isinstance(message, SegmentRetired) and link.worker:
            link.mappings.remove(message.segment)
        else:
            raise BadMessage(f"{type(message).__name__} out of order")

    def _close(self, link: WorkerLink) -> None:
        descriptor = link.channel.fileno()
        if self._links.pop(descriptor, None) is None:
            return
        self._loop.remove_reader(descriptor)
        self._loop.remove_writer(descriptor)
        link.channel.close()
        link.backlog.clear()
        # The mappings end with the last result that is in them: it is still read, and then given back.

    def _send(self, link: WorkerLink, message: RequesterToWorker, descriptor: int | None) -> None:
        """Sends now, or as soon as the worker reads: a busy one has up to a few hundred of these waiting."""
        try:
            if not link.backlog and link.channel.send_nowait(message, descriptor):
                return
        except ChannelClosed:
            return  # what it had sent before is still to be read; then its end of file closes the link
        if not link.backlog:
            self._loop.add_writer(link.channel.fileno(), self._flush, link)
        link.backlog.append((message, descriptor))

    def _flush(self, link: WorkerLink) -> None:
        sent = False
        try:
            while link.backlog:
                message, descriptor = link.backlog[0]
                if not link.channel.send_nowait(message, descriptor):
                    if not sent:  # though the worker reads: the loop would ask without end
                        self._loop.remove_writer(link.channel.fileno())
                        self._loop.call_later(_SEND_PAUSE_S, self._resume_sending, link)
                    return
                link.backlog.popleft()
                sent = True
        except ChannelClosed:
            pass
        self._loop.remove_writer(link.channel.fileno())

    def _resume_sending(self, link: WorkerLink) -> None:
        descriptor = link.channel.fileno()
        if self._links.get(descriptor) is link and link.backlog:
            self._loop.add_writer(descriptor, self._flush, link)


def announcement(segment: Segment) -> tuple[SegmentAdded, int]:
    """Of a segment of our own."""
    return SegmentAdded(segment.number, segment.nbytes, segment.lease_page), segment.descriptor


def _announces(message: RequesterToWorker, number: int) -> bool:
    return isinstance(message, SegmentAdded) and message.segment == number
