"""``conch status``: the processes of a running server and its models, as tables or as JSON.

Processes come from supervisord, models and their instances from the broker: each is shown as far as it answers.
Exit codes: 0 shown; 1 no such server, or the broker does not answer; 2 wrong arguments.
"""

import http.client
import os
import socket
import sys
import time
import xmlrpc.client
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq

from conch.channels.zeromq import DealerChannel
from conch.cli.running import NoServer, find_server
from conch.cli.status_report import Programs, as_text, make_report, named, process_row
from conch.errors import InvalidArgument
from conch.messages import (
    PROTOCOL_VERSION,
    Answer,
    AskStatus,
    ObserverHello,
    ServerStatus,
    ToBroker,
    ToObserver,
)
from conch.run_dir import RunDir, new_peer_id
from conch.settings import parse_value

USAGE = """\
usage: conch status [--run-dir DIR | --http-port N] [--json] [--timeout-secs N]

Without --run-dir and --http-port: the only server of yours that is running.
"""


class Arguments(msgspec.Struct, frozen=True):
    run_dir: str = ""
    http_port: int = 0
    as_json: bool = False
    timeout_secs: int = 5


def status(arguments: Sequence[str]) -> int:
    """Prints the report; returns the exit status."""
    try:
        wanted = _parse(arguments)
    except InvalidArgument as error:
        print(f"conch status: {error}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    if wanted is None:
        print(USAGE, end="")
        return 0
    try:
        run_dir = RunDir(find_server(wanted.run_dir, wanted.http_port).run_dir)
    except NoServer as error:
        print(f"conch status: {error}", file=sys.stderr)
        return 1
    answer = ask_broker(run_dir, wanted.timeout_secs)
    report = make_report(run_dir, answer, ask_supervisord(run_dir, wanted.timeout_secs))
    if wanted.as_json:
        print(msgspec.json.format(msgspec.json.encode(named(report))).decode())
    else:
        print(as_text(report), end="")
    if answer is None:
        print(f"conch status: the broker did not answer within {wanted.timeout_secs} s", file=sys.stderr)
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> Arguments | None:
    values: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        name, equals, text = remaining.pop(0).partition("=")
        if name in ("--help", "-h"):
            return None
        if name == "--json" and not equals:
            values["as_json"] = True
            continue
        if name not in ("--run-dir", "--http-port", "--timeout-secs"):
            raise InvalidArgument(f"unknown argument {name}")
        if not equals:
            if not remaining:
                raise InvalidArgument(f"{name} needs a value")
            text = remaining.pop(0)
        values[name[2:].replace("-", "_")] = parse_value(name, text, str if name == "--run-dir" else int)
    return Arguments(**values)


# ------------------------------------------------------------------------------------------------------------- asking


def ask_broker(run_dir: RunDir, timeout_secs: float) -> ServerStatus | None:
    """None if there is no answer in time."""
    deadline = time.monotonic() + timeout_secs
    context = zmq.Context()
    channel: DealerChannel[ToBroker, ToObserver] = DealerChannel(
        context, run_dir.broker_socket, new_peer_id().encode(), ToObserver
    )
    try:
        while (left := deadline - time.monotonic()) > 0:
            channel.monitor.poll(int(min(left * 1000, 50)))
            if True in channel.connection_changes():
                channel.send_nowait(ObserverHello(PROTOCOL_VERSION, os.getpid()))
                channel.send_nowait(AskStatus(1))
                break
        while (left := deadline - time.monotonic()) > 0:
            message = channel.receive(int(left * 1000))
            if isinstance(message, Answer):
                return msgspec.convert(message.result, ServerStatus)
        return None
    finally:
        channel.close()
        context.term()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_secs: float) -> None:
        super().__init__("localhost", timeout=timeout_secs)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path, timeout_secs: float) -> None:
        super().__init__()
        self._path = path
        self._timeout_secs = timeout_secs

    def make_connection(self, host: Any) -> _UnixConnection:
        return _UnixConnection(self._path, self._timeout_secs)


def ask_supervisord(run_dir: RunDir, timeout_secs: float) -> Programs:
    """supervisord itself and its programs; nothing if it does not answer."""
    transport = _UnixTransport(run_dir.supervisor_socket, timeout_secs)
    proxy = xmlrpc.client.ServerProxy("http://localhost", transport=transport)
    try:
        with proxy:
            found: Any = proxy.conch.getReport()
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return Programs()
    rows = [process_row("supervisord", found["pid"], "running")]
    for program in found["programs"]:
        row = process_row(program["name"], program["pid"], program["state"])
        last = program["last_exit"]
        since_s = round(program["since_exit_s"], 3) if last else None
        rows.append(msgspec.structs.replace(row, restarts=program["restarts"], last_error=last, since_death_s=since_s))
    return Programs(tuple(rows), found["stopping"])
