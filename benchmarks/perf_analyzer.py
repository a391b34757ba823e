"""Load by Triton's official ``perf_analyzer``: one program for HTTP, gRPC and shared memory, not ours, in C++.

``$PERF_ANALYZER`` is the command that starts it; otherwise the one on the path is taken.
"""

import csv
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import LoadFailed

#: the smallest number of windows that it takes; its figures are those of all of them together
WINDOWS = 3
#: per cent by which the windows may differ. We measure a number of times ourselves, so it need not wait for a calm one.
ANY_STABILITY = 999
#: what it may take beyond its windows: starting, installing itself on its first call, preparing data
GRACE_S = 120

#: what it says when a window ended before a request did; then the windows are stretched by these factors
TOO_SHORT = ("Please use a larger time window", "Please try to increase the --measurement-interval")
STRETCHES = (1, 3, 9)

SERVER_PARTS = ("Server Queue", "Server Compute Input", "Server Compute Infer", "Server Compute Output")


@dataclass(frozen=True)
class Report:
    """``latency_s`` is the mean, or the 95th percentile where that was asked for; ``server_parts_s`` are the means of
    what the server reports: queue, compute input, infer and output."""

    inferences_per_s: float
    latency_s: float
    p50_s: float
    p99_s: float
    server_parts_s: tuple[float, ...]

    @classmethod
    def of_row(cls, row: Mapping[str, str]) -> "Report":
        return cls(
            inferences_per_s=float(row["Inferences/Second"]),
            latency_s=_seconds(row.get("Avg latency") or row["p95 latency"]),
            p50_s=_seconds(row["p50 latency"]),
            p99_s=_seconds(row["p99 latency"]),
            server_parts_s=tuple(_seconds(row[part]) for part in SERVER_PARTS if row.get(part)),
        )


def _seconds(microseconds: str) -> float:
    return float(microseconds) / 1e6


def command() -> list[str]:
    return shlex.split(os.environ.get("PERF_ANALYZER") or "perf_analyzer")


def installed() -> bool:
    return shutil.which(command()[0]) is not None


def run(model: str, protocol: str, address: str, arguments: Sequence[str], seconds: float) -> list[Report]:
    """One report for every level of load that ``arguments`` name. ``protocol``: http or grpc.

    Each level takes ``seconds``, and more only where so few requests are done that a window has none. Raises
    ``LoadFailed`` with what it printed unless it ends well, which it does only if every request succeeded.
    """
    words = [*command(), "-m", model, "-u", address, "-i", protocol, *arguments]
    for stretch in STRETCHES:
        reports, output = _run(words, seconds * stretch)
        if reports or not any(complaint in output for complaint in TOO_SHORT):
            break
    if not reports:
        raise LoadFailed(f"{shlex.join(words)}:\n{output[-2000:]}")
    return reports


def _run(words: Sequence[str], seconds: float) -> tuple[list[Report], str]:
    """What it measured, nothing if it failed, and what it printed."""
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        windows = ["-p", str(round(seconds / WINDOWS * 1000)), "-r", str(WINDOWS), "-s", str(ANY_STABILITY)]
        try:
            done = subprocess.run(
                [*words, "--verbose-csv", "-f", file.name, *windows],
                capture_output=True,
                text=True,
                timeout=10 * seconds + GRACE_S,
            )
        except subprocess.TimeoutExpired:
            raise LoadFailed(f"perf_analyzer hangs: {shlex.join(words)}") from None
        except FileNotFoundError as error:
            raise LoadFailed(f"no perf_analyzer: {error}. Name the command in $PERF_ANALYZER") from None
        with Path(file.name).open(newline="") as rows:
            reports = [Report.of_row(row) for row in csv.DictReader(rows)]
    return reports if done.returncode == 0 else [], done.stdout + done.stderr
