"""Requests that end the worker that runs them: one error each, and nobody else has one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scenarios.conftest import copy_examples
from tests.scenarios.faults.clients import Clients, assert_right, wait_for_queued
from tests.scenarios.faults.models import say, say_grpc, write_victim
from tests.scenarios.faults.watch import watching
from tests.scenarios.harness import Server, serving

BACK_WITHIN_S = 5.0
#: what ends a worker, and how the error names it
DEATHS = {
    "kill": "was killed by SIGKILL",
    "segv": "was killed by SIGSEGV",
    "abort": "was killed by SIGABRT",
    "exit 0": "exited with code 0",
    "os_exit 0": "exited with code 0",
    "exit 3": "exited with code 3",
    "os_exit 3": "exited with code 3",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "runs"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path], runs: Path) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("poison") / "models", "simple")
    write_victim(repository, "often")
    write_victim(repository, "kinds")
    write_victim(repository, "batched", RUNS=str(runs))
    with serving([repository], make_run_dir()) as running:
        yield running


@pytest.mark.timeout(60)
def test_among_batch_mates_and_queued_ones(server: Server, runs: Path, tmp_path: Path) -> None:
    """Sixteen requests in a batch and ten behind them, one of which kills the worker, twice: it has one error, all
    others are answered right. Nobody runs more than twice, and those behind it once."""
    poison = "segv"
    gate = tmp_path / "gate"
    with watching(server) as watch:
        first = Clients(server, [f"wait {gate}"], "batched")
        watch.back_within(BACK_WITHIN_S, runs.exists)
        mates = Clients(server, [poison, *(f"mate {number}" for number in range(15))], "batched")
        wait_for_queued(watch, "batched", 16)
        queued = Clients(server, [f"queued {number}" for number in range(10)], "batched")
        wait_for_queued(watch, "batched", 26)
        gate.touch()
        answers = {**first.wait(), **mates.wait(), **queued.wait()}
        status, text = answers.pop(poison)
        assert status == 500
        assert f"the worker of instance 'batched_0_0' {DEATHS[poison]}" in text
        assert_right(answers)
        watch.back_within(BACK_WITHIN_S, lambda: say(server, "hello", "batched") == (200, "hello"))
    lines = runs.read_text().splitlines()
    counts = {text: sum(line.endswith(f" {text}") for line in lines) for text in answers}
    assert lines.count(f"16 {poison}") == 1
    assert lines.count(f"1 {poison}") == 1
    assert all(count == 2 for text, count in counts.items() if text.startswith("mate")), counts
    assert all(count == 1 for text, count in counts.items() if not text.startswith("mate")), counts


@pytest.mark.timeout(60)
def test_each_kind_over_both_protocols(server: Server) -> None:
    """500 over HTTP, INTERNAL over gRPC, and both name the signal or the status."""
    with watching(server) as watch:
        for poison, how in DEATHS.items():
            for ask, code in ((say, 500), (say_grpc, "INTERNAL")):
                status, text = ask(server, poison, "kinds")
                assert status == code, (poison, text)
                assert f"the worker of instance 'kinds_0_0' {how}" in text
                assert str(server.run_dir) not in text
            watch.back_within(BACK_WITHIN_S, lambda: say(server, "hello", "kinds") == (200, "hello"))


@pytest.mark.timeout(60)
def test_many_do_not_use_up_the_model(server: Server) -> None:
    """However often a client sends what kills the worker, the others are served in between, without an error."""
    with watching(server):
        for number in range(10):
            poison = Clients(server, ["kill"], "often")
            mates = Clients(server, [f"{kind} {number}" for kind in ("one", "another")], "often")
            [(status, text)] = poison.wait().values()
            assert (status, "SIGKILL" in text) == (500, True), text
            assert_right(mates.wait())
            assert say(server, f"after {number}", "often") == (200, f"after {number}")
