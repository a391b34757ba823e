"""What a request costs: CPU time of every process of Conch, by process, while it is under load.

    python benchmarks/cpu_per_request.py [--clients N] [--seconds N] [json | binary | identity]

Latency hides costs and throughput adds them up; this says who spends them. With ``--url`` and ``--pids`` it looks at a
server that is running already, of whatever kind.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it can be run as a file

from benchmarks import models, servers
from benchmarks.load import Measurement, ask_once, measure
from benchmarks.processes import command, descendants

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
REQUESTS: dict[str, Callable[[], models.HttpRequest]] = {
    "json": models.add_sub_json,
    "binary": models.add_sub_binary,
    "identity": lambda: models.identity(1 << 20),
}


def cpu_seconds(pid: int) -> tuple[float, float]:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) * TICK_S, int(fields[12]) * TICK_S


def report(pids: list[int], address: str, request: models.HttpRequest, clients: int, seconds: float) -> None:
    ask_once(address, request)
    measure(address, request, clients, 1)
    before = {pid: cpu_seconds(pid) for pid in pids}
    result: Measurement = measure(address, request, clients, seconds)
    count = result.requests_per_s * seconds
    print(f"{result.requests_per_s:,.0f} requests/s, p50 {result.p50_s * 1e6:.0f} µs, {clients} clients\n")
    print("| process | user µs/request | system µs/request |\n|---|---:|---:|")
    for pid in pids:
        (user, system), (user_before, system_before) = cpu_seconds(pid), before[pid]
        user_us, system_us = (user - user_before) / count * 1e6, (system - system_before) / count * 1e6
        if user_us + system_us >= 0.5:
            print(f"| {pid} {command(pid)} | {user_us:.1f} | {system_us:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time per request of every process of a server.")
    parser.add_argument("request", nargs="?", choices=REQUESTS, default="json")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--url", default="", metavar="HOST:PORT", help="a running server")
    parser.add_argument("--pids", type=int, nargs="+", default=[], help="its processes")
    options = parser.parse_args()
    request = REQUESTS[options.request]()
    if options.url:
        report(options.pids, options.url, request, options.clients, options.seconds)
        return
    with tempfile.TemporaryDirectory(prefix="conch-bench-") as folder:
        models.write_python_models(Path(folder))
        with servers.conch([Path(folder)]) as server:
            report(descendants(server.pid), server.address, request, options.clients, options.seconds)


if __name__ == "__main__":
    main()
