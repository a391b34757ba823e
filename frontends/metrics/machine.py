"""The machine's processors and memory, as /proc tells."""

from typing import NamedTuple


class Machine(NamedTuple):
    """``utilization``: the share of all processors' time since the last look that was not idle, 0.0 to 1.0."""

    utilization: float
    memory_total_nbytes: int
    memory_used_nbytes: int


class CpuTime(NamedTuple):
    """Since the machine was started, in ticks."""

    busy: int
    idle: int


def parse_cpu_time(stat: str) -> CpuTime:
    """Of the text of /proc/stat. Time that guests used is in the first number already."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, stat.split("\n", 1)[0].split()[1:9])
    return CpuTime(user + nice + system + irq + softirq + steal, idle + iowait)


def parse_memory(meminfo: str) -> tuple[int, int]:
    """Total and used bytes, of the text of /proc/meminfo. What could be freed at once does not count as used."""
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in meminfo.splitlines())}
    return kib["MemTotal"] * 1024, max(0, kib["MemTotal"] - kib["MemAvailable"]) * 1024


def utilization(before: CpuTime, now: CpuTime) -> float:
    # neither may run backwards, but idle time does on some virtual machines
    busy, idle = max(0, now.busy - before.busy), max(0, now.idle - before.idle)
    return busy / (busy + idle) if busy + idle else 0.0


class MachineMeter:
    """``look`` reads /proc; the first time there is no utilization yet."""

    def __init__(self) -> None:
        self._cpu_time = _read_cpu_time()

    def look(self) -> Machine:
        before, self._cpu_time = self._cpu_time, _read_cpu_time()
        with open("/proc/meminfo") as file:
            total, used = parse_memory(file.read())
        return Machine(utilization(before, self._cpu_time), total, used)


def _read_cpu_time() -> CpuTime:
    with open("/proc/stat") as file:
        return parse_cpu_time(file.read())
