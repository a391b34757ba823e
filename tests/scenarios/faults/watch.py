"""What has to hold after every fault: others did not notice, and nothing was left behind."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from conch.run_dir import RunDir
from tests.processes import command_line, status
from tests.scenarios.harness import Server, orphans
from tests.scenarios.load import Load

#: how long a server may take to look as before
SETTLES_WITHIN_S = 5.0
#: what a bystander may wait for an answer on a busy machine
LONGEST_WAIT_S = 4.0
_PROGRAMS = {
    "-m broker": "broker",
    "-m workers.launcher": "launcher",
    "-m workers.template": "template",
    "-m frontends.http": "http",
    "-m frontends.grpc": "grpc",
    "-m frontends.metrics": "metrics",
    "supervisord": "supervisord",
    "conch serve": "serve",
}
#: arenas grow and shrink by segments, pools of threads are filled when they are used
_MORE_DESCRIPTORS = 12
_MORE_THREADS = 4


@dataclass(frozen=True)
class Holding:
    """What one process, or several with the same role, had at a time."""

    processes: int
    descriptors: int
    threads: int


class Watch:
    """``before``: what each role held before the fault. ``load``: the bystanders' answers, None without them."""

    def __init__(self, server: Server, load: Load | None) -> None:
        self.server = server
        self.load = load
        self.started_s = time.monotonic()
        self.before = holdings(server)

    def back_within(self, timeout_s: float, is_back: Callable[[], bool]) -> float:
        """Waits until ``is_back`` says so; how long that took in seconds. Connections that are refused or break count
        as no."""
        started_s = time.monotonic()
        while True:
            with contextlib.suppress(OSError):
                if is_back():
                    return time.monotonic() - started_s
            if time.monotonic() - started_s > timeout_s:
                pytest.fail(f"not back within {timeout_s} s\n{self.server.report()}")
            time.sleep(0.01)

    def worker_pid(self, model: str, other_than: int = 0, timeout_s: float = SETTLES_WITHIN_S) -> int:
        """A worker of ``model`` that the launcher has started, other than one that is dead or about to be."""
        deadline = time.monotonic() + timeout_s
        while True:
            for pid, of in workers(self.server).items():
                if of.rpartition("_")[0] == model and pid != other_than:
                    return pid
            assert time.monotonic() < deadline, self.server.report()
            time.sleep(0.01)


@contextlib.contextmanager
def watching(
    server: Server, bystanders: bool = True, longest_wait_s: float = LONGEST_WAIT_S, settles_within_s: float = 5.0
) -> Iterator[Watch]:
    """Around a fault. ``bystanders``: two clients ask the model ``simple`` all the time, and must get right answers
    only, none after more than ``longest_wait_s``. Afterwards the server has to look as it did before."""
    with contextlib.ExitStack() as stack:
        load = None
        if bystanders:
            load = stack.enter_context(Load(server.http_port, clients=2))
            load.wait_for_answers(0, 20, timeout_s=10)
        watch = Watch(server, load)
        yield watch
        if load is not None:
            load.wait_for_answers(time.monotonic(), 20, timeout_s=10)
    if load is not None:
        load.check()
        assert load.longest_wait_s() < longest_wait_s, f"a bystander waited for {load.longest_wait_s():.1f} s"
    _settle(watch, settles_within_s)


def _settle(watch: Watch, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while found := problems(watch):
        if time.monotonic() > deadline:
            pytest.fail("\n  ".join(["not as before the fault:", *found, watch.server.report()]), pytrace=False)
        time.sleep(0.1)


def problems(watch: Watch) -> list[str]:
    """What is not as it was before the fault."""
    server = watch.server
    report = server.status()
    found = [f"segment {name} has no owner" for name in orphans()]
    for row in report["models"]:
        if row["state"] != "READY":
            found.append(f"{row['model']} is {row['state']}: {row['reason']}")
        if row["queued"] or row["running"]:
            found.append(f"{row['model']}: {row['queued']} queued, {row['running']} running")
    found += [f"{row['name']}: {row['inflight']} in flight" for row in report["processes"] if row.get("inflight")]
    now = holdings(server)
    for role in sorted(watch.before.keys() | now.keys()):
        before, after = watch.before.get(role), now.get(role)
        if before is None or after is None or before.processes != after.processes:
            found.append(f"{role}: {before} before, {after} now")
        elif after.descriptors > before.descriptors + _MORE_DESCRIPTORS:
            found.append(f"{role} has {after.descriptors} descriptors, it had {before.descriptors}")
        elif after.threads > before.threads + _MORE_THREADS:
            found.append(f"{role} has {after.threads} threads, it had {before.threads}")
    return found


def workers(server: Server) -> dict[int, str]:
    """pid -> instance name of every worker that lives."""
    found = {}
    for path in RunDir(server.run_dir).workers.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            file = json.loads(path.read_bytes())
            here = status(file["pid"])
            if here is not None and here.state != "Z":
                found[int(file["pid"])] = f"{file['model']}_{file['instance']}"
    return found


def role(pid: int, worker_names: dict[int, str]) -> str:
    """``broker``, ``http``, …; ``worker simple_0``; the command line of what should not be there."""
    if pid in worker_names:
        return f"worker {worker_names[pid]}"
    line = command_line(pid)
    return next((name for part, name in _PROGRAMS.items() if part in line), line)


def pids_of(server: Server, wanted: str) -> list[int]:
    """Of processes with this role, in the order of their starts."""
    names = workers(server)
    return sorted(pid for pid in server.pids() if role(pid, names) == wanted)


def holdings(server: Server) -> dict[str, Holding]:
    """By role: ``broker``, ``http``, ``workers of simple``, …"""
    names = workers(server)
    found: dict[str, Holding] = {}
    for pid in server.pids():
        try:
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            threads = len(os.listdir(f"/proc/{pid}/task"))
        except OSError:  # it has just ended
            continue
        # all workers of a model together: who is number 0 may change with a broker's restart
        key = f"workers of {names[pid].rpartition('_')[0]}" if pid in names else role(pid, names)
        former = found.get(key, Holding(0, 0, 0))
        found[key] = Holding(former.processes + 1, max(descriptors, former.descriptors), max(threads, former.threads))
    return found


def memory_nbytes(pid: int) -> int:
    """Private memory: shared segments are not in it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0
