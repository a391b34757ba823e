"""Workers that harm themselves, and workers that lie: at worst their own answers are wrong."""

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conch.run_dir import RunDir
from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.hostile import write_hostile
from tests.scenarios.faults.models import say, say_grpc, write_victim
from tests.scenarios.faults.slow_reader import SlowReader
from tests.scenarios.faults.watch import pids_of, watching, workers
from tests.scenarios.harness import Server, serving

SCRIBBLES = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("misbehaving") / "models", "simple")
    write_victim(repository)
    write_hostile(repository)
    with serving([repository], make_run_dir()) as running:
        yield running


def forgeries(server: Server, group: str) -> list[str]:
    status, names = say(server, f"list/{group}", "hostile")
    assert status == 200, names
    return [f"{group}/{name}" for name in names.split("\n")]


def answers_others(server: Server) -> bool:
    """The model that lies, when it does not."""
    return say(server, "hello", "hostile") == (200, "hello") and say_grpc(server, "hello", "hostile") == ("OK", "hello")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("order", ["close_sockets", "garbage"])
def test_sockets(server: Server, order: str) -> None:
    """It closes all its sockets, or writes random bytes to all of them: to frontends, to the broker, into ZeroMQ's
    stream. Its own request is answered, or fails with a signal's name; the next one finds a worker."""
    with watching(server) as watch:
        for ask in (say, say_grpc):
            status, text = ask(server, order)
            if status in (200, "OK"):
                assert (order, text) == ("garbage", "garbage")
            else:
                assert status in (500, "INTERNAL"), text
                assert "was killed by SIG" in text
            watch.back_within(5, lambda: say(server, "hello") == (200, "hello"))


@pytest.mark.timeout(60)
def test_scribbles_all_over_its_memory(server: Server) -> None:
    """Again and again, also while a large answer of its own is on its way to a client that reads slowly."""
    with watching(server), SlowReader(server, "large 8") as reader:
        reader.wait_for_its_beginning()
        for number in range(SCRIBBLES):
            assert say(server, f"scribble {number}") == (200, f"scribble {number}")
        assert say_grpc(server, "scribble") == ("OK", "scribble")
        assert len(reader.rest()) == 8 << 20  # whatever bytes these are
        assert say(server, "hello") == (200, "hello")


@pytest.mark.timeout(60)
def test_leaves_a_child_behind(server: Server) -> None:
    """It ends with the worker."""
    with watching(server) as watch:
        templates = pids_of(server, "template")  # and whoever runs their code without being a worker
        status, text = say(server, "fork_and_kill")
        assert status == 500
        assert "SIGKILL" in text
        watch.back_within(5, lambda: say(server, "hello") == (200, "hello"))
        watch.back_within(5, lambda: pids_of(server, "template") == templates)


@pytest.mark.timeout(60)
def test_false_answers(server: Server) -> None:
    """Wrong offsets, sizes, shapes, segments, leases, datatypes, texts: its client gets an error, or what the worker
    says, at once; nobody else gets anything."""
    with watching(server):
        for forgery in forgeries(server, "own"):
            status, text = say(server, forgery, "hostile")
            assert status in (200, 400, 500), (forgery, text)
            code, text = say_grpc(server, forgery, "hostile")
            assert code in ("OK", "INTERNAL"), (forgery, text)
            assert "/dev/shm" not in text
            assert answers_others(server), forgery


@pytest.mark.timeout(60)
def test_answers_to_others(server: Server) -> None:
    """It answers requests that it was not given, of any id: the bystanders' among them. They count for nothing, as do
    answers to another attempt."""
    with watching(server):
        for forgery in forgeries(server, "beside") * 5:
            assert say(server, forgery, "hostile") == (200, forgery)
            assert say_grpc(server, forgery, "hostile") == ("OK", forgery)
            assert answers_others(server), forgery


@pytest.mark.timeout(60)
def test_nonsense_to_frontends(server: Server) -> None:
    """What it has sent before it is cut off counts; what it cannot send any more is tried once more, and then an
    error, at once."""
    with watching(server):
        for forgery in forgeries(server, "broken") * 3:
            status, text = say(server, forgery, "hostile")
            assert (status, text) == (200, forgery) or (status == 503 and "could not be delivered" in text), text
            code, text = say_grpc(server, forgery, "hostile")
            assert (code, text) == ("OK", forgery) or (code == "UNAVAILABLE" and "not be delivered" in text), text
            assert answers_others(server), forgery


@pytest.mark.timeout(60)
def test_false_reports_to_the_broker(server: Server) -> None:
    """Batches that it was not given, or reports twice; positions, times and requests that are none; another's name.
    Its own request is answered, or fails at once if the worker had to be killed for it."""
    with watching(server) as watch:
        simple = [pid for pid, name in workers(server).items() if name.startswith("simple")]
        others = [path.stem for path in RunDir(server.run_dir).workers.glob("*.json") if is_of(path, "simple")]
        assert len(simple) == len(others) == 1
        for forgery in [*forgeries(server, "broker"), *forgeries(server, "control")]:
            asked = f"{forgery}:{others[0]}" if forgery.endswith("hello of another") else forgery
            status, text = say(server, asked, "hostile")
            assert (status, text) == (200, asked) or status in (500, 503), (forgery, text)
            watch.back_within(5, lambda: answers_others(server))
            assert {"hostile", "simple", "victim"} <= counted(server), forgery
        assert [pid for pid, name in workers(server).items() if name.startswith("simple")] == simple


def is_of(path: Path, model: str) -> bool:
    return bool(json.loads(path.read_bytes())["model"] == model)


def counted(server: Server) -> set[str]:
    """The models that there are statistics and metrics of."""
    status, body = server.request("GET", "/v2/models/stats")
    assert status == 200, body
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=5) as answer:
        metrics = answer.read().decode()
    named = {model["name"] for model in json.loads(body)["model_stats"]}
    return {name for name in named if f'nv_inference_count{{model="{name}"' in metrics}
