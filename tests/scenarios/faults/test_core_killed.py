"""The broker, the launcher and the template are killed or stopped, while clients ask over HTTP, gRPC and in shared
memory: they wait a little, and no worker is started again."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conch.process import lock_holder
from conch.run_dir import RunDir
from tests.client_memory import client_memory
from tests.scenarios.conftest import copy_examples
from tests.scenarios.decoupled import Stream, telling, text_of, write_decoupled_models
from tests.scenarios.faults.models import say, write_victim
from tests.scenarios.faults.programs import kill, kill_and_wait, load_of, runs, stopped, successor, wait_for
from tests.scenarios.faults.traffic import SharedMemoryClient, asking_in_both_ways
from tests.scenarios.faults.watch import pids_of, watching, workers
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model

#: the broker's successor has to start, and everybody to find it
BROKER_AWAY_S = 10.0

# Loads once a file is there.
SLOW = """
class TritonPythonModel:
    def initialize(self, args):
        while not os.path.exists(os.path.join(args["model_repository"], "gate")):
            time.sleep(0.01)

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", r.inputs()[0].as_numpy())]) for r in requests]
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = copy_examples(tmp_path_factory.mktemp("core") / "models", "simple")
    write_victim(repository)
    write_decoupled_models(repository)
    write_model(repository, "slow", SLOW)
    (repository / "slow" / "gate").touch()
    return repository


