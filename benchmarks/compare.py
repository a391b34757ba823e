"""Measures Conch, the real Triton and a bare onnxruntime loop on the same models, in one run, taking turns.

    python benchmarks/compare.py [--quick] [--triton-url HOST:PORT] [--only PATTERN] [--output FILE]

Triton comes from ``../shared/oracle/triton.sh`` if that is there, else from ``--triton-url``, which must serve the
models that ``--write-repository DIR`` writes. Without either only Conch and the bare loop are measured.

Every case is measured in several rounds; in each, every server has its turn, and who is first changes with the round.
The table shows medians over the rounds. Everything is on this machine, listens on 127.0.0.1, and is stopped at the end.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it can be run as a file

from benchmarks import models, servers
from benchmarks.load import LoadFailed, Measurement, ask_once, measure, wrk_installed
from benchmarks.models import HttpRequest
from benchmarks.servers import Server

MIB = 1 << 20
CLASSIFIER_CLIENTS = 4
BARE = "bare loop"


@dataclass(frozen=True)
class Length:
    """Of a run: rounds, and seconds of one measurement and of the warm-up before it."""

    rounds: int
    measure_s: float
    warm_up_s: float


FULL = Length(rounds=7, measure_s=3, warm_up_s=1)
QUICK = Length(rounds=3, measure_s=1, warm_up_s=1)


@dataclass(frozen=True)
class Case:
    """``unit`` is how many inferences a request counts for."""

    name: str
    request: HttpRequest
    clients: int
    unit: int = 1


def server_cases() -> list[Case]:
    return [
        *(Case(f"add/sub, JSON, {clients} clients", models.add_sub_json(), clients) for clients in (1, 8, 32)),
        *(Case(f"add/sub, binary, {clients} clients", models.add_sub_binary(), clients) for clients in (1, 8, 32)),
        *(Case(f"identity, {size} MiB, 1 client", models.identity(size * MIB), 1) for size in (1, 16)),
        *(Case(f"identity, {size} MiB, 4 clients", models.identity(size * MIB), 4) for size in (1, 16)),
    ]


def classifier_cases() -> list[Case]:
    return [
        Case(
            f"classifier, batch {size}, {CLASSIFIER_CLIENTS} clients",
            models.classification(size),
            CLASSIFIER_CLIENTS,
            size,
        )
        for size in models.CLASSIFIER_BATCH_SIZES
    ]


def measure_bare_loop(model: Path, batch_size: int, seconds: float) -> Measurement:
    """One client of onnxruntime in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bare_loop", str(model), str(batch_size), str(seconds)]
    done = subprocess.run(command, cwd=models.ROOT, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode != 0:
        raise LoadFailed(f"the bare loop failed: {done.stderr}")
    result = json.loads(done.stdout)
    each_s = result["seconds"] / result["batches"]
    return Measurement(1 / each_s, each_s, each_s)


def take_turns(case: Case, rivals: Sequence[Server | Path], length: Length) -> dict[str, list[Measurement]]:
    """``length.rounds`` measurements of every rival: servers, and a model's path for the bare loop."""
    found: dict[str, list[Measurement]] = {}
    long_requests = any(isinstance(rival, Path) for rival in rivals)
    for rival in rivals:
        if isinstance(rival, Server):
            ask_once(rival.address, case.request)
    for number in range(length.rounds):
        for rival in rivals if number % 2 == 0 else reversed(rivals):
            if isinstance(rival, Server):
                measure(rival.address, case.request, case.clients, length.warm_up_s, long_requests)
                result = measure(rival.address, case.request, case.clients, length.measure_s, long_requests)
                found.setdefault(rival.name, []).append(result)
            else:
                found.setdefault(BARE, []).append(measure_bare_loop(rival, case.unit, length.measure_s))
    return found


# --------------------------------------------------------------------------------------------------------------- tables


def summary(case: Case, found: list[Measurement]) -> Measurement:
    return Measurement(
        statistics.median(each.requests_per_s for each in found) * case.unit,
        statistics.median(each.p50_s for each in found),
        statistics.median(each.p99_s for each in found),
    )


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"


def row(case: Case, found: dict[str, list[Measurement]], rival: str) -> str:
    ours = summary(case, found["Conch"])
    cells = [case.name, f"{ours.requests_per_s:,.0f}"]
    theirs = summary(case, found[rival]) if rival in found else None
    cells.append(f"{theirs.requests_per_s:,.0f}" if theirs else "–")
    cells.append(f"**{ours.requests_per_s / theirs.requests_per_s:.2f}**" if theirs else "–")
    cells.append(milliseconds(ours.p50_s))
    cells.append(milliseconds(theirs.p50_s) if theirs else "–")
    cells.append(f"{ours.p50_s / theirs.p50_s:.2f}" if theirs else "–")
    cells.append(milliseconds(ours.p99_s))
    cells.append(milliseconds(theirs.p99_s) if theirs else "–")
    return "| " + " | ".join(cells) + " |"


def header(rival: str) -> str:
    names = ["case", "Conch /s", f"{rival} /s", "ratio", "Conch p50", f"{rival} p50", "ratio"]
    names += ["Conch p99", f"{rival} p99"]
    return "| " + " | ".join(names) + " |\n|---|" + "---:|" * (len(names) - 1)


def describe(length: Length, running: Sequence[Server]) -> str:
    versions = ", ".join(f"{server.name} {server.version()}" for server in running)
    generator = "wrk -t1" if wrk_installed() else "benchmarks/load.py (wrk is not installed)"
    return (
        f"{versions}; {os.cpu_count()} cores shared with the load; Python {platform.python_version()}; "
        f"load by {generator}; medians of {length.rounds} rounds of {length.measure_s:g} s, each after "
        f"{length.warm_up_s:g} s of warm-up, taking turns."
    )


# ------------------------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def running_servers(repository: Path, classifier: Path, triton_url: str) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(servers.conch([repository, classifier]))]
        if triton_url:
            found.append(Server("Triton", triton_url))
        elif servers.ORACLE.exists():
            found.append(stack.enter_context(servers.triton([repository])))
        else:
            print("no Triton to compare with: give --triton-url", file=sys.stderr)
        yield found


def run(options: argparse.Namespace, work: Path) -> list[str]:
    """The tables, as lines of Markdown."""
    length = QUICK if options.quick else FULL
    models.write_python_models(work / "models")
    onnx_file = models.write_classifier(work / "classifier")
    with running_servers(work / "models", work / "classifier", options.triton_url) as running:
        lines = [describe(length, running), "", header("Triton")]
        for case in server_cases():
            if options.only in case.name:
                lines.append(row(case, take_turns(case, running, length), "Triton"))
                print(lines[-1], file=sys.stderr)
        lines += ["", header(BARE)]
        for case in classifier_cases():
            if options.only in case.name:
                lines.append(row(case, take_turns(case, [running[0], onnx_file], length), BARE))
                print(lines[-1], file=sys.stderr)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures Conch, Triton and a bare onnxruntime loop, taking turns.")
    parser.add_argument("--quick", action="store_true", help="about two minutes instead of ten; less certain")
    parser.add_argument("--triton-url", default="", metavar="HOST:PORT", help="a Triton that is running already")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only cases whose name contains this")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the tables there as well")
    parser.add_argument("--write-repository", type=Path, metavar="DIR", help="only write the models for --triton-url")
    options = parser.parse_args()
    if options.write_repository:
        models.write_python_models(options.write_repository)
        return
    with tempfile.TemporaryDirectory(prefix="conch-bench-") as folder:
        text = "\n".join(run(options, Path(folder))) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
