"""Unpacks a packed environment. Nothing that is in the archive can reach outside the folder that it is unpacked to.

An archive may come from anywhere, and be made to write elsewhere: by its entries' names, or by a link that later
entries go through. The only links that may lead out are a virtual environment's interpreters: the real one lies
elsewhere.
"""

import contextlib
import os
import re
import shutil
import tarfile
from pathlib import Path
from posixpath import normpath

from workers.environments.failures import EnvironmentFailed

MAX_EXTRACTED_NBYTES = 64 * 1024**3
MAX_ENTRIES = 2_000_000
#: room that is left on the disk
_SPARE_NBYTES = 256 * 1024**2
_INTERPRETER = re.compile(r"bin/python[0-9.]*t?")
_COPY_NBYTES = 1024 * 1024


class Refused(EnvironmentFailed):
    """What is wrong with the archive, by the name of its entry."""


def unpack(archive: Path, folder: Path) -> None:
    """``archive``: tar, compressed in any way that Python knows. ``folder`` exists and is empty. Raises ``Refused``,
    and ``OSError`` where it cannot be read or written; then what has been written is for the caller to remove."""
    room = min(MAX_EXTRACTED_NBYTES, shutil.disk_usage(folder).free - _SPARE_NBYTES)
    unpacked = _Unpacked(folder, room)
    try:
        with tarfile.open(archive, "r|*") as entries:
            for entry in entries:
                unpacked.add(entries, entry)
            unpacked.check_links()
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Refused(f"it is not a tar archive, or is damaged ({error})") from error


class _Unpacked:
    """``links``: names of entries that are links, which no other entry's name may lead through."""

    def __init__(self, folder: Path, room_nbytes: int) -> None:
        self._folder = folder
        self._room_nbytes = room_nbytes
        self._entries = 0
        self._links: set[str] = set()

    def add(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise Refused(f"it holds more than {MAX_ENTRIES} entries")
        name = self._checked(entry.name)
        if name == ".":
            return
        path = self._folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if entry.isdir():
            if name in self._links:
                raise Refused(f"entry '{name}': it is a link before")
            path.mkdir(mode=0o700, exist_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # as tar does it: the later one counts
        self._links.discard(name)
        if entry.issym():
            self._link(name, entry.linkname)
        elif entry.islnk():
            self._hard_link(name, entry.linkname)
        elif entry.isreg():
            self._file(archive, entry, path)
        else:
            raise Refused(f"entry '{name}': neither a file, nor a folder, nor a link")

    def _checked(self, name: str) -> str:
        """Without ``.`` and double slashes."""
        if name.startswith("/"):
            raise Refused(f"entry '{name}': Path is absolute")
        if ".." in name.split("/"):
            raise Refused(f"entry '{name}': Path contains '..'")
        name = normpath(name)
        parent = os.path.dirname(name)
        while parent:
            if parent in self._links:
                raise Refused(f"entry '{name}': its path leads through the link '{parent}'")
            parent = os.path.dirname(parent)
        return name

    def _link(self, name: str, target: str) -> None:
        if not _INTERPRETER.fullmatch(name):
            there = normpath(os.path.join(os.path.dirname(name), target))
            if target.startswith("/") or there.split("/")[0] == "..":
                raise Refused(f"entry '{name}': a link that leads out of the environment")
        os.symlink(target, self._folder / name)
        self._links.add(name)

    def check_links(self) -> None:
        """Each alone leads inside; one that goes through others may not."""
        inside = os.path.join(os.path.realpath(self._folder), "")
        for name in self._links:
            leads_to = os.path.realpath(self._folder / name)
            if not _INTERPRETER.fullmatch(name) and not f"{leads_to}/".startswith(inside):
                raise Refused(f"entry '{name}': a link that leads out of the environment")

    def _hard_link(self, name: str, target: str) -> None:
        target = self._checked(target)
        if target in self._links or not (self._folder / target).is_file():
            raise Refused(f"entry '{name}': a link to what is no file of the archive before it")
        os.link(self._folder / target, self._folder / name, follow_symlinks=False)

    def _file(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> None:
        self._room_nbytes -= entry.size
        if self._room_nbytes < 0:
            raise Refused(
                f"unpacked, it would not fit: more than {MAX_EXTRACTED_NBYTES >> 30} GiB, or than the disk has room for"
            )
        source = archive.extractfile(entry)
        assert source is not None
        mode = 0o700 if entry.mode & 0o100 else 0o600
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with source, open(descriptor, "wb") as file:
            shutil.copyfileobj(source, file, _COPY_NBYTES)
        os.utime(path, (entry.mtime, entry.mtime))
