"""Runs Triton's official perf_analyzer in every mode that applies, against Conch, and checks what it says.

Started by `scripts/perf-analyzer-modes`, which says how. `--triton` runs the modes against the real Triton, which tells
whether a failure is perf_analyzer's or the server's.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import perf_analyzer, servers
from benchmarks.load import LoadFailed
from benchmarks.perf_analyzer import SERVER_PARTS, Report
from benchmarks.servers import Server

MODELS = Path(__file__).parents[1] / "examples" / "client-models"
SERVED_MODELS = ("simple", "simple_string", "simple_identity", "custom_identity_int32")
MODE_S = 1.2
#: stand in for files in ``Mode.arguments``
INTEGERS, STRINGS = "INTEGERS.json", "STRINGS.json"
PROTOCOLS = ("http", "grpc")


@dataclass(frozen=True)
class Mode:
    features: str
    arguments: tuple[str, ...] = ()
    protocols: tuple[str, ...] = PROTOCOLS
    model: str = "simple"


@dataclass(frozen=True)
class Outcome:
    """``failure`` is empty if all is as it must be. ``report`` is that of the highest load."""

    mode: Mode
    protocol: str
    report: Report | None
    seconds: float
    failure: str


MODES = [
    Mode("one client"),
    Mode("levels of concurrency", ("--concurrency-range", "1:8:4")),
    Mode("asynchronous", ("--async", "--concurrency-range", "8")),
    Mode("synchronous", ("--sync", "--concurrency-range", "8")),
    Mode("stream", ("--streaming", "--concurrency-range", "8"), ("grpc",)),
    Mode("stream, asynchronous", ("--streaming", "--async", "--concurrency-range", "8"), ("grpc",)),
    Mode("system shared memory", ("--shared-memory", "system", "--concurrency-range", "4")),
    Mode(
        "system shared memory, strings",
        ("--shared-memory", "system", "--output-shared-memory-size", "2048", "--string-data", "12"),
        model="simple_string",
    ),
    Mode("system shared memory, stream", ("--shared-memory", "system", "--streaming"), ("grpc",)),
    Mode("request rate", ("--request-rate-range", "200")),
    Mode("request rate, Poisson", ("--request-rate-range", "200", "--request-distribution", "poisson")),
    Mode("number of requests", ("--request-count", "200")),
    Mode("windows of requests", ("--measurement-mode", "count_windows", "--measurement-request-count", "100")),
    Mode("95th percentile", ("--percentile", "95")),
    Mode("batches of 8", ("-b", "8")),
    Mode("data: zeros", ("--input-data", "zero")),
    Mode("data: random", ("--input-data", "random")),
    Mode("data: a file", ("--input-data", INTEGERS)),
    Mode("data: a file, strings", ("--input-data", STRINGS), model="simple_string"),
    Mode("data: strings of a length", ("--string-length", "32", "--shape", "INPUT0:4"), model="simple_identity"),
    Mode("shapes", ("--shape", "INPUT0:1000"), model="custom_identity_int32"),
    Mode("tensors as JSON", ("--input-tensor-format", "json", "--output-tensor-format", "json"), ("http",)),
    Mode("gzip", ("--grpc-compression-algorithm", "gzip"), ("grpc",)),
    Mode("deflate", ("--grpc-compression-algorithm", "deflate"), ("grpc",)),
    Mode("headers", ("-H", "test:1")),
    Mode("request parameters", ("--request-parameter", "level:3:int"), ("grpc",)),
]


def write_data(folder: Path) -> None:
    numbers = list(range(16))
    (folder / INTEGERS).write_text(
        json.dumps({"data": [{"INPUT0": {"content": numbers, "shape": [16]}, "INPUT1": numbers}]})
    )
    texts = [str(number) for number in numbers]
    (folder / STRINGS).write_text(json.dumps({"data": [{"INPUT0": texts, "INPUT1": texts}]}))


def failed_requests(server: Server, model: str) -> int:
    with urllib.request.urlopen(f"http://{server.address}/v2/models/{model}/stats", timeout=5) as response:
        [statistics] = json.loads(response.read())["model_stats"]
    return int(statistics["inference_stats"]["fail"]["count"])


def complaint(reports: Sequence[Report], failed: int) -> str:
    """What is wrong with a run, or nothing."""
    if failed:
        return f"{failed} requests failed"
    for report in reports:
        if report.inferences_per_s <= 0:
            return "no throughput"
        if len(report.server_parts_s) < len(SERVER_PARTS) or not any(report.server_parts_s):
            return "no breakdown of the server's time"
        if sum(report.server_parts_s) > report.latency_s:
            return (
                f"the server's parts add up to {sum(report.server_parts_s) * 1e6:.0f} µs, "
                f"the client waits {report.latency_s * 1e6:.0f} µs"
            )
    return ""


def run_mode(mode: Mode, protocol: str, server: Server, data: Path) -> Outcome:
    arguments = [str(data / word) if word in (INTEGERS, STRINGS) else word for word in mode.arguments]
    address = server.grpc_address if protocol == "grpc" else server.address
    begin = time.monotonic()
    report, failure = None, ""
    try:
        failed_before = failed_requests(server, mode.model)
        reports = perf_analyzer.run(mode.model, protocol, address, arguments, MODE_S)
        report = reports[-1]
        failure = complaint(reports, failed_requests(server, mode.model) - failed_before)
    except (LoadFailed, OSError) as error:
        failure = str(error)
    return Outcome(mode, protocol, report, time.monotonic() - begin, failure)


def row(outcome: Outcome) -> str:
    mode, report = outcome.mode, outcome.report
    cells = [mode.features, outcome.protocol, mode.model, "failed" if outcome.failure else "passed"]
    if report is None:
        cells += ["–"] * (2 + len(SERVER_PARTS))
    else:
        microseconds = [part * 1e6 for part in (report.latency_s, *report.server_parts_s)]
        cells += [f"{report.inferences_per_s:,.0f}", *(f"{each:,.0f}" for each in microseconds)]
    return "| " + " | ".join([*cells, f"{outcome.seconds:.1f}"]) + " |"


def header() -> str:
    names = ["mode", "protocol", "model", "result", "/s", "latency µs", "queue", "input", "infer", "output", "seconds"]
    return "| " + " | ".join(names) + " |\n|---|---|---|---|" + "---:|" * (len(names) - 4)


def chosen_runs(pattern: str) -> Iterator[tuple[Mode, str]]:
    for mode in MODES:
        for protocol in mode.protocols:
            if pattern in f"{protocol} {mode.features}":
                yield mode, protocol


def run_all(
    runs: Sequence[tuple[Mode, str]], start: Callable[[], contextlib.AbstractContextManager[Server]]
) -> list[str]:
    """Prints the table as it comes; returns what failed."""
    failures = []
    with tempfile.TemporaryDirectory(prefix="conch-perf-analyzer-") as name, start() as server:
        write_data(Path(name))
        print(header())
        for mode, protocol in runs:
            outcome = run_mode(mode, protocol, server, Path(name))
            print(row(outcome), flush=True)
            if outcome.failure:
                failures.append(f"{protocol} {mode.features}: {outcome.failure}")
    return failures


def main() -> None:
    parser = argparse.ArgumentParser(prog="perf-analyzer-modes", description="Runs perf_analyzer in every mode.")
    parser.add_argument("--only", default="", metavar="PATTERN", help='only if "PROTOCOL MODE" contains this')
    parser.add_argument("--server-flag", action="append", default=[], metavar="FLAG", help="--server-flag=--FLAG=VALUE")
    parser.add_argument("--triton", action="store_true", help="against the real Triton")
    options = parser.parse_args()
    runs = list(chosen_runs(options.only))
    if not runs:
        sys.exit(f"no protocol and mode contain {options.only!r}")
    if not perf_analyzer.installed():
        sys.exit(
            f"there is no {perf_analyzer.command()[0]}: install perf-analyzer, or name the command in $PERF_ANALYZER"
        )
    start = servers.triton if options.triton else servers.conch
    flags = ["--model-control-mode=explicit", *(f"--load-model={model}" for model in SERVED_MODELS)]
    flags += options.server_flag
    try:
        failures = run_all(runs, lambda: start([MODELS], flags))
    except servers.DoesNotStart as error:
        sys.exit(str(error))
    print("\n" + "\n".join(failures) if failures else "\nall passed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
