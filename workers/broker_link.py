"""The worker's connection for batches: made after every ``Welcome``, gone with the broker."""

import logging
import select

from conch.channels import ChannelClosed
from conch.channels.data import DataChannel
from conch.channels.seqpacket import connect
from conch.messages import PROTOCOL_VERSION, Batch, Closed, DataLink, Done, Ready, ToWorkerData
from conch.run_dir import RunDir
from workers.shared_state import SharedState

logger = logging.getLogger("conch.workers.broker_link")


class BrokerLink:
    """Belongs to whoever has the worker's lock; but the main thread receives without it, because nobody else does.
    ``poll``: where the connection is registered while there is one."""

    def __init__(self, worker: str, run_dir: RunDir, poll: select.epoll) -> None:
        self._worker = worker
        self._run_dir = run_dir
        self._poll = poll
        self._channel: DataChannel[DataLink | Ready | Done | Closed, ToWorkerData] | None = None

    @property
    def connected(self) -> bool:
        return self._channel is not None

    def reconnect(self) -> bool:
        """To the broker that has just said ``Welcome``. False if it does not listen (any more)."""
        self.close()
        try:
            channel: DataChannel[DataLink | Ready | Done | Closed, ToWorkerData] = DataChannel(
                connect(self._run_dir.broker_data_socket), ToWorkerData
            )
        except OSError:
            return False
        self._channel = channel
        self._poll.register(channel.fileno(), select.EPOLLIN)
        if self.send_nowait(DataLink(PROTOCOL_VERSION, self._worker)):
            return True
        self.close()  # nothing else may come first
        return False

    def send_nowait(self, message: DataLink | Ready | Done | Closed) -> bool:
        """False if there is no broker, or it does not read."""
        channel = self._channel
        if channel is None:
            return False
        try:
            return channel.send_nowait(message)
        except ChannelClosed:
            return False  # what it had sent is still to be received

    def receive_nowait(self) -> Batch | None:
        """Raises ``BadMessage``: a batch that cannot be read cannot be answered, so the worker has to end."""
        if self._channel is None:
            return None
        try:
            return self._channel.receive_nowait()
        except ChannelClosed:
            self.close()
            return None

    def close(self) -> None:
        if self._channel is not None:
            self._poll.unregister(self._channel.fileno())
            self._channel.close()
            self._channel = None


class Reports:
    """Tells the broker what the worker does not hold any more, in the order in which it is told here. Belongs to
    whoever has the worker's lock."""

    def __init__(self, data: BrokerLink, shared: SharedState) -> None:
        self._data = data
        self._shared = shared

    def done(self, done: Done) -> None:
        if self._shared.put_down(done):
            self._send(done)

    def closed(self, closed: Closed) -> None:
        if self._shared.put_down_open(closed):
            self._send(closed)
        if self._shared.has_unreported or (self._shared.draining and not self._shared.has_open):
            self._shared.wake()  # to try again, or to end

    def send_kept(self) -> None:
        """What could not be told when it happened."""
        for report in self._shared.unreported():
            self._send(report)

    def _send(self, report: Done | Closed) -> None:
        if not self._data.send_nowait(report):
            self._shared.keep(report)
