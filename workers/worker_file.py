"""What a worker leaves in the run directory: the file that a later launcher adopts it by."""

import os
from pathlib import Path

import msgspec

from conch.messages import LiveWorker, Spawn
from conch.run_dir import RunDir

#: field 22 of /proc/PID/stat, counted from after the command's closing bracket
_START_TIME_FIELD = 19


class WorkerFile(msgspec.Struct, frozen=True):
    """``RUN_DIR/workers/ID.json``. ``start_time``: in clock ticks since boot, tells the process from a later one with
    the same pid. ``log_offset``: where the worker's output starts in its model's log."""

    worker: str
    pid: int
    start_time: int
    model: str
    version: int
    instance: int
    config_hash: str
    log_offset: int

    @property
    def live_worker(self) -> LiveWorker:
        return LiveWorker(self.worker, self.pid, self.model, self.version, self.instance, self.config_hash)


def write_own(spawn: Spawn, log_offset: int, run_dir: RunDir) -> None:
    """Written by the worker itself, before anybody is told of it: none lives that a launcher cannot find."""
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
    )
    path = run_dir.worker_file(spawn.worker)
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.encode(file))
    unfinished.rename(path)


def read(path: Path) -> WorkerFile | None:
    """None if the file is gone or is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=WorkerFile)
    except (OSError, msgspec.DecodeError):
        return None


def start_time(pid: int) -> int | None:
    """None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat[stat.rindex(b")") + 2 :].split()[_START_TIME_FIELD])
