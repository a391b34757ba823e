"""How much memory is left for segments that no file system's size limits.

To reserve more than there is would not fail: the kernel would kill somebody, in a container mostly everybody.
"""

from pathlib import Path

#: left to everybody else
RESERVE_NBYTES = 128 << 20
_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def has_room(nbytes: int) -> bool:
    """Whether the machine, and the container if there is one (cgroup v2), can give so much."""
    available = [_available_in_machine(), _available_in_cgroup()]
    return all(each is None or each >= nbytes + RESERVE_NBYTES for each in available)


def _available_in_machine() -> int | None:
    return _number(_MEMINFO, "MemAvailable:", 1024)


def _available_in_cgroup() -> int | None:
    """None without a limit, or if it cannot be read."""
    try:
        own = next(line for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::"))
        folder = _CGROUPS / own.removeprefix("0::/")
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError, StopIteration):  # "max" is no limit
        return None
    # files that the kernel can drop count as used
    return limit - used + (_number(folder / "memory.stat", "inactive_file", 1) or 0)


def _number(path: Path, key: str, unit_nbytes: int) -> int | None:
    try:
        with path.open() as file:
            for line in file:
                if line.startswith(key):
                    return int(line.split()[1]) * unit_nbytes
    except (OSError, ValueError, IndexError):
        pass
    return None
