"""What is run of ``perf_analyzer``, and what is made of its reports."""

import multiprocessing.resource_tracker
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest

from benchmarks import models, official, perf_analyzer
from benchmarks.load import LoadFailed
from benchmarks.official import AddSub, Identity
from benchmarks.perf_analyzer import Report
from benchmarks.servers import Server
from scripts.perf_analyzer_modes import Mode, Outcome, complaint, header, row
from tests.scenarios.harness import serving

# the client's shared memory starts it, and it stays for as long as the process; it is not these tests' leak
multiprocessing.resource_tracker.ensure_running()

COLUMNS = (
    "Concurrency,Inferences/Second,Server Queue,Server Compute Input,Server Compute Infer,Server Compute Output,"
    "p50 latency,p95 latency,p99 latency,Avg latency"
)
#: writes such a report as the real one does, and fails if it is told to
STAND_IN = f"""\
import sys
words = sys.argv[1:]
assert words[:6] == ["-m", "simple", "-u", "localhost:1", "-i", "grpc"], words
if "--fail" in words:
    sys.exit("no such model")
if "--slow" in words and float(words[words.index("-p") + 1]) < 2000:
    sys.exit("No valid requests recorded within time interval. Please use a larger time window.")
with open(words[words.index("-f") + 1], "w") as file:
    file.write("{COLUMNS}\\n1,100.5,50,20,100,30,380,500,600,400\\n4,200,60,20,110,30,480,600,700,500\\n")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PERF_ANALYZER", f"{sys.executable} {tmp_path / 'stand_in.py'}")


def test_reports(stand_in: None) -> None:
    first, second = perf_analyzer.run("simple", "grpc", "localhost:1", [], 3)
    assert first == Report(100.5, 400e-6, 380e-6, 600e-6, (50e-6, 20e-6, 100e-6, 30e-6))
    assert second.inferences_per_s == 200


def test_longer_windows_for_slow_requests(stand_in: None) -> None:
    assert len(perf_analyzer.run("simple", "grpc", "localhost:1", ["--slow"], 1)) == 2
    with pytest.raises(LoadFailed, match="larger time window"):
        perf_analyzer.run("simple", "grpc", "localhost:1", ["--slow"], 0.1)


def test_failure(stand_in: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadFailed, match="no such model"):
        perf_analyzer.run("simple", "grpc", "localhost:1", ["--fail"], 3)
    monkeypatch.setenv("PERF_ANALYZER", "/no/such/program")
    with pytest.raises(LoadFailed, match=r"\$PERF_ANALYZER"):
        perf_analyzer.run("simple", "grpc", "localhost:1", [], 3)


def test_complaints() -> None:
    good = Report(100, 400e-6, 380e-6, 600e-6, (50e-6, 20e-6, 100e-6, 30e-6))
    assert complaint([good], failed=0) == ""
    assert complaint([good], failed=2) == "2 requests failed"
    assert complaint([good, Report(0, 0, 0, 0, ())], failed=0) == "no throughput"
    assert complaint([Report(100, 400e-6, 0, 0, ())], failed=0).startswith("no breakdown")
    assert "add up to 500 µs" in complaint([Report(100, 400e-6, 0, 0, (200e-6, 0, 300e-6, 0))], failed=0)


def test_table() -> None:
    report = Report(1000, 400e-6, 380e-6, 600e-6, (50e-6, 20e-6, 100e-6, 30e-6))
    mode = Mode("one client")
    assert row(Outcome(mode, "http", report, 1.5, "")) == (
        "| one client | http | simple | passed | 1,000 | 400 | 50 | 20 | 100 | 30 | 1.5 |"
    )
    assert row(Outcome(mode, "http", None, 1.5, "no")).count("|") == header().splitlines()[0].count("|")


# -------------------------------------------------------------------------------------------------------- with a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("benchmarks")
    models.write_python_models(repository)
    with serving([repository], make_run_dir()) as running:
        yield Server("Conch", running.url, running.grpc_url)


LOADS = [
    *(AddSub(protocol) for protocol in ("http", "grpc")),
    *(Identity(protocol, 1000, memory) for protocol in ("http", "grpc") for memory in (False, True)),
]


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_right_answers(server: Server, load: AddSub | Identity) -> None:
    load.check(server)


def test_wrong_answers(server: Server) -> None:
    with pytest.raises(LoadFailed, match="something else"):
        official.must_be(numpy.zeros(2), numpy.ones(2), server)
    with pytest.raises(LoadFailed, match="something else"):
        official.must_be(None, numpy.ones(2), server)


@pytest.mark.skipif("PERF_ANALYZER" not in os.environ, reason="needs $PERF_ANALYZER, the command that starts it")
@pytest.mark.parametrize("load", LOADS, ids=str)
def test_measure(server: Server, load: AddSub | Identity) -> None:
    result = load.measure(server, 2, 0.6)
    assert result.requests_per_s > 10
    assert 0 < result.p50_s <= result.p99_s < 1
