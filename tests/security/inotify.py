"""What is opened, made or written in some folders, as the kernel says it: whoever does it, by whatever name."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OPEN, _MODIFY, _CREATE, _DELETE, _MOVED = 0x20, 0x2, 0x100, 0x200, 0x40 | 0x80
_EVENT = struct.Struct("iIII")


class Watched:
    """``seen`` returns the names of what has happened since the last call, with the folder it happened in."""

    def __init__(self, folders: list[Path]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.descriptor >= 0, os.strerror(ctypes.get_errno())
        self._folders: dict[int, Path] = {}
        for folder in folders:
            mask = _OPEN | _MODIFY | _CREATE | _DELETE | _MOVED
            number = self._libc.inotify_add_watch(self.descriptor, os.fsencode(folder), mask)
            assert number >= 0, os.strerror(ctypes.get_errno())
            self._folders[number] = folder

    def seen(self) -> set[Path]:
        found = set[Path]()
        while True:
            try:
                data = os.read(self.descriptor, 65536)
            except BlockingIOError:
                return found
            while data:
                number, _, _, nbytes = _EVENT.unpack_from(data)
                name = os.fsdecode(data[_EVENT.size : _EVENT.size + nbytes].rstrip(b"\0"))
                found.add(self._folders[number] / name)
                data = data[_EVENT.size + nbytes :]


@contextmanager
def watched(*folders: Path) -> Iterator[Watched]:
    """The folders themselves, not what lies below those in them."""
    found = Watched(list(folders))
    try:
        yield found
    finally:
        os.close(found.descriptor)
