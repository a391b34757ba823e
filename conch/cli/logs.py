"""What the processes of a server write to their log files, for the person in front of ``conch serve``."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

#: a line that our logging has made; anything else is a print, a warning or a traceback
_FORMATTED = re.compile(rb"(?:(?P<letter>[EWI])\d{4} |\S+Z (?P<iso>[EWI]) )")
#: and its message, if there is something in it that JSON writes otherwise
_ESCAPED = re.compile(rb'((?:[EWI]\d{4}|\S+Z [EWI]) [^"\]]+\] )(".*\\.*")')
#: how a dump of Python's fault handler ends, after a stack that says more
_MODULES = re.compile(rb"Extension modules: .* \(total: \d+\)")
_SUPERVISORD = re.compile(rb"[\d-]+ [\d:,]+ (?P<level>[A-Z]+) (?P<text>.*)")
_MAX_READ_NBYTES = 1 << 20


class Follower:
    """New complete lines of one log file, from where it ended when the server was started, or all; follows rotation."""

    def __init__(self, path: Path, from_start: bool = False) -> None:
        self._path = path
        self._partial = b""
        self._inode, self._offset = 0, 0
        if from_start:
            return
        try:
            found = path.stat()
            self._inode, self._offset = found.st_ino, found.st_size
        except FileNotFoundError:
            pass

    def lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                # a rotated file's last lines are lost here, never in the file
                inode = self._path.stat().st_ino
                if inode != self._inode:
                    if self._inode:
                        self._offset, self._partial = 0, b""
                    self._inode = inode
                elif os.fstat(file.fileno()).st_size < self._offset:  # a model's log, cut when it became long
                    self._offset, self._partial = 0, b""
                file.seek(self._offset)
                data = file.read(_MAX_READ_NBYTES)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *complete, self._partial = (self._partial + data).split(b"\n")
        return complete


def readable(line: bytes) -> list[bytes]:
    """What one line of a log says, as the lines of its message: the file has one line per event. All but the first are
    indented, so that no message can look like another event, and nothing can steer a terminal."""
    match = _ESCAPED.fullmatch(line)
    try:
        message = json.loads(match[2]) if match is not None else None
    except ValueError:
        message = None
    if match is None or not isinstance(message, str):
        # of what came before a carriage return, a terminal would show nothing either
        return [_shown(line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))]
    first, *others = message.rstrip("\n").split("\n")
    return [match[1] + _shown(first), *(b"    " + _shown(other) for other in others)]


def _shown(text: str) -> bytes:
    safe = (each if each.isprintable() or each == "\t" else ascii(each)[1:-1] for each in text)
    return "".join(safe).encode(errors="backslashreplace")


class ProcessLogs:
    """The logs of all ``processes`` (names), of supervisord and of the models, filtered. ``talkative``: what the models
    and the broker log is shown whole."""

    def __init__(self, folder: Path, processes: Iterable[str], verbose: bool, talkative: bool = False) -> None:
        self._processes = {name: Follower(folder / f"{name}.log") for name in processes}
        self._supervisord = Follower(folder / "supervisord.log")
        self._models_folder = folder / "models"
        self._models = {path: Follower(path) for path in self._models_folder.glob("*.log")}
        self._verbose = verbose
        self._talkative = talkative
        self.exits: dict[str, int] = {}

    def take(self) -> list[str]:
        """What to show of what came since the last call: warnings, errors and whatever is not in our log format, behind
        the name of the model that it comes from; with ``--log-verbose`` everything. Counts the processes' exits in
        ``exits``."""
        shown = [line for line in self._supervisord.lines() if self._is_news(line)]
        for name, follower in self._processes.items():
            whole = self._talkative and name == "broker"
            for line in follower.lines():
                if line and self._is_shown(line, whole):
                    shown += readable(line)
        for path in self._models_folder.glob("*.log"):
            follower = self._models.setdefault(path, Follower(path, from_start=True))
            named = b"[" + path.stem.encode(errors="replace") + b"] "
            for line in follower.lines():
                if line and self._is_shown(line, self._talkative):
                    shown += [named + each for each in readable(line)]
        return [line.decode(errors="replace") for line in shown]

    def _is_shown(self, line: bytes, whole: bool) -> bool:
        match = _FORMATTED.match(line)
        if self._verbose or whole:
            return True
        return _MODULES.fullmatch(line) is None if match is None else (match["letter"] or match["iso"]) != b"I"

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
