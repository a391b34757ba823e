"""Where what a worker prints goes: the model's log."""

import io
import os
import sys
from pathlib import Path
from typing import Any


class _Log(io.FileIO):
    """Drops what it cannot write: on a full disk a model that prints goes on."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(memoryview(data).cast("B"))


def redirect(path: Path) -> int:
    """Output of this process and of all that it starts is appended to ``path``, each line at once. Where it starts, in
    bytes. Raises ``OSError``."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    offset = os.fstat(log).st_size
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout, sys.stderr = _text(1, sys.stdout), _text(2, sys.stderr)
    return offset


def _text(descriptor: int, former: object) -> io.TextIOWrapper:
    assert isinstance(former, io.TextIOWrapper)
    raw = _Log(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=former.encoding, errors=former.errors, line_buffering=True)