@pytest.fixture(scope="module")
def server(repository: Path, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    flags = ("--model-control-mode=explicit", "--load-model=*")
    with serving([repository], make_run_dir(), *flags) as running:
        yield running


def ask(server: Server, method: str, path: str, body: Any = None, timeout_s: float = 20) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    status, answer = server.request(method, path, data, timeout_s=timeout_s)
    return status, json.loads(answer) if answer else None


def load(server: Server, model: str, **parameters: str) -> tuple[int, Any]:
    return ask(server, "POST", f"/v2/repository/models/{model}/load", {"parameters": parameters})


def unload(server: Server, model: str) -> tuple[int, Any]:
    return ask(server, "POST", f"/v2/repository/models/{model}/unload", {})


def is_ready(server: Server, model: str) -> bool:
    return ask(server, "GET", f"/v2/models/{model}/ready")[0] == 200


def config_of(server: Server, model: str) -> Any:
    status, config = ask(server, "GET", f"/v2/models/{model}/config")
    assert status == 200, config
    return config


@pytest.mark.timeout(60)
def test_broker_killed(server: Server) -> None:
    """Nobody's request fails; workers, regions, loads with their overrides and streams live on."""
    assert config_of(server, "victim")["max_batch_size"] == 16
    config = {**config_of(server, "victim"), "max_batch_size": 4, "dynamic_batching": {}}
    assert load(server, "victim", config=json.dumps(config)) == (200, None)
    wait_for(server, lambda: list(workers(server).values()).count("victim_0") == 1)
    before = workers(server)
    with (
        watching(server, longest_wait_s=BROKER_AWAY_S),
        asking_in_both_ways(server),
        client_memory(4096) as memory,
        Stream(server.grpc_url, telling("r one,s 2,r two,f")) as stream,
    ):
        client = SharedMemoryClient(server, memory, "mine")
        client.register()
        assert text_of(stream.answer()) == "one"
        former = kill(server, "broker")
        assert metrics_status(server) in (200, 503)
        assert "broker" in [row["name"] for row in server.status()["processes"]]
        successor(server, "broker", former)
        assert say(server, "hello") == (200, "hello")
        assert client.infer(1) == ""
        client.unregister()
        assert metrics_status(server) == 200
        assert [text_of(each) for each in stream.rest()] == ["two"]
    assert workers(server) == before
    assert config_of(server, "victim")["max_batch_size"] == 4
    assert load(server, "victim") == (200, None)
    assert config_of(server, "victim")["max_batch_size"] == 16


@pytest.mark.timeout(60)
def test_broker_killed_again_and_again(server: Server) -> None:
    """Once while it serves, once while it recovers, and once when it has just done so."""
    lock = RunDir(server.run_dir).broker_lock
    before = workers(server)
    with watching(server, longest_wait_s=15), asking_in_both_ways(server):
        pid = kill_and_wait(server, "broker")
        # it has begun to listen, and its peers are about to say HELLO
        wait_for(server, lambda: f"pid {pid}" in (lock_holder(lock) or ""))
        os.kill(pid, signal.SIGKILL)
        pid = successor(server, "broker", pid)
        assert say(server, "hello") == (200, "hello")
        os.kill(pid, signal.SIGKILL)
        successor(server, "broker", pid)
        assert say(server, "hello") == (200, "hello")
    assert workers(server) == before, server.report()


@pytest.mark.timeout(60)
def test_broker_stopped(server: Server) -> None:
    """Requests wait as long as it is stopped. Nothing is killed or started again."""
    before = workers(server), {row["name"]: row["pid"] for row in server.status()["processes"]}
    with watching(server, longest_wait_s=8), asking_in_both_ways(server):
        with stopped(pids_of(server, "broker")[0]):
            time.sleep(3)
        assert say(server, "hello") == (200, "hello")
    assert (workers(server), {row["name"]: row["pid"] for row in server.status()["processes"]}) == before


@pytest.mark.timeout(60)
def test_broker_killed_while_a_model_loads(server: Server, repository: Path) -> None:
    """Whoever waits for the load is told that nobody knows how it ends, and can ask for it again."""
    gate = repository / "slow" / "gate"
    with watching(server, longest_wait_s=BROKER_AWAY_S), ThreadPoolExecutor() as clients:
        assert unload(server, "slow") == (200, None)
        gate.unlink()
        call = clients.submit(load, server, "slow")
        wait_for(server, lambda: "slow_0" in workers(server).values())
        kill_and_wait(server, "broker")
        status, answer = call.result()
        assert (status, "the server restarted before it answered" in answer["error"]) == (503, True), answer
        gate.touch()
        assert load(server, "slow") == (200, None)
        assert is_ready(server, "slow")


@pytest.mark.timeout(60)
def test_broker_killed_while_a_model_unloads(server: Server) -> None:
    """What it runs is answered; then it is gone, or it is as before and can be unloaded."""
    with watching(server, longest_wait_s=BROKER_AWAY_S), ThreadPoolExecutor() as clients:
        asked = clients.submit(say, server, "sleep 3")
        wait_for(server, lambda: runs(server, "victim"))
        call = clients.submit(unload, server, "victim")
        wait_for(server, lambda: not is_ready(server, "victim"))
        kill_and_wait(server, "broker")
        assert asked.result() == (200, "sleep 3")
        status, answer = call.result()
        if status != 200:
            assert status == 503, answer
            assert unload(server, "victim") == (200, None)
        wait_for(server, lambda: "victim_0" not in workers(server).values())
        assert not is_ready(server, "victim")
        assert load(server, "victim") == (200, None)


def metrics_status(server: Server) -> int:
    """Says within a second that the broker is not there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=5) as page:
            return int(page.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.timeout(60)
def test_launcher_killed(server: Server) -> None:
    """Nobody notices. Its successor sees the deaths of the workers that it has taken over."""
    before = workers(server)
    with watching(server) as watch, asking_in_both_ways(server):
        kill_and_wait(server, "launcher")
        assert say(server, "hello") == (200, "hello")
        assert workers(server) == before
        wait_for(server, lambda: len(pids_of(server, "template")) == 1)
        former = watch.worker_pid("victim")
        os.kill(former, signal.SIGKILL)
        assert say(server, "hello") == (200, "hello")
        assert watch.worker_pid("victim", former) not in before


@pytest.mark.timeout(60)
def test_launcher_killed_while_it_replaces_a_worker(server: Server) -> None:
    with watching(server) as watch:
        for pause_s in (0.0, 0.01):
            launcher = pids_of(server, "launcher")[0]
            former = watch.worker_pid("victim")
            os.kill(former, signal.SIGKILL)
            time.sleep(pause_s)  # from seeing the death to a fork it takes some milliseconds
            os.kill(launcher, signal.SIGKILL)
            assert say(server, "hello") == (200, "hello")
            successor(server, "launcher", launcher)
        watch.worker_pid("victim", former)


@pytest.mark.timeout(60)
def test_launcher_stopped_while_a_worker_dies(server: Server) -> None:
    """The worker's requests wait until somebody can see its death; other models' do not."""
    with watching(server) as watch, ThreadPoolExecutor() as clients:
        with stopped(pids_of(server, "launcher")[0]):
            former = watch.worker_pid("victim")
            os.kill(former, signal.SIGKILL)
            asked = clients.submit(say, server, "hello")
            wait_for(server, lambda: any(load_of(server, "victim")))
        assert asked.result() == (200, "hello")
        watch.worker_pid("victim", former)


@pytest.mark.timeout(60)
def test_template_killed(server: Server) -> None:
    """There is another one, and workers are replaced as ever, even if one dies at the same time."""
    with watching(server) as watch:
        former = kill_and_wait(server, "template")
        victim = watch.worker_pid("victim")
        os.kill(former, signal.SIGKILL)
        os.kill(victim, signal.SIGKILL)
        assert say(server, "hello") == (200, "hello")
        watch.worker_pid("victim", victim)
        wait_for(server, lambda: len(pids_of(server, "template")) == 1)
