"""How much memory is left for segments that no file system's size limits.

To reserve more than there is would not fail: the kernel would kill somebody, in a container mostly everybody.
"""

from pathlib import Path

#: left to everybody else: of all that there is, one in so many bytes, and no more than that
_RESERVED_PART = 16
_MOST_RESERVED_NBYTES = 128 << 20
_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def has_room(nbytes: int) -> bool:
    """Whether the machine, and the container if there is one (cgroup v2), can give so much."""
    for found in (_machine(), _cgroup()):
        if found is not None:
            available, total = found
            if nbytes + min(total // _RESERVED_PART, _MOST_RESERVED_NBYTES) > available:
                return False
    return True


def _machine() -> tuple[int, int] | None:
    """What is available, and all that there is. None if it cannot be read."""
    available, total = _number(_MEMINFO, "MemAvailable:", 1024), _number(_MEMINFO, "MemTotal:", 1024)
    return None if available is None or total is None else (available, total)


def _cgroup() -> tuple[int, int] | None:
    """As ``_machine``. None without a limit."""
    try:
        own = next(line for line in _OWN_CGROUP.read_text().splitlines() if line.startswith("0::"))
        folder = _CGROUPS / own.removeprefix("0::/")
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError, StopIteration):  # "max" is no limit
        return None
    # files that the kernel can drop count as used
    return limit - used + (_number(folder / "memory.stat", "inactive_file", 1) or 0), limit


def _number(path: Path, key: str, unit_nbytes: int) -> int | None:
    try:
        with path.open() as file:
            for line in file:
                if line.startswith(key):
                    return int(line.split()[1]) * unit_nbytes
    except (OSError, ValueError, IndexError):
        pass
    return None
