"""Mixed load on several models while a process of the server is killed every second.

    scripts/chaos [--minutes M] [--kill workers|everything] [--interval-s S] [--seed N] [--keep-logs FOLDER]

Clients over HTTP (JSON and binary), gRPC (unary and streams) and system shared memory over both check every answer.
With ``workers`` no request may fail; decoupled streams, which cannot be run again once responses were sent, end with a
clear error. With ``everything`` (broker, launcher, template, frontends, metrics as well) only connections that were
open on a killed frontend see an error. Ends with status 1 if anything else fails, or is left behind.
"""

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from conch.run_dir import RunDir
from tests.chaos import report
from tests.chaos.clients import KINDS, Client
from tests.chaos.killing import Killer
from tests.chaos.models import write_models
from tests.scenarios.faults.watch import Watch, problems
from tests.scenarios.harness import Server

CLIENTS_OF_A_KIND = 2
_WARM_UP = 20
_SETTLES_WITHIN_S = 15.0
_RETRIES = re.compile(rb"^conch_inference_retries_total\{[^}]*\} (\d+)", re.MULTILINE)


class Retries:
    """Counts over the lives of several brokers: each begins with nothing."""

    def __init__(self, server: Server) -> None:
        self._url = f"http://127.0.0.1:{server.metrics_port}/metrics"
        self._before = 0
        self._last = 0

    def look(self) -> None:
        try:
            page = urllib.request.urlopen(self._url, timeout=2).read()
        except OSError:
            return
        now = sum(int(count) for count in _RETRIES.findall(page))
        if now < self._last:
            self._before += self._last
        self._last = now

    @property
    def total(self) -> int:
        return self._before + self._last


def run(server: Server, options: argparse.Namespace) -> int:
    clients = [
        kind(number, server.http_port, server.grpc_port)
        for number, kind in enumerate(kind for kind in KINDS for _ in range(CLIENTS_OF_A_KIND))
    ]
    for client in clients:
        client.start()
    try:
        _wait_for(clients)
        watch = Watch(server, None)
        killer = Killer(server, options.kill, options.seed)
        retries = Retries(server)
        end_s = time.monotonic() + options.minutes * 60
        while (now := time.monotonic()) < end_s:
            killer.kill_one()
            retries.look()
            time.sleep(max(0.0, options.interval_s - (time.monotonic() - now)))
        _wait_for(clients)
    finally:
        for client in clients:
            client.stop()
        for client in clients:
            client.join()
    # a client whose frontend was killed could not unregister its memory
    unregistered, answer = server.request("POST", "/v2/systemsharedmemory/unregister")
    assert unregistered == 200, answer
    exchanges = [client.exchanges for client in clients]
    judged = report.judge(exchanges, killer.kills)
    retries.look()
    leaks = _settled(watch)
    status = server.stop(timeout_s=60)
    if status:
        leaks.append(f"the server ended with status {status}")
    leaks += server.leftovers()
    print(report.text(judged, exchanges, killer.kills, retries.total, leaks), flush=True)
    return int(bool(judged.failures or leaks))


def _wait_for(clients: Sequence[Client]) -> None:
    """Until every client has had some more right answers."""
    wanted = {client: sum(each.verdict == "right" for each in client.exchanges) + _WARM_UP for client in clients}
    deadline = time.monotonic() + 60
    while any(sum(each.verdict == "right" for each in client.exchanges) < count for client, count in wanted.items()):
        if time.monotonic() > deadline:
            last = [client.exchanges[-1] for client in clients if client.exchanges]
            raise SystemExit(f"a client gets no answers: {last}")
        time.sleep(0.1)


def _settled(watch: Watch) -> list[str]:
    """What does not look as before, when it has had some time to."""
    deadline = time.monotonic() + _SETTLES_WITHIN_S
    while (found := problems(watch)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills a process of a server under load every second.")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="[10]")
    parser.add_argument("--kill", choices=("workers", "everything"), default="workers", help="[workers]")
    parser.add_argument("--interval-s", type=float, default=1.0, metavar="S", help="between two kills [1]")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), metavar="N", help="of the choices")
    parser.add_argument("--keep-logs", type=Path, metavar="FOLDER", help="copy the server's logs there")
    options = parser.parse_args()
    print(f"killing {options.kill} for {options.minutes:g} minutes, --seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="conch-chaos-", dir="/tmp"))
    write_models(folder / "models")
    flags = ("--http-process-count=2", "--grpc-process-count=2", "--exit-timeout-secs=30")
    server = Server([folder / "models"], folder / "run", flags)
    try:
        server.start()
        return run(server, options)
    finally:
        server.kill_everything()
        if options.keep_logs is not None:
            shutil.copytree(RunDir(server.run_dir).logs, options.keep_logs, dirs_exist_ok=True)
        shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(main())
