"""Tells of workers' deaths: in the launcher's log, and in the model's, where a dying process writes no time."""

import contextlib
import logging
import os
import re
from pathlib import Path

from conch.exits import how_it_ended
from conch.messages import Died
from conch.process import log_line
from conch.run_dir import RunDir
from workers.worker_file import WorkerFile

logger = logging.getLogger("conch.workers.launcher")

_TOLD = re.compile(
    rb"^(?:[EWI]\d{4} \S+|\S+Z [EWI]) \d+ deaths\.py:\d+\] \"the worker of instance '.*\n?", re.MULTILINE
)


def tell(file: WorkerFile, died: Died, run_dir: RunDir) -> None:
    """To be called once the end of the model's log has been read for ``died``. Nothing is added to the log for a worker
    that has ended by itself, and nothing if that fails, as on a full disk."""
    if died.exit_code == 0:
        logger.info("worker %s of '%s', pid %s, ended", died.worker, file.model, died.pid)
        return
    level, how = _ending(died)
    logger.log(level, "worker %s of '%s', pid %s, %s", died.worker, file.model, died.pid, how)
    text = f"the worker of instance '{file.instance_name or file.model}', pid {died.pid}, {how}"
    line = tell.__code__.co_firstlineno
    record = logger.makeRecord(logger.name, level, __file__, line, text, (), None)
    with contextlib.suppress(OSError):
        _append(run_dir.model_log(file.model), log_line(record))


def _ending(died: Died) -> tuple[int, str]:
    if died.exit_code is None and died.signal is None:
        if died.reason:
            return logging.ERROR, died.reason
        return logging.INFO, "ended; how is not known, it was started by a former launcher"
    how = f"was {how_it_ended(-died.signal)}" if died.signal else how_it_ended(died.exit_code or 0)
    return logging.ERROR, f"{how}: it {died.reason}" if died.reason else how


def without_deaths(output: bytes) -> bytes:
    """What is left of the end of a model's log without what ``tell`` has added."""
    return _TOLD.sub(b"", output)


def _append(log: Path, line: str) -> None:
    """At once, because others append as well. The last one may have ended within a line."""
    descriptor = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        begun = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" * begun + line.encode(errors="backslashreplace") + b"\n")
    finally:
        os.close(descriptor)
