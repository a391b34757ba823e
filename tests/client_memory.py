"""A client's shared memory, as ``tritonclient.utils.shared_memory`` makes it."""

import mmap
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import posix_ipc


class ClientMemory:
    """A POSIX object ``key`` of ``nbytes``. ``view`` is the client's own mapping, writable."""

    def __init__(self, nbytes: int) -> None:
        self.key = f"/client-{uuid.uuid4().hex}"
        self._linked = True
        shared = posix_ipc.SharedMemory(self.key, posix_ipc.O_CREX, size=nbytes)
        self.descriptor = shared.fd
        self._mapping = mmap.mmap(self.descriptor, nbytes)
        self.view = memoryview(self._mapping)

    def resize(self, nbytes: int) -> None:
        os.ftruncate(self.descriptor, nbytes)

    def unlink(self) -> None:
        if self._linked:
            self._linked = False
            posix_ipc.unlink_shared_memory(self.key)

    def close(self) -> None:
        self.unlink()
        self.view.release()
        self._mapping.close()
        os.close(self.descriptor)


@contextmanager
def client_memory(nbytes: int) -> Iterator[ClientMemory]:
    memory = ClientMemory(nbytes)
    try:
        yield memory
    finally:
        memory.close()
