"""What the processes of a server write to their log files, for the person in front of ``conch serve``."""

import re
from collections.abc import Iterable
from pathlib import Path

#: a line that our logging has made; anything else is a print, a warning or a traceback
_FORMATTED = re.compile(rb"(?:(?P<letter>[EWI])\d{4} |\S+Z (?P<iso>[EWI]) )")
_SUPERVISORD = re.compile(rb"[\d-]+ [\d:,]+ (?P<level>[A-Z]+) (?P<text>.*)")
_MAX_READ_NBYTES = 1 << 20


class Follower:
    """New complete lines of one log file, from where it ended when the server was started; follows rotation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = b""
        try:
            found = path.stat()
            self._inode, self._offset = found.st_ino, found.st_size
        except FileNotFoundError:
            self._inode, self._offset = 0, 0

    def lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                # a rotated file's last lines are lost here, never in the file
                inode = self._path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset, self._partial = inode, 0, b""
                file.seek(self._offset)
                data = file.read(_MAX_READ_NBYTES)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *complete, self._partial = (self._partial + data).split(b"\n")
        return complete


class ProcessLogs:
    """The logs of all ``processes`` (names) and of supervisord, filtered."""

    def __init__(self, folder: Path, processes: Iterable[str], verbose: bool) -> None:
        self._processes = [Follower(folder / f"{name}.log") for name in processes]
        self._supervisord = Follower(folder / "supervisord.log")
        self._verbose = verbose
        self.exits: dict[str, int] = {}

    def take(self) -> list[str]:
        """What to show of what came since the last call: warnings, errors and whatever is not in our log format; with
        ``--log-verbose`` everything. Counts the processes' exits in ``exits``."""
        shown = [line for line in self._supervisord.lines() if self._is_news(line)]
        for follower in self._processes:
            shown += [line for line in follower.lines() if line and self._is_shown(line)]
        return [line.decode(errors="replace") for line in shown]

    def _is_shown(self, line: bytes) -> bool:
        match = _FORMATTED.match(line)
        return self._verbose or match is None or (match["letter"] or match["iso"]) != b"I"

    def _is_news(self, line: bytes) -> bool:
        match = _SUPERVISORD.match(line)
        if match is None:
            return bool(line)
        text = match["text"].decode(errors="replace")
        if text.startswith("exited: "):
            name = text.split()[1]
            self.exits[name] = self.exits.get(name, 0) + 1
            return True
        # supervisord calls a private socket without a password critical
        return self._verbose or match["level"] == b"ERRO"
