"""Where responses go: one SEQPACKET connection per requester, straight from this worker.

A connection is made when a requester's first batch arrives. Both ends then announce their segments with descriptors:
the requester its input arena and the regions of clients, the worker its output arena and lease pages. Inputs are read,
and outputs leased, by references into those.
"""

import logging
import os
import select
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from conch.channels import BadMessage, ChannelClosed
from conch.channels.seqpacket import MAX_MESSAGE_NBYTES, MessageTooLong, SeqpacketChannel, connect
from conch.descriptors import are_left
from conch.errors import Overloaded
from conch.messages import (
    PROTOCOL_VERSION,
    Block,
    ClientRegion,
    Fault,
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
from conch.run_dir import RunDir
from conch.seldom import Seldom
from shm.base import BadReference, CannotOpen
from shm.client_regions import ClientRegions, ClientWindow, OpenRegions
from shm.leases import LeasedArena
from shm.lent import Lent
from shm.mapping import Mappings
from shm.segment import Segment
from workers.flow import Flow

logger = logging.getLogger("conch.workers.responses")

#: how long an announced segment may take to arrive, and how long a requester may take to read, before it counts as
#: gone. Others wait meanwhile. A frontend that is busy with one large request may need most of it
SEGMENT_TIMEOUT_S = 2.0
SEND_TIMEOUT_S = 2.0
#: descriptors that a new connection takes at least, with what is announced on it
_FOR_A_CONNECTION = 4
#: a longer text would keep an error from fitting into one message
_MOST_ERROR_CHARACTERS = 16_000
#: what the encoder raises, for instance for a text that is not Unicode
_UNENCODABLE = (OverflowError, TypeError, ValueError, msgspec.MsgspecError)
#: batches between looks at what requesters have announced, while batches keep coming
_LOOK_EVERY = 64

RequesterChannel = SeqpacketChannel[WorkerToRequester, RequesterToWorker]


class RequesterGone(Exception):
    """Nobody listens at the other end, or nobody reads. What was to be sent there is undelivered."""


class Connections:
    """All requesters of this worker. Belongs to whoever has the worker's lock.

    ``poll``: the worker's, where each connection is registered, so that an idle worker learns of new and retired
    segments. ``streams``: requests of decoupled models by requester and id, which are told what has been read of them,
    and when their connection breaks. ``lends_inputs``: to be set before the first request, see ``lend``.
    """

    def __init__(self, worker: str, run_dir: RunDir, outputs: LeasedArena, poll: select.epoll) -> None:
        self._worker = worker
        self._run_dir = run_dir
        self._outputs = outputs
        self._poll = poll
        self._channels: dict[str, RequesterChannel] = {}
        self._requesters: dict[int, str] = {}  # by descriptor
        self._mappings: dict[str, Mappings] = {}
        self._regions: dict[str, ClientRegions] = {}
        self._open_regions = OpenRegions()
        #: announced, and not open for want of a descriptor
        self._unopened: dict[str, set[int]] = {}
        self._short = Seldom()
        #: how much longer a requester is waited for that has said nothing on its connection: one that is stopped is not
        #: waited for again with every request, and goes on by itself with what it was not sent
        self._unheard: dict[str, float] = {}
        self._looks = 0
        self._broken = Repeated()
        self.lends_inputs = False
        self.streams: dict[tuple[str, int], Flow] = {}
        outputs.arena.on_segment_added = self._announce
        outputs.arena.on_segment_retired = self._retire

    # ------------------------------------------------------------------------------------------------------ inputs

    def view(self, requester: str, block: Block) -> memoryview:
        """The block's bytes, read-only, in the requester's own memory.

        Raises ``RequesterGone``, ``BadReference`` and, without a descriptor to open it with, ``Overloaded``.
        """
        mappings = self._mappings.get(requester)
        if mappings is not None:
            try:
                return mappings.view(block)
            except BadReference:
                if block.segment in mappings:
                    raise
        self._await_segment(requester, block.segment)
        return self._mappings[requester].view(block)

    def lend(self, requester: str, block: Block, hold: Any) -> Lent | None:
        """What another process needs to read a block that ``view`` has found."""
        return self._mappings[requester].lend(block, hold)

    def window(self, requester: str, reference: ClientRegion, tensor: str) -> ClientWindow:
        """Part of a client's region that the requester has announced, see ``ClientRegions.window``.

        Raises ``RequesterGone``, ``BadReference``, ``InvalidArgument`` and ``Overloaded``.
        """
        regions = self._regions.get(requester)
        if regions is None or not regions.knows(reference.region):
            self._await_segment(requester, reference.region)
        return self._regions[requester].window(reference, tensor)

    def _await_segment(self, requester: str, segment: int) -> None:
        if segment in self._unopened.get(requester, ()) and are_left(_FOR_A_CONNECTION):
            self._disconnect(requester)  # on a new connection all is announced again
        if requester not in self._channels:
            self._connect(requester)
        channel = self._channels[requester]
        waiter = select.poll()
        waiter.register(channel.fileno(), select.POLLIN)
        deadline = time.monotonic() + self._unheard.get(requester, SEGMENT_TIMEOUT_S)
        while True:
            if not self.read(requester):
                raise RequesterGone(f"requester {requester} closed its connection")
            if segment in self._mappings[requester] or self._regions[requester].knows(segment):
                return
            if segment in self._unopened[requester]:
                raise Overloaded("the model's process has no descriptor left to read the request with; try again later")
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0 or not waiter.poll(remaining_s * 1000):
                if requester in self._unheard:
                    self._unheard[requester] = 0.0
                    raise RequesterGone(f"requester {requester} takes no connections")
                raise BadReference(f"requester {requester} never announced segment {segment}")

    def read(self, requester: str) -> bool:
        """Takes in what the requester has announced. False if the connection is closed."""
        channel = self._channels.get(requester)
        if channel is None:
            return False
        mappings = self._mappings[requester]
        regions = self._regions[requester]
        try:
            while (received := channel.receive_nowait()) is not None:
                message, descriptor = received
                self._unheard.pop(requester, None)
                match message:
                    case Window(id, credit) if descriptor is None:
                        stream = self.streams.get((requester, id))
                        if stream is not None:
                            stream.have_been_read(credit)
                    case SegmentAdded():
                        self._open(requester, message, descriptor)
                    case SegmentRetired() if descriptor is None:
                        self._unopened[requester].discard(message.segment)
                        if message.segment in mappings:
                            mappings.remove(message.segment)
                        else:
                            regions.remove(message.segment)
                    case _:
                        if descriptor is not None:
                            os.close(descriptor)
                        raise BadMessage(f"{type(message).__name__} is not expected here")
        except ChannelClosed:
            self._disconnect(requester)
            return False
        except (BadMessage, BadReference) as error:
            if self._broken.is_told():
                logger.error("requester %s sent what cannot be used: %s", requester, error)
            self._disconnect(requester)
            return False
        return True

    def _open(self, requester: str, added: SegmentAdded, descriptor: int | None) -> None:
        """Raises ``BadReference``. What cannot be opened at the moment is remembered: only what needs it fails."""
        try:
            if descriptor is None:
                raise CannotOpen("no descriptor is left")
            if added.client:
                self._regions[requester].add(added.segment, descriptor, added.offset, added.nbytes)
            else:
                self._mappings[requester].add(added.segment, descriptor, added.lease_page)
        except CannotOpen as error:
            self._unopened[requester].add(added.segment)
            if self._short.is_told(time.monotonic()):
                logger.error("memory of requester %s cannot be opened at the moment: %s", requester, error)

    def descriptor(self, requester: str) -> int | None:
        """To poll for what ``read`` takes in. None if there is no connection (any more)."""
        channel = self._channels.get(requester)
        return None if channel is None else channel.fileno()

    def read_ready(self, descriptor: int) -> None:
        """To be called when ``poll`` reports a descriptor that may be a requester's."""
        requester = self._requesters.get(descriptor)
        if requester is not None:
            self.read(requester)

    def look_around(self) -> None:
        """To be called with every batch: now and then takes in what a busy worker would never be idle to read."""
        self._looks += 1
        if self._looks % _LOOK_EVERY == 0:
            for requester in list(self._channels):
                self.read(requester)

    # ----------------------------------------------------------------------------------------------------- outputs

    def send(self, requester: str, responses: Sequence[Response]) -> Sequence[Response]:
        """Sends them in as few messages as they fit in; one that cannot be sent at all becomes an error. Returns those
        whose requester is gone, after ending their leases."""
        try:
            if requester not in self._channels:
                self._connect(requester)
            self._send(requester, Responses(tuple(responses)))
            return ()
        except (MessageTooLong, *_UNENCODABLE) as error:
            if len(responses) > 1:
                half = len(responses) // 2
                return (*self.send(requester, responses[:half]), *self.send(requester, responses[half:]))
            self._take_back(responses)
            return self.send(requester, (_sendable(responses[0], error),))
        except RequesterGone as error:
            logger.info("%s", error)
            self._take_back(responses)
            return responses

    def _take_back(self, responses: Sequence[Response]) -> None:
        for response in responses:
            if response.lease is not None:
                self._outputs.take_back(response.lease)

    def _send(self, requester: str, message: WorkerToRequester, descriptor: int | None = None) -> None:
        channel = self._channels[requester]
        try:
            if channel.send_nowait(message, descriptor):
                return
            deadline = time.monotonic() + SEND_TIMEOUT_S
            waiter = select.poll()
            waiter.register(channel.fileno(), select.POLLOUT)
            while True:
                remaining_s = deadline - time.monotonic()
                if remaining_s <= 0 or not waiter.poll(remaining_s * 1000):
                    self._disconnect(requester)
                    raise RequesterGone(f"requester {requester} has not read for {SEND_TIMEOUT_S:.0f} s")
                if channel.send_nowait(message, descriptor):
                    return
        except ChannelClosed as error:
            self._disconnect(requester)
            raise RequesterGone(f"requester {requester} closed its connection") from error

    # ------------------------------------------------------------------------------------------------- connections

    def _connect(self, requester: str) -> None:
        try:
            channel: RequesterChannel = SeqpacketChannel(
                connect(self._run_dir.requester_socket(requester)), RequesterToWorker
            )
        except OSError as error:
            raise RequesterGone(f"requester {requester} cannot be reached: {error}") from error
        self._channels[requester] = channel
        self._requesters[channel.fileno()] = requester
        self._poll.register(channel.fileno(), select.EPOLLIN)
        self._mappings[requester] = Mappings(self.lends_inputs)
        self._regions[requester] = ClientRegions(self._open_regions)
        self._unopened[requester] = set()
        self._unheard[requester] = SEGMENT_TIMEOUT_S
        self._send(requester, Link(PROTOCOL_VERSION, self._worker))
        for segment in self._outputs.segments:
            self._send(requester, _announcement(segment), segment.descriptor)

    def _disconnect(self, requester: str) -> None:
        """What the requester holds stays leased: that a connection broke does not mean that nobody reads any more."""
        channel = self._channels.pop(requester, None)
        if channel is not None:
            self._poll.unregister(channel.fileno())
            del self._requesters[channel.fileno()]
            channel.close()
            for (other, _), stream in list(self.streams.items()):
                if other == requester:
                    stream.break_off()
        mappings = self._mappings.pop(requester, None)
        if mappings is not None:
            mappings.close()
            self._regions.pop(requester).close()
            del self._unopened[requester]
            self._unheard.pop(requester, None)

    def forget(self, requester: str) -> None:
        """The requester is known to be dead: nobody reads what it held."""
        self._disconnect(requester)
        self._outputs.forget(requester)

    def _announce(self, segment: Segment) -> None:
        for requester in list(self._channels):
            try:
                self._send(requester, _announcement(segment), segment.descriptor)
            except RequesterGone as error:
                logger.info("%s", error)

    def _retire(self, number: int) -> None:
        for requester in list(self._channels):
            try:
                self._send(requester, SegmentRetired(number))
            except RequesterGone as error:
                logger.info("%s", error)

    def close(self) -> None:
        for requester in list(self._channels):
            self._disconnect(requester)


def _announcement(segment: Segment) -> SegmentAdded:
    return SegmentAdded(segment.number, segment.nbytes, segment.lease_page)


def _sendable(response: Response, error: Exception) -> Response:
    """An error that can be sent, whatever the model said, instead of a response that could not be, because of
    ``error``."""
    fault = response.error
    if fault is not None:
        text = fault.message.encode(errors="backslashreplace").decode()
        if len(text) > _MOST_ERROR_CHARACTERS:
            text = text[:_MOST_ERROR_CHARACTERS] + " …"
        fault = Fault(fault.kind, text)
    elif isinstance(error, MessageTooLong):
        fault = Fault("ModelError", f"the response does not fit into a message of {MAX_MESSAGE_NBYTES} bytes")
    else:
        logger.error("a response cannot be put into a message: %s", error)
        fault = Fault("ModelError", "the response cannot be put into a message")
    return Response(response.id, response.attempt, response.index, response.final, error=fault)
