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
from conch.cli.running import NoServer, find_server, running_servers
from conch.run_dir import RunDir
from conch.settings import Settings, run_dir_places

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
        former = former_run_dir(wanted.http_port)
        if former is None:
            print(f"conch logs: {error}; --run-dir=DIR shows the logs of one that has ended", file=sys.stderr)
            return 1
        print(f"conch logs: {error}; this is what the last one has left in {former.path}", file=sys.stderr)
        run_dir = former
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


def former_run_dir(http_port: int) -> RunDir | None:
    """Where the last server with that port has left its logs, if it had the default run directory for it. Without a
    port: the default one's, unless several servers are running."""
    if not http_port and running_servers():
        return None
    found = (RunDir(f"{place}{http_port or Settings().http_port}") for place in run_dir_places())
    return next((run_dir for run_dir in found if run_dir.model_logs.is_dir()), None)


def _show(path: Path, count: int, follow: bool) -> None:
    follower = Follower(path)
    _print(line.removesuffix(b"\n") for line in _last(path, count))
    while follow:
        time.sleep(_LOOK_S)
        _print(follower.lines())


def _last(path: Path, count: int) -> list[bytes]:
    """Lines of the log, and of the one before if it has just been begun."""
    with path.open("rb") as file:
        last = deque(file, maxlen=count)
    former = path.with_name(f"{path.name}.1")
    if len(last) == count or not former.is_file():
        return list(last)
    with former.open("rb") as file:
        return [*deque(file, maxlen=count - len(last)), *last]


def _print(lines: Iterable[bytes]) -> None:
    for line in lines:
        sys.stdout.buffer.writelines(each + b"\n" for each in readable(line))
    sys.stdout.flush()
