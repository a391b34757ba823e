"""What a worker leaves in the run directory: the file that a later launcher adopts it by."""

import os
from pathlib import Path

import msgspec

from conch.messages import LiveWorker, Spawn
from conch.run_dir import RunDir
from conch.unreadable import UNREADABLE

#: field 22 of /proc/PID/stat, counted from after the command's closing bracket
_START_TIME_FIELD = 19


class WorkerFile(msgspec.Struct, frozen=True):
    """``RUN_DIR/workers/ID.json``. ``start_time``: in clock ticks since boot, tells the process from a later one with
    the same pid. ``log_offset``: where the worker's output starts in its model's log. ``memory_limit_nbytes``: 0 for
    none."""

    worker: str
    pid: int
    start_time: int
    model: str
    version: int
    instance: int
    config_hash: str
    log_offset: int
    instance_name: str = ""
    memory_limit_nbytes: int = 0

    @property
    def live_worker(self) -> LiveWorker:
        return LiveWorker(self.worker, self.pid, self.model, self.version, self.instance, self.config_hash)


def write_own(spawn: Spawn, log_offset: int, run_dir: RunDir) -> None:
    """Written by the worker itself, before anybody is told of it: none lives that a launcher cannot find. Raises
    ``OSError``."""
    pid = os.getpid()
    file = WorkerFile(
        worker=spawn.worker,
        pid=pid,
        start_time=start_time(pid) or 0,
        model=spawn.model,
        version=spawn.version,
        instance=spawn.instance,
        config_hash=spawn.config_hash,
        log_offset=log_offset,
        instance_name=spawn.instance_name,
        memory_limit_nbytes=spawn.memory_limit_nbytes,
    )
    path = run_dir.worker_file(spawn.worker)
    unfinished = path.with_suffix(".new")
    try:
        unfinished.write_bytes(msgspec.json.encode(file))
        unfinished.rename(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def read(path: Path) -> WorkerFile | None:
    """None if the file is gone or is none. Raises ``OSError`` if that cannot be known."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=WorkerFile)
    except (FileNotFoundError, *UNREADABLE):
        return None


def start_time(pid: int) -> int | None:
    """None if there is no such process. Raises ``OSError`` if that cannot be known, for want of descriptors for one."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[_START_TIME_FIELD])
