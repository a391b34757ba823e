"""``conch debug MODEL``: a terminal on pdb in the worker of a model that ``conch serve --debug=MODEL`` serves.

Exit codes: 0 detached, or the model's process has ended; 1 there is nothing to attach to; 2 wrong arguments.
"""

import argparse
import os
import select
import socket
import sys
from collections.abc import Sequence

from conch.cli.model_logs import add_server
from conch.cli.running import NoServer, find_server
from conch.run_dir import RunDir

_HELLO = """attached to '{model}': it stops at its next execute, or at a breakpoint() of its own
c: go on to the next stop; q or Ctrl-D: detach, and it goes on; h: all commands
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
        print(_HELLO.format(model=wanted.model), end="", file=sys.stderr)
        try:
            _relay(connection)
        except (KeyboardInterrupt, ConnectionError):
            print(file=sys.stderr)
    return 0


def _relay(connection: socket.socket) -> None:
    """Until the worker closes the connection, or our input ends, which detaches."""
    while True:
        ready, _, _ = select.select([connection.fileno(), 0], [], [])
        if connection.fileno() in ready:
            data = connection.recv(65536)
            if not data:
                return
            os.write(1, data)
        if 0 in ready:
            typed = os.read(0, 65536)
            if not typed:
                return
            connection.sendall(typed)
