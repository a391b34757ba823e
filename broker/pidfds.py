"""The processes of peers, by their pidfds: each tells of its process's death, and of nothing else."""

import errno
import logging
import os
import select

from conch.seldom import Seldom

logger = logging.getLogger("conch.broker.pidfds")

#: how long a process goes unwatched, for want of a descriptor, before it is tried again
_RETRY_S = 0.5
_NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Deaths:
    """``poll``: the broker's, where the pidfds are registered. ``retry`` is to be called at ``retry_at``, on the
    monotonic clock, unless that is None; it says who has died."""

    def __init__(self, poll: select.epoll) -> None:
        self._poll = poll
        self._peers: dict[int, bytes] = {}  # by pidfd
        self._pidfds: dict[bytes, tuple[int, int]] = {}  # pidfd and pid
        self._unwatched: dict[bytes, int] = {}
        self._failed = Seldom()
        self.retry_at: float | None = None

    def watch(self, peer: bytes, pid: int, now: float) -> None:
        """One that is dead already is told of by ``retry``, at once: what it had sent has to be heard before."""
        watched = self._pidfds.get(peer)
        if watched is not None and watched[1] == pid:
            return
        self.forget(peer)
        if not self._open(peer, pid, now):
            self._retry_later(peer, pid, now)

    def _open(self, peer: bytes, pid: int, now: float) -> bool:
        """False if the process is dead."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno not in _NO_DESCRIPTOR:
                return False
            # not as if it were dead: what it still reads would be used again
            if self._failed.is_told(now):
                logger.error("a process cannot be watched for the time being: %s", error.strerror)
            self._retry_later(peer, pid, now + _RETRY_S)
            return True
        self._pidfds[peer] = (pidfd, pid)
        self._peers[pidfd] = peer
        self._poll.register(pidfd, select.EPOLLIN)
        return True

    def _retry_later(self, peer: bytes, pid: int, at: float) -> None:
        self._unwatched[peer] = pid
        self.retry_at = at if self.retry_at is None else min(at, self.retry_at)

    def peer(self, descriptor: int) -> bytes | None:
        """Whose process is dead, if ``descriptor`` is a pidfd that ``poll`` reported; it is not watched any more."""
        peer = self._peers.get(descriptor)
        if peer is not None:
            self.forget(peer)
        return peer

    def forget(self, peer: bytes) -> None:
        self._unwatched.pop(peer, None)
        pidfd, _ = self._pidfds.pop(peer, (-1, 0))
        if pidfd >= 0:
            self._poll.unregister(pidfd)
            del self._peers[pidfd]
            os.close(pidfd)

    def retry(self, now: float) -> list[bytes]:
        """Watches those that could not be. Returns those that have died meanwhile."""
        self.retry_at = None
        unwatched, self._unwatched = self._unwatched, {}
        return [peer for peer, pid in unwatched.items() if not self._open(peer, pid, now)]

    def close(self) -> None:
        for pidfd in self._peers:
            os.close(pidfd)
        self._peers.clear()
        self._pidfds.clear()
