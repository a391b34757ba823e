"""What ``conch status`` shows: what supervisord and the broker say together, as tables and as plain data."""

import os
from typing import Any

import msgspec

from conch.cli.tables import draw
from conch.messages import InstanceStatus, QueueStatus, ServerStatus
from conch.run_dir import RunDir

#: for how long an instance must have run one batch that this is worth saying
_LONG_S = 1.0
_PAGE_NBYTES = os.sysconf("SC_PAGE_SIZE")


class ProcessRow(msgspec.Struct, frozen=True):
    """``memory_nbytes`` is the resident set, shared memory included. ``inflight`` is what a frontend waits for.
    ``since_death_s``: how long ago one ended last, as ``last_error`` says; None if none has."""

    name: str
    pid: int
    state: str
    memory_nbytes: int
    restarts: int
    inflight: int
    last_error: str
    since_death_s: float | None = None


class Programs(msgspec.Struct, frozen=True):
    """What supervisord says. ``stopping``: it has been told to end, or to begin anew."""

    rows: tuple[ProcessRow, ...] = ()
    stopping: bool = False


class InstanceRow(msgspec.Struct, frozen=True):
    """One model instance; see ``InstanceStatus``."""

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
    since_death_s: float | None


class Report(msgspec.Struct, frozen=True):
    """What ``--json`` prints. ``server`` is empty when the broker did not answer. ``stopping``: readiness checks fail,
    and soon the server ends. ``not_ready``: the models that make them fail unless ``--strict-readiness=false``."""

    run_dir: str
    server: str
    stopping: bool
    not_ready: tuple[str, ...]
    processes: tuple[ProcessRow, ...]
    models: tuple[QueueStatus, ...]
    instances: tuple[InstanceRow, ...]


def process_row(name: str, pid: int, state: str) -> ProcessRow:
    return ProcessRow(name, pid, state, memory_nbytes(pid), 0, 0, "")


def memory_nbytes(pid: int) -> int:
    """Resident set, 0 if the process is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * _PAGE_NBYTES
    except (FileNotFoundError, ProcessLookupError):
        return 0


def make_report(run_dir: RunDir, answer: ServerStatus | None, programs: Programs) -> Report:
    """What supervisord and the broker say, put together by pid."""
    if answer is None:
        return Report(str(run_dir.path), "", programs.stopping, (), programs.rows, (), ())
    inflight = {peer.pid: peer.inflight for peer in answer.processes}
    known = {row.pid for row in programs.rows}
    processes = [msgspec.structs.replace(row, inflight=inflight.get(row.pid, 0)) for row in programs.rows]
    processes += [
        msgspec.structs.replace(process_row(peer.role, peer.pid, "running"), inflight=peer.inflight)
        for peer in answer.processes
        if peer.pid not in known
    ]
    return Report(
        run_dir=str(run_dir.path),
        server=answer.server,
        stopping=programs.stopping or answer.server == "exiting",
        not_ready=tuple(dict.fromkeys(model.model for model in answer.models if not model.ready)),
        processes=tuple(processes),
        models=answer.models,
        instances=tuple(map(_instance, answer.instances)),
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
        since_death_s=round(found.since_death_s, 3) if found.since_death_s is not None else None,
    )


def named(report: Report) -> Any:
    """Plain data with names: messages are arrays on the wire."""
    data = msgspec.to_builtins(report)
    data["models"] = [{field: getattr(model, field) for field in model.__struct_fields__} for model in report.models]
    return data


def as_text(report: Report) -> str:
    """As tables."""
    text = f"server {_server(report)}, run directory {report.run_dir}\n"
    text += draw(
        ("Process", "Pid", "State", "Memory", "In flight", "Restarts", "Last error"),
        [
            (row.name, _number(row.pid), row.state, _mib(row.memory_nbytes), str(row.inflight), str(row.restarts),
             _dated(row.last_error, row.since_death_s))
            for row in report.processes
        ],
    )  # fmt: skip
    if not report.server:
        return text
    text += draw(
        ("Model", "Version", "State", "Queued", "Running", "Reason"),
        [
            (row.model, _number(row.version), _model_state(row), str(row.queued), str(row.running), row.reason)
            for row in report.models
        ],
    )
    text += draw(
        ("Instance", "Version", "Pid", "State", "Memory", "Executions", "Restarts", "Last error"),
        [
            (row.instance, _number(row.version), _number(row.pid), _state(row), _mib(row.memory_nbytes),
             str(row.executions), str(row.restarts), _dated(row.last_error, row.since_death_s))
            for row in report.instances
        ],
    )  # fmt: skip
    if any(row.last_error for row in report.instances):
        text += "`conch logs MODEL` shows what a model's workers print.\n"
    return text


def _server(report: Report) -> str:
    """What load balancers see of it, as far as that can be told from here."""
    if report.stopping:
        return "stopping"
    if report.server != "ready" or not report.not_ready:
        return report.server or "unknown"
    states = [
        f"{model.model} {model.state if model.state != 'READY' else 'says so itself'}"
        for model in report.models
        if not model.ready
    ]
    models = ", ".join(dict.fromkeys(states))
    return f"ready, but models are not: {models} (readiness checks fail unless --strict-readiness=false)"


def _model_state(row: QueueStatus) -> str:
    """``UNAVAILABLE for 5 min``."""
    return row.state if row.state in ("READY", "UNKNOWN") else f"{row.state} for {duration(row.in_state_s)}"


def _dated(text: str, since_s: float | None) -> str:
    return f"{duration(since_s)} ago: {text}" if text and since_s is not None else text


def duration(seconds: float) -> str:
    """Two to three digits: ``12 s``, ``5 min``, ``3 h``, ``4 days``."""
    for unit, unit_s in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _state(row: InstanceRow) -> str:
    """``busy 12 s``: a model that hangs is busy for ever, while one that works is so anew with every batch."""
    if row.state == "backed-off":
        return f"backed-off, again in {row.retry_in_s:.0f} s"
    if row.busy_s >= _LONG_S:
        busy = f"busy {duration(row.busy_s)}"
        return busy if row.state == "busy" else f"{row.state}, {busy}"
    return row.state


def _number(number: int) -> str:
    return str(number) if number > 0 else "-"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 1024**2:.0f} MiB" if nbytes else "-"
