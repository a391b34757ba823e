"""How long a killed Python model is away: from the kill of its only worker to the next answer that it computes.

    python -m benchmarks.recovery [--rounds N]

Beside it, what the same request takes while nobody is killed. Triton is not measured: it does not start a worker again.
"""

import argparse
import http.client
import json
import os
import signal
import statistics
import time
from pathlib import Path

from benchmarks import servers
from benchmarks.models import ROOT
from benchmarks.processes import descendants

EXAMPLE_MODELS = ROOT / "examples" / "model_repository"
_TENSOR = {"shape": [1, 16], "datatype": "INT32", "data": [1] * 16}
_BODY = json.dumps({"inputs": [{"name": "INPUT0", **_TENSOR}, {"name": "INPUT1", **_TENSOR}]})
#: requests between two kills: what a worker does first it does more slowly
_BETWEEN = 50
#: of one server: a model that keeps dying, so fast, is given a rest
_KILLS = 8


def worker_pid(server: servers.Server) -> int:
    """Of the model ``simple``, whose workers carry its name."""
    while True:
        for pid in descendants(server.pid):
            try:
                if Path(f"/proc/{pid}/comm").read_text().startswith("simple_0"):
                    return pid
            except OSError:
                continue  # it has just ended


def ask_s(connection: http.client.HTTPConnection) -> float:
    begin = time.monotonic()
    connection.request("POST", "/v2/models/simple/infer", _BODY)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise SystemExit(f"the request failed: {answer.decode(errors='replace')}")
    return time.monotonic() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Milliseconds from a worker's death to the next answer.")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help=f"servers of {_KILLS} kills each [4]")
    options = parser.parse_args()
    killed: list[float] = []
    others: list[float] = []
    for _ in range(options.rounds):
        with servers.conch([EXAMPLE_MODELS], ["--model-control-mode=explicit", "--load-model=simple"]) as server:
            host, _, port = server.address.rpartition(":")
            connection = http.client.HTTPConnection(host, int(port), timeout=30)
            for _ in range(_KILLS):
                others += [ask_s(connection) for _ in range(_BETWEEN)]
                os.kill(worker_pid(server), signal.SIGKILL)
                killed.append(ask_s(connection))
            connection.close()
    print("| | median | fastest | slowest |\n|---|---:|---:|---:|")
    for name, seconds in (("worker killed", killed), ("nobody killed", others)):
        shown = (statistics.median(seconds), min(seconds), max(seconds))
        print(f"| {name} | " + " | ".join(f"{each * 1000:.1f} ms" for each in shown) + " |")


if __name__ == "__main__":
    main()
