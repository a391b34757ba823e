"""Runs the Python examples of Triton's official client repository, unmodified, and prints a table.

Started by `scripts/client-examples`, which says how. `--triton` and `--sequences` run them against the real Triton,
which tells whether a failure is an example's or the server's.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import servers
from benchmarks.servers import Server
from scripts.client_example_table import EXAMPLES, PICTURE, Example, Runs

MODELS = Path(__file__).parents[1] / "examples" / "client-models"
UPSTREAM = "https://github.com/triton-inference-server/client"
#: of this side in pixels, so that it is resized like a photograph
PICTURE_SIDE = 300

SEQUENCE_MODELS = ["simple_sequence", "simple_dyna_sequence", "simple_string_dyna_sequence"]
SERVED_MODELS = ["simple", "simple_int8", "simple_string", "simple_identity", "custom_identity_int32", "densenet_onnx"]
COUNTED_MODELS = ["simple", "simple_string", "simple_identity", "densenet_onnx", *SEQUENCE_MODELS]


@dataclass(frozen=True)
class Outcome:
    """``failure`` is empty if the example passed."""

    example: Example
    seconds: float
    failure: str


# ------------------------------------------------------------------------------------------------------- what is needed


def examples_folder(client: Path | None, work: Path) -> Path:
    """Of the given checkout, or of a fresh clone in ``work``."""
    if client is None:
        client = work / "client"
        print(f"Getting {UPSTREAM} ...", file=sys.stderr)
        if subprocess.run(["git", "clone", "--quiet", "--depth=1", UPSTREAM, str(client)], timeout=300).returncode != 0:
            sys.exit("It cannot be cloned from here: name a checkout with --client")
    folder = client / "src" / "python" / "examples"
    if not folder.is_dir():
        sys.exit(f"{client} is no checkout of {UPSTREAM}: it has no src/python/examples")
    return folder.resolve()


def draw(path: Path) -> None:
    """A red square, in a format that needs no library to write."""
    path.write_bytes(f"P6 {PICTURE_SIDE} {PICTURE_SIDE} 255\n".encode() + b"\xff\0\0" * PICTURE_SIDE**2)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def default_ports_free() -> bool:
    return is_free(8000) and is_free(8001)


def server_flags(runs: Runs, sequences: bool) -> list[str]:
    if runs in (Runs.SEVEN_MODELS, Runs.EIGHT_MODELS):
        return ["--model-control-mode=explicit"]
    models = SERVED_MODELS + (SEQUENCE_MODELS if sequences else [])
    return ["--model-control-mode=explicit", *(f"--load-model={model}" for model in models)]


def server_models(runs: Runs, work: Path) -> Path:
    """The model repository for ``runs``. Some examples count its models."""
    counted = {Runs.SEVEN_MODELS: COUNTED_MODELS, Runs.EIGHT_MODELS: [*COUNTED_MODELS, "simple_int8"]}.get(runs)
    if counted is None:
        return MODELS
    repository = work / runs.name.lower()
    repository.mkdir()
    for model in counted:
        (repository / model).symlink_to((MODELS / model).resolve())
    return repository


# -------------------------------------------------------------------------------------------------------------- running


def run_example(example: Example, folder: Path, server: Server, picture: Path, limit_s: float) -> Outcome:
    words = [str(picture) if word == PICTURE else word for word in example.arguments]
    if example.runs is not Runs.DEFAULT_PORTS:
        words += ["-u", server.grpc_address if example.protocol == "gRPC" else server.address]
    begin = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, str(folder / example.script), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=limit_s,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode(errors="replace")
        return Outcome(example, limit_s, f"not done within {limit_s:g} s\n{output}")
    seconds = time.monotonic() - begin
    if done.returncode != 0:
        return Outcome(example, seconds, f"exit status {done.returncode}\n{done.stdout}")
    if example.prints not in done.stdout:
        return Outcome(example, seconds, f"did not print {example.prints!r}\n{done.stdout}")
    return Outcome(example, seconds, "")


@contextlib.contextmanager
def serving(runs: Runs, options: argparse.Namespace, work: Path) -> Iterator[Server]:
    """A server for these examples, on the default ports if they are free."""
    start = servers.triton if options.triton else servers.conch
    ports = (8000, 8001) if default_ports_free() else None
    flags = [*server_flags(runs, options.sequences), *options.server_flag]
    with start([server_models(runs, work)], flags, ports) as server:
        yield server


def run_all(chosen: Sequence[Example], folder: Path, options: argparse.Namespace, work: Path) -> list[Outcome]:
    picture = work / "picture.ppm"
    draw(picture)
    outcomes = []
    together = (Runs.SERVING, Runs.DEFAULT_PORTS, Runs.SEQUENCES)
    for group in (together, (Runs.SEVEN_MODELS,), (Runs.EIGHT_MODELS,)):
        examples = [example for example in chosen if example.runs in group]
        if not examples:
            continue
        with serving(group[0], options, work) as server:
            for example in examples:
                outcomes.append(run_example(example, folder, server, picture, options.time_limit))
                print("." if not outcomes[-1].failure else "F", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return outcomes


def left_out(folder: Path, sequences: bool) -> dict[str, str]:
    """Scripts that are not run: with the reason."""
    reasons = {
        example.script: f"needs {example.runs.value}"
        for example in EXAMPLES
        if example.runs in (Runs.DECOUPLED, Runs.ENSEMBLE, Runs.GPU)
        or (example.runs is Runs.SEQUENCES and not sequences)
    }
    if not default_ports_free():
        reasons |= {
            example.script: "has ports 8000 and 8001 written in it, and they are taken"
            for example in EXAMPLES
            if example.runs is Runs.DEFAULT_PORTS
        }
    known = {example.script for example in EXAMPLES}
    return reasons | {
        path.name: "is not in scripts/client_example_table.py" for path in folder.glob("*.py") if path.name not in known
    }


# ------------------------------------------------------------------------------------------------------------ reporting


def table(outcomes: Sequence[Outcome]) -> list[str]:
    lines = ["| example | protocol | features | result | seconds |", "|---|---|---|---|---:|"]
    for outcome in outcomes:
        example, result = outcome.example, "failed" if outcome.failure else "passed"
        lines.append(
            f"| {example.command} | {example.protocol} | {example.features} | {result} | {outcome.seconds:.1f} |"
        )
    return lines


def last_lines(text: str, count: int = 12) -> str:
    first, *rest = text.rstrip().splitlines()
    return "\n".join([first, *rest[-count:]])


def report(outcomes: Sequence[Outcome], not_run: dict[str, str]) -> None:
    print("\n".join(table(outcomes)))
    for outcome in outcomes:
        if outcome.failure:
            print(f"\n{outcome.example.command}: {last_lines(outcome.failure)}")
    failed = sum(1 for outcome in outcomes if outcome.failure)
    print(f"\n{len(outcomes) - failed} passed, {failed} failed. Not run:")
    for script, reason in sorted(not_run.items()):
        print(f"- {script} {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="client-examples", description="Runs the official client's examples.")
    given = os.environ.get("CONCH_CLIENT_EXAMPLES")
    parser.add_argument(
        "--client",
        type=Path,
        metavar="DIR",
        default=Path(given) if given else None,
        help=f"a checkout of {UPSTREAM} [$CONCH_CLIENT_EXAMPLES, else a clone]",
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="only examples whose command contains this")
    parser.add_argument("--time-limit", type=float, default=60, metavar="SECONDS", help="of one example [60]")
    parser.add_argument("--server-flag", action="append", default=[], metavar="FLAG", help="--server-flag=--FLAG=VALUE")
    parser.add_argument("--sequences", action="store_true", help="also the examples that need sequences")
    parser.add_argument("--triton", action="store_true", help="run them against the real Triton")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="conch-client-examples-") as name:
        work = Path(name)
        folder = examples_folder(options.client, work)
        not_run = left_out(folder, options.sequences)
        chosen = [example for example in EXAMPLES if example.script not in not_run and options.only in example.command]
        if not chosen:
            sys.exit(f"no example that can run contains {options.only!r}")
        try:
            outcomes = run_all(chosen, folder, options, work)
        except servers.DoesNotStart as error:
            sys.exit(str(error))
    report(outcomes, not_run)
    sys.exit(1 if any(outcome.failure for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
