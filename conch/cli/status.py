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
from conch.cli.tables import draw
from conch.errors import InvalidArgument
from conch.messages import (
    PROTOCOL_VERSION,
    Answer,
    AskStatus,
    InstanceStatus,
    ObserverHello,
    QueueStatus,
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
#: for how long an instance must have run one batch that this is worth saying
_LONG_S = 1.0
_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


class Arguments(msgspec.Struct, frozen=True):
    run_dir: str = ""
    http_port: int = 0
    as_json: bool = False
    timeout_secs: int = 5


class ProcessRow(msgspec.Struct, frozen=True):
    """``memory_nbytes`` is the resident set, shared memory included. ``inflight`` is what a frontend waits for."""

    name: str
    pid: int
    state: str
    memory_nbytes: int
    restarts: int
    inflight: int
    last_error: str


class InstanceRow(msgspec.Struct, frozen=True):
    """One model instance. ``busy_s``: how long it has run its present batch. ``retry_in_s``: in how long a backed-off
    one is started again."""

    model: str
    version: int
    instance: str
    pid: int
    state: str
    memory_nbytes: int
    executions: int
    restarts: int
    last_error: str
    busy_s: float
    retry_in_s: float


class Report(msgspec.Struct, frozen=True):
    """What ``--json`` prints. ``server`` is empty when the broker did not answer."""

    run_dir: str
    server: str
    processes: tuple[ProcessRow, ...]
    models: tuple[QueueStatus, ...]
    instances: tuple[InstanceRow, ...]


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
        print(msgspec.json.format(msgspec.json.encode(_named(report))).decode())
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


def ask_supervisord(run_dir: RunDir, timeout_secs: float) -> list[ProcessRow]:
    """supervisord itself and its programs; nothing if it does not answer."""
    transport = _UnixTransport(run_dir.supervisor_socket, timeout_secs)
    proxy = xmlrpc.client.ServerProxy("http://localhost", transport=transport)
    try:
        with proxy:
            own_pid: Any = proxy.supervisor.getPID()
            programs: Any = proxy.supervisor.getAllProcessInfo()
            restarts: Any = proxy.conch.getRestarts()
    except (OSError, http.client.HTTPException, xmlrpc.client.Error):
        return []
    rows = [_process("supervisord", own_pid, "running", 0, "")]
    for program in programs:
        count, last_exit = restarts.get(program["name"], (0, ""))
        rows.append(_process(program["name"], program["pid"], program["statename"].lower(), count, last_exit))
    return rows


def _process(name: str, pid: int, state: str, restarts: int, last_error: str) -> ProcessRow:
    return ProcessRow(name, pid, state, memory_nbytes(pid), restarts, 0, last_error)


def memory_nbytes(pid: int) -> int:
    """Resident set, 0 if the process is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE_NBYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


# ---------------------------------------------------------------------------------------------------------- reporting


def make_report(run_dir: RunDir, answer: ServerStatus | None, programs: list[ProcessRow]) -> Report:
    """What supervisord and the broker say, put together by pid."""
    if answer is None:
        return Report(str(run_dir.path), "", tuple(programs), (), ())
    inflight = {peer.pid: peer.inflight for peer in answer.processes}
    known = {row.pid for row in programs}
    processes = [msgspec.structs.replace(row, inflight=inflight.get(row.pid, 0)) for row in programs]
    processes += [
        msgspec.structs.replace(_process(peer.role, peer.pid, "running", 0, ""), inflight=peer.inflight)
        for peer in answer.processes
        if peer.pid not in known
    ]
    return Report(
        str(run_dir.path), answer.server, tuple(processes), answer.models, tuple(map(_instance, answer.instances))
    )


def _instance(found: InstanceStatus) -> InstanceRow:
    return InstanceRow(
        model=found.model,
        version=found.version,
        instance=found.instance,
        pid=found.pid,
        state=found.state,
        memory_nbytes=memory_nbytes(found.pid) if found.pid else 0,
        executions=found.executions,
        restarts=found.restarts,
        last_error=found.last_error,
        busy_s=round(found.busy_s, 3),
        retry_in_s=round(found.retry_in_s, 3),
    )


def _named(report: Report) -> Any:
    """Plain data with names: messages are arrays on the wire."""
    data = msgspec.to_builtins(report)
    data["models"] = [{field: getattr(model, field) for field in model.__struct_fields__} for model in report.models]
    return data


def as_text(report: Report) -> str:
    """As tables."""
    text = f"server {report.server or 'unknown'}, run directory {report.run_dir}\n"
    text += draw(
        ("Process", "Pid", "State", "Memory", "In flight", "Restarts", "Last error"),
        [
            (row.name, _number(row.pid), row.state, _mib(row.memory_nbytes), str(row.inflight), str(row.restarts),
             row.last_error)
            for row in report.processes
        ],
    )  # fmt: skip
    if not report.server:
        return text
    text += draw(
        ("Model", "Version", "State", "Queued", "Running", "Reason"),
        [
            (row.model, _number(row.version), row.state, str(row.queued), str(row.running), row.reason)
            for row in report.models
        ],
    )
    text += draw(
        ("Instance", "Version", "Pid", "State", "Memory", "Executions", "Restarts", "Last error"),
        [
            (row.instance, _number(row.version), _number(row.pid), _state(row), _mib(row.memory_nbytes),
             str(row.executions), str(row.restarts), row.last_error)
            for row in report.instances
        ],
    )  # fmt: skip
    return text


def _state(row: InstanceRow) -> str:
    """``busy 12 s``: a model that hangs is busy for ever, while one that works is so anew with every batch."""
    if row.state == "backed-off":
        return f"backed-off, again in {row.retry_in_s:.0f} s"
    if row.busy_s >= _LONG_S:
        return f"busy {row.busy_s:.0f} s" if row.state == "busy" else f"{row.state}, busy {row.busy_s:.0f} s"
    return row.state


def _number(number: int) -> str:
    return str(number) if number > 0 else "-"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 1024**2:.0f} MiB" if nbytes else "-"
