"""Measures Conch, the real Triton and a bare onnxruntime loop on the same models, in one run, taking turns.

    scripts/benchmark [--quick] [--rounds N] [--triton-url HOST:PORT] [--only PATTERN] [--output FILE]

Triton is the one of ``$CONCH_TRITON_VENV``, which ``scripts/benchmark`` makes, or is at ``--triton-url`` and serves the
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
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it can be run as a file

from benchmarks import models, perf_analyzer, python_models, real_triton, servers
from benchmarks.cases import Case, HttpLoad, add_sub_cases, classifier_cases, identity_cases, python_cases
from benchmarks.load import LoadFailed, Measurement, wrk_installed
from benchmarks.servers import Server
from benchmarks.streaming import Counting

BARE = "bare loop"


@dataclass(frozen=True)
class Length:
    """Of a run: rounds, and seconds of one measurement and of the warm-up before it."""

    rounds: int
    measure_s: float
    warm_up_s: float


FULL = Length(rounds=7, measure_s=3, warm_up_s=1)
QUICK = Length(rounds=3, measure_s=1, warm_up_s=1)


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
    for rival in rivals:
        if isinstance(rival, Server):
            case.load.check(rival)
    for number in range(length.rounds):
        for rival in rivals if number % 2 == 0 else reversed(rivals):
            if isinstance(rival, Server):
                case.load.measure(rival, case.clients, length.warm_up_s)
                result = case.load.measure(rival, case.clients, length.measure_s)
                found.setdefault(rival.name, []).append(result)
            else:
                found.setdefault(BARE, []).append(measure_bare_loop(rival, case.unit, length.measure_s))
    return found


def can_be_measured(case: Case) -> bool:
    """Says so if not."""
    if isinstance(case.load, (HttpLoad, Counting)) or perf_analyzer.installed():
        return True
    print(f"left out: {case.name}: needs perf_analyzer; name the command in $PERF_ANALYZER", file=sys.stderr)
    return False


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
        f"load by {generator}, for gRPC and shared memory by perf_analyzer; "
        f"medians of {length.rounds} rounds of {length.measure_s:g} s, each after "
        f"{length.warm_up_s:g} s of warm-up, taking turns."
    )


# ------------------------------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def running_servers(repository: Path, classifier: Path, given: Server | None) -> Iterator[list[Server]]:
    """Conch, and Triton: ``given``, or one of our own where it can be had."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(servers.conch([repository, classifier]))]
        if given is not None:
            found.append(given)
        elif real_triton.installed():
            found.append(stack.enter_context(servers.triton([repository])))
        else:
            print("no Triton to compare with: start scripts/benchmark, or give --triton-url", file=sys.stderr)
        yield found


def write_models(repository: Path) -> None:
    models.write_python_models(repository)
    python_models.write_chain(repository)
    python_models.write_counter(repository)


def run(options: argparse.Namespace, work: Path) -> list[str]:
    """The tables, as lines of Markdown."""
    length = QUICK if options.quick else FULL
    if options.rounds:
        length = replace(length, rounds=options.rounds)
    given = Server("Triton", options.triton_url, options.triton_grpc_url) if options.triton_url else None
    write_models(work / "models")
    onnx_file = models.write_classifier(work / "classifier")
    with running_servers(work / "models", work / "classifier", given) as running:
        lines = [describe(length, running)]
        comparisons: list[tuple[list[Case], Sequence[Server | Path], str]] = [
            (add_sub_cases() + identity_cases() + python_cases(), running, "Triton"),
            (classifier_cases(), [running[0], onnx_file], BARE),
        ]
        for cases, rivals, name in comparisons:
            chosen = [case for case in cases if options.only in case.name and can_be_measured(case)]
            lines += ["", header(name)] if chosen else []
            for case in chosen:
                lines.append(row(case, take_turns(case, rivals, length), name))
                print(lines[-1], file=sys.stderr)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures Conch, Triton and a bare onnxruntime loop, taking turns.")
    parser.add_argument("--quick", action="store_true", help="about ten minutes instead of thirty; less certain")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="of every case, instead of 7 or 3")
    parser.add_argument("--triton-url", default="", metavar="HOST:PORT", help="a Triton that is running already")
    parser.add_argument("--triton-grpc-url", default="", metavar="HOST:PORT", help="its gRPC endpoint")
    parser.add_argument("--only", default="", metavar="PATTERN", help="only cases whose name contains this")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the tables there as well")
    parser.add_argument("--write-repository", type=Path, metavar="DIR", help="only write the models for --triton-url")
    options = parser.parse_args()
    if options.write_repository:
        write_models(options.write_repository)
        return
    with tempfile.TemporaryDirectory(prefix="conch-bench-") as folder:
        text = "\n".join(run(options, Path(folder))) + "\n"
    print(text, end="")
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
