"""``conch logs MODEL``: what a model's workers print and log. It stays when the server has ended.

Exit codes: 0 shown; 1 no such server or no such log; 2 wrong arguments.
"""

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from conch.cli.logs import Follower, readable
from conch.cli.running import NoServer, find_server
from conch.run_dir import RunDir

_LOOK_S = 0.2


def logs(arguments: Sequence[str]) -> int:
    """Prints the log's end; returns the exit status."""
    parser = argparse.ArgumentParser("conch logs", description="Show what a model prints and logs.")
    parser.add_argument("model")
    parser.add_argument("-n", "--lines", type=int, default=100, help="as many of the last lines (100)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    add_server(parser)
    wanted = parser.parse_args(arguments)
    try:
        run_dir = RunDir(wanted.run_dir or find_server("", wanted.http_port).run_dir)
    except NoServer as error:
        print(f"conch logs: {error}", file=sys.stderr)
        return 1
    path = run_dir.model_log(wanted.model)
    if not path.is_file():
        there_are = ", ".join(sorted(file.stem for file in run_dir.model_logs.glob("*.log"))) or "none"
        print(f"conch logs: no model '{wanted.model}' has run here; there are logs of: {there_are}", file=sys.stderr)
        return 1
    try:
        _show(path, max(0, wanted.lines), wanted.follow)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it flushes
    return 0


def add_server(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which server."""
    parser.add_argument("--run-dir", default="", help="of the server; default: the only one of yours that is running")
    parser.add_argument("--http-port", type=int, default=0, help="of the server")


def _show(path: Path, count: int, follow: bool) -> None:
    follower = Follower(path)
    with path.open("rb") as file:
        last = deque(file, maxlen=count)
    _print(line.removesuffix(b"\n") for line in last)
    while follow:
        time.sleep(_LOOK_S)
        _print(follower.lines())


def _print(lines: Iterable[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.writelines(each + b"\n" for each in readable(line))
    sys.stdout.flush()
