"""Models that hang: with an execution time-out their worker is killed and others go on; without one nobody else
notices, and an unload or a stop still comes to an end."""

import contextlib
import http.client
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.models import say, say_grpc, write_victim
from tests.scenarios.faults.watch import watching
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model
from tests.scenarios.test_metrics import scrape

#: far more than the others in a batch take on a busy machine
TIMEOUT_S = 2
TIMED_OUT = (
    f"the worker of instance 'timed_0_0' ran longer than its EXECUTION_TIMEOUT_S of {TIMEOUT_S} s and was killed"
)
EXIT_TIMEOUT_S = 1
LOAD_TIMEOUT = 'parameters { key: "LOAD_TIMEOUT_S" value { string_value: "1" } }'
ENDLESS = """
import time

class TritonPythonModel:
    def initialize(self, args):
        time.sleep(1000)
"""
#: an unload does not wait, but what it leads to on a busy machine takes some time
ENDS_WITHIN_S = EXIT_TIMEOUT_S + 8.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("stuck") / "models", "simple")
    write_victim(repository, "timed", EXECUTION_TIMEOUT_S=str(TIMEOUT_S))
    write_victim(repository, "free")
    flags = ("--model-control-mode=explicit", "--load-model=*", f"--exit-timeout-secs={EXIT_TIMEOUT_S}")
    with serving([repository], make_run_dir(), *flags, "--drain-delay-secs=0") as running:
        yield running


def instance(server: Server, model: str) -> dict[str, Any]:
    (row,) = [row for row in server.status()["instances"] if row["model"] == model]
    return dict(row)


def ask_in_vain(server: Server) -> None:
    """When the time to exit is over, connections are closed with it, perhaps before there is an answer to send."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        say(server, "hang", "free")


def timed_out(server: Server) -> float:
    """How many workers were killed for it, as the metrics page says."""
    return scrape(server, "cause")["conch_worker_deaths", "timed", "1", "execution_timeout"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("poison", "hung_in"),
    [("spin", "in obey, model.py line"), ("hang", "in obey, model.py line"), ("stop", "")],
)
def test_a_request_that_hangs(server: Server, poison: str, hung_in: str) -> None:
    """It is run twice, the second time alone, and then told why there is no answer; those in its batch and behind it
    are answered."""
    others = [f"number {number}" for number in range(8)]
    killed_before = timed_out(server)
    with watching(server) as watch, ThreadPoolExecutor(len(others) + 2) as clients:
        first = clients.submit(say, server, "sleep 0.2", "timed")
        asked = [clients.submit(say, server, text, "timed") for text in (*others[:4], poison, *others[4:])]
        answers = [each.result() for each in asked]
        assert first.result() == (200, "sleep 0.2")
        why = "the request was run 2 times and is not run again; the model's log has the details"
        assert answers.pop(4) == (500, f"{TIMED_OUT}; {why}")
        assert answers == [(200, text) for text in others]
        watch.back_within(5, lambda: say(server, "hello", "timed") == (200, "hello"))
        assert timed_out(server) == killed_before + 2
        assert f"{TIMED_OUT}{', ' if hung_in else ''}{hung_in}" in instance(server, "timed")["last_error"]


@pytest.mark.timeout(60)
def test_a_model_that_hangs_without_a_time_out(server: Server) -> None:
    """Others do not notice, ``conch status`` says for how long it has been busy, and the unload ends it."""
    with watching(server) as watch, ThreadPoolExecutor(2) as clients:
        hung = clients.submit(say_grpc, server, "hang", "free")
        watch.back_within(10, lambda: instance(server, "free")["busy_s"] > 1)
        behind = clients.submit(say, server, "hello", "free")
        assert instance(server, "free")["state"] == "busy"
        assert scrape(server)["conch_model_busy_seconds", "free", "1"] > 1
        assert scrape(server)["conch_model_busy_seconds", "timed", "1"] == 0
        assert say(server, "hello", "timed") == (200, "hello")
        assert server.request("POST", "/v2/repository/models/free/unload")[0] == 200
        code, text = hung.result(ENDS_WITHIN_S)
        assert (code, text) == ("UNAVAILABLE", "Request for unknown model: 'free' version 1 is not at ready state")
        assert behind.result(ENDS_WITHIN_S)[0] == 503
        assert server.request("POST", "/v2/repository/models/free/load", timeout_s=30)[0] == 200
        watch.back_within(5, lambda: say(server, "hello", "free") == (200, "hello"))


@pytest.mark.timeout(60)
def test_a_load_that_hangs(server: Server) -> None:
    write_model(server.repositories[0], "endless", ENDLESS, extra=LOAD_TIMEOUT)
    status, answer = server.request("POST", "/v2/repository/models/endless/load", timeout_s=30)
    assert status == 400
    assert b"'endless_0_0' was not ready within its LOAD_TIMEOUT_S of 1 s and was killed, in initialize" in answer
    assert scrape(server)["conch_model_available", "endless", "1"] == 0
    assert server.request("POST", "/v2/repository/models/endless/unload")[0] == 200
    assert ("conch_model_available", "endless", "1") not in scrape(server)


@pytest.mark.timeout(60)
def test_a_stop_does_not_wait_for_a_model_that_hangs(server: Server, make_run_dir: Callable[[], Path]) -> None:
    flags = (*server.flags, "--load-model=free", "--allow-grpc=false", "--allow-metrics=false")
    stopped = Server(server.repositories, make_run_dir(), [flag for flag in flags if flag != "--load-model=*"])
    try:
        stopped.start()
        client = threading.Thread(target=ask_in_vain, args=[stopped])
        client.start()
        deadline = time.monotonic() + 5
        while instance(stopped, "free")["state"] != "busy":
            assert time.monotonic() < deadline, stopped.report()
        assert stopped.process is not None
        os.kill(stopped.process.pid, signal.SIGTERM)
        stopped.wait(timeout_s=15)
        client.join()
        assert not stopped.leftovers()
    except BaseException:
        print(stopped.report())
        raise
    finally:
        stopped.kill_everything()
