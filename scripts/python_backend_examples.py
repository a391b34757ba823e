"""Runs the examples of Triton's official python_backend repository, models and clients unmodified; prints a table.

Started by `scripts/python-backend-examples`, which says how. `--triton` runs them against the real Triton, which tells
whether a failure is an example's or the server's.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import servers
from scripts.client_examples import is_free, last_lines
from scripts.python_backend_example_table import EXAMPLES, Example, Model
from scripts.python_backend_stand_ins import write_stand_ins

UPSTREAM = "https://github.com/triton-inference-server/python_backend"
#: written in the clients: HTTP, gRPC, metrics
PORTS = (8000, 8001, 8002)


def examples_folder(python_backend: Path | None, work: Path) -> Path:
    """Of the given checkout, or of a fresh clone in ``work``."""
    if python_backend is None:
        python_backend = work / "python_backend"
        print(f"Getting {UPSTREAM} ...", file=sys.stderr)
        command = ["git", "clone", "--quiet", "--depth=1", UPSTREAM, str(python_backend)]
        if subprocess.run(command, timeout=300).returncode != 0:
            sys.exit("It cannot be cloned from here: name a checkout with --python-backend")
    folder = python_backend / "examples"
    if not (folder / "add_sub" / "model.py").is_file():
        sys.exit(f"{python_backend} is no checkout of {UPSTREAM}: it has no examples/add_sub/model.py")
    return folder.resolve()


def write_repository(models: Sequence[Model], folder: Path, repository: Path) -> None:
    """Copies the models to where their README says."""
    for model in models:
        version = repository / model.name / "1"
        version.mkdir(parents=True)
        if model.stand_in is not None:
            shutil.copytree(model.stand_in, repository / model.name, dirs_exist_ok=True)
            continue
        shutil.copy(folder / model.code, version / "model.py")
        if model.config:
            shutil.copy(folder / model.config, repository / model.name / "config.pbtxt")


@contextlib.contextmanager
def torch_home(stand_ins: Path) -> Iterator[None]:
    """What the examples would download is where torch looks for what it has downloaded, for the server and clients."""
    former = os.environ.get("TORCH_HOME")
    os.environ["TORCH_HOME"] = str(stand_ins)
    try:
        yield
    finally:
        if former is None:
            del os.environ["TORCH_HOME"]
        else:
            os.environ["TORCH_HOME"] = former


def run_example(example: Example, folder: Path, stand_ins: Path, options: argparse.Namespace) -> str:
    """The failure; empty if it passed."""
    start = servers.triton if options.triton else servers.conch
    flags = ["--allow-metrics=true", f"--metrics-port={PORTS[2]}", *options.server_flag]
    words = [word.replace("STAND_INS", str(stand_ins)) for word in example.arguments]
    client = folder / example.client
    with tempfile.TemporaryDirectory(prefix="conch-python-backend-") as name:
        repository = Path(name)
        write_repository(example.models, folder, repository)
        for path in stand_ins.glob("*.onnx"):
            if (repository / path.stem / "1").is_dir():
                shutil.copy(path, repository / path.stem / "1" / "model.onnx")
        try:
            with start([repository], flags, PORTS[:2]):
                done = subprocess.run(
                    [sys.executable, str(client), *words],
                    cwd=client.parent,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    timeout=options.time_limit,
                    env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
                )
        except servers.DoesNotStart as error:
            return str(error)
        except subprocess.TimeoutExpired as expired:
            output = (expired.stdout or b"").decode(errors="replace")
            return f"not done within {options.time_limit:g} s\n{output}"
    if done.returncode != 0:
        return f"exit status {done.returncode}\n{done.stdout}"
    missing = [text for text in example.prints if text not in done.stdout]
    return f"did not print {missing[0]!r}\n{done.stdout}" if missing else ""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python-backend-examples", description="Runs the official examples of Triton's Python backend."
    )
    given = os.environ.get("CONCH_PYTHON_BACKEND")
    parser.add_argument(
        "--python-backend",
        type=Path,
        metavar="DIR",
        default=Path(given) if given else None,
        help=f"a checkout of {UPSTREAM} [$CONCH_PYTHON_BACKEND, else a clone]",
    )
    parser.add_argument("--only", default="", metavar="PATTERN", help="only examples whose name contains this")
    parser.add_argument("--time-limit", type=float, default=120, metavar="SECONDS", help="of one client [120]")
    parser.add_argument("--server-flag", action="append", default=[], metavar="FLAG", help="--server-flag=--FLAG=VALUE")
    parser.add_argument("--triton", action="store_true", help="run them against the real Triton")
    options = parser.parse_args()
    taken = [port for port in PORTS if not is_free(port)]
    if taken:
        sys.exit(f"the clients have ports {', '.join(map(str, PORTS))} written in them; in use: {taken}")
    failures: dict[str, str] = {}
    lines = ["| example | models | what it shows | result | seconds |", "|---|---|---|---|---:|"]
    with tempfile.TemporaryDirectory(prefix="conch-python-backend-examples-") as name:
        work = Path(name)
        folder = examples_folder(options.python_backend, work)
        stand_ins = work / "stand-ins"
        write_stand_ins(stand_ins)
        with torch_home(stand_ins):
            for example in EXAMPLES:
                if options.only not in example.name:
                    continue
                begin = time.monotonic()
                failures[example.name] = run_example(example, folder, stand_ins, options)
                seconds = time.monotonic() - begin
                result = "failed" if failures[example.name] else "passed"
                models = ", ".join(model.name for model in example.models)
                lines.append(f"| {example.name} | {models} | {example.shows} | {result} | {seconds:.1f} |")
                print(f"{example.name}: {result}", file=sys.stderr)
    print("\n".join(lines))
    for name, failure in failures.items():
        if failure:
            print(f"\n{name}: {last_lines(failure, 30)}")
    failed = sum(1 for failure in failures.values() if failure)
    print(f"\n{len(failures) - failed} passed, {failed} failed. Not run: inferentia, which needs its hardware.")
    sys.exit(1 if failed or not failures else 0)


if __name__ == "__main__":
    main()
