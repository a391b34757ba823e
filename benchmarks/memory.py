"""Does memory stay flat? Looks at all processes of a server before and after many requests of 1 MiB.

    python benchmarks/memory.py [--requests N] [--only PATTERN] [--triton]

HTTP, gRPC and system shared memory over both, each on a server of its own, by perf_analyzer. Ends with status 1 if
the memory has grown by more than ``ALLOWED_GROWTH_NBYTES``.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it can be run as a file

from benchmarks import models, official, perf_analyzer, servers
from benchmarks.official import Identity
from benchmarks.processes import command, descendants, resident_bytes
from benchmarks.servers import Server

MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")
CLIENTS = 4
#: caches fill, pools and arenas grow to what this load needs
WARM_UP_REQUESTS = 1000
#: ``perf_analyzer`` keeps all that it sends and gets until it ends
REQUESTS_PER_RUN = 1000
#: arenas and allocators may still round up: one more request per client, in and out, and then some
ALLOWED_GROWTH_NBYTES = 16 * MIB

LOADS = {
    "HTTP": Identity("http", MIB),
    "gRPC": Identity("grpc", MIB),
    "HTTP, shared memory": Identity("http", MIB, in_shared_memory=True),
    "gRPC, shared memory": Identity("grpc", MIB, in_shared_memory=True),
}


def send(load: Identity, server: Server, requests: int) -> None:
    address = official.address(server, load.protocol)
    for sent in range(0, requests, REQUESTS_PER_RUN):
        count = min(REQUESTS_PER_RUN, requests - sent)
        arguments = ["--concurrency-range", str(CLIENTS), "--request-count", str(count), *load.arguments]
        # a hundred requests a second is far less than any server does
        perf_analyzer.run("identity", load.protocol, address, arguments, count / 100)


def shared_nbytes() -> int:
    """Memory of all segments in ``/dev/shm``, whether somebody still maps them or not."""
    return sum(path.stat().st_blocks * 512 for path in SHARED_MEMORY.iterdir() if path.is_file())


def total(pids: Iterable[int]) -> int:
    """What the processes need together: their shares of what they map add up to no page counted twice."""
    return sum(resident_bytes(pid)[1] for pid in pids)


def mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.1f}"


def look_at(name: str, load: Identity, server: Server, requests: int) -> int:
    """Prints a table, and returns by how many bytes the memory grew: private or shared."""
    load.check(server)
    send(load, server, WARM_UP_REQUESTS)
    pids = descendants(server.pid)
    before = {pid: resident_bytes(pid)[0] for pid in pids}
    total_before, shared_before = total(pids), shared_nbytes()
    send(load, server, requests)
    after = {pid: resident_bytes(pid)[0] for pid in pids}
    total_after, shared_after = total(pids), shared_nbytes()
    print(f"\n{server.name}, {name}: {requests:,} requests of 1 MiB after {WARM_UP_REQUESTS:,} to warm up\n")
    print("| MiB | before | after |\n|---|---:|---:|")
    for pid in pids:
        print(f"| resident: {command(pid)} | {mib(before[pid])} | {mib(after[pid])} |")
    print(f"| all processes, shared pages once | {mib(total_before)} | {mib(total_after)} |")
    print(f"| /dev/shm | {mib(shared_before)} | {mib(shared_after)} |", flush=True)
    return max(total_after - total_before, shared_after - shared_before)


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of a server before and after many requests of 1 MiB.")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="[10000]")
    parser.add_argument("--only", default="", metavar="PATTERN", help=f"only loads that contain this: {list(LOADS)}")
    parser.add_argument("--triton", action="store_true", help="the real Triton instead of Conch")
    options = parser.parse_args()
    start = servers.triton if options.triton else servers.conch
    grown = {}
    with tempfile.TemporaryDirectory(prefix="conch-bench-") as folder:
        models.write_python_models(Path(folder))
        for name, load in LOADS.items():
            if options.only in name:
                with start([Path(folder)]) as server:
                    grown[name] = look_at(name, load, server, options.requests)
    print()
    for name, nbytes in grown.items():
        print(f"{name}: {'flat' if nbytes <= ALLOWED_GROWTH_NBYTES else 'GREW'} ({mib(nbytes)} MiB more)")
    sys.exit(1 if any(nbytes > ALLOWED_GROWTH_NBYTES for nbytes in grown.values()) else 0)


if __name__ == "__main__":
    main()
