"""``conch debug MODEL``: a terminal on pdb in the worker of a model that ``conch serve --debug=MODEL`` serves.

Exit codes: 0 detached, or the model's process has ended; 1 nothing to attach to, or another one is; 2 wrong arguments.
"""

import argparse
import os
import select
import socket
import sys
from collections.abc import Sequence

from conch.cli.model_logs import add_server
from conch.cli.running import NoServer, find_server
from conch.debugger import DETACHED
from conch.process import LockHeld, hold_lock
from conch.run_dir import RunDir

_HELLO = """attached to '{model}': it stops at its next execute, or at a breakpoint() of its own
c: go on to the next stop; q or Ctrl-D: detach, and it goes on; h: all commands
"""
_ENDED = """
the process of '{model}' has ended: loaded again, unloaded, or dead; 'conch debug {model}' attaches to its successor
"""


def debug(arguments: Sequence[str]) -> int:
    """Attaches until either side ends; returns the exit status."""
    parser = argparse.ArgumentParser("conch debug", description="Attach to a model of 'conch serve --debug=MODEL'.")
    parser.add_argument("model")
    add_server(parser)
    wanted = parser.parse_args(arguments)
    try:
        run_dir = RunDir(wanted.run_dir or find_server("", wanted.http_port).run_dir)
    except NoServer as error:
        print(f"conch debug: {error}", file=sys.stderr)
        return 1
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(run_dir.debug_socket(wanted.model)))
        except OSError:
            print(
                f"conch debug: no process of '{wanted.model}' can be attached to; "
                f"start the server with --debug={wanted.model}, without a port",
                file=sys.stderr,
            )
            return 1
        try:
            lock = hold_lock(run_dir.debug_lock(wanted.model), f"pid {os.getpid()}")
        except LockHeld as error:
            other = error.text or "one that is just starting"
            print(f"conch debug: another terminal is attached to '{wanted.model}': {other}", file=sys.stderr)
            return 1
        print(_HELLO.format(model=wanted.model), end="", file=sys.stderr)
        farewell = ""
        try:
            if _relay(connection):
                farewell = _ENDED.format(model=wanted.model)
        except KeyboardInterrupt:
            farewell = "\n" + DETACHED
        except ConnectionError:
            farewell = _ENDED.format(model=wanted.model)
        finally:
            lock.release()
        print(farewell, end="", file=sys.stderr)
    return 0


def _relay(connection: socket.socket) -> bool:
    """Until the worker closes the connection, or our input ends, which detaches. Returns whether the worker did so
    without a word."""
    last = b""
    while True:
        ready, _, _ = select.select([connection.fileno(), 0], [], [])
        if connection.fileno() in ready:
            data = connection.recv(65536)
            if not data:
                return not last.endswith(DETACHED.encode())
            last = (last + data)[-len(DETACHED) :]
            os.write(1, data)
        if 0 in ready:
            typed = os.read(0, 65536)
            if not typed:
                os.write(1, DETACHED.encode())
                return False
            connection.sendall(typed)
