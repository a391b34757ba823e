"""How long Conch and Triton take from the command to a ready server, with the example models.

    python -m benchmarks.start [--rounds N]

Triton is the one of ``$CONCH_TRITON_VENV``; without it only Conch is measured.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from benchmarks import real_triton, servers
from benchmarks.models import ROOT
from benchmarks.servers import Server

EXAMPLE_MODELS = ROOT / "examples" / "model_repository"


def start_s(start: Callable[..., AbstractContextManager[Server]]) -> float:
    begin = time.monotonic()
    with start([EXAMPLE_MODELS]):
        return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds from the command to a ready server.")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="[5]")
    options = parser.parse_args()
    rivals = {"Conch": servers.conch}
    if real_triton.installed():
        rivals["Triton"] = servers.triton
    found: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(options.rounds):
        for name, start in rivals.items():
            found[name].append(start_s(start))
    print("| server | median | fastest | slowest |\n|---|---:|---:|---:|")
    for name, seconds in found.items():
        print(f"| {name} | {statistics.median(seconds):.2f} s | {min(seconds):.2f} s | {max(seconds):.2f} s |")


if __name__ == "__main__":
    main()
