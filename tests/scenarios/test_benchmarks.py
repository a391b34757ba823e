"""The benchmarks' load generators against a real server: only right answers count."""

from dataclasses import replace

import pytest
import uvloop

from benchmarks import load, models, real_triton, servers
from benchmarks.cases import Case, HttpLoad, add_sub_cases, classifier_cases, identity_cases
from benchmarks.compare import can_be_measured, header, row
from tests.scenarios.harness import Server

# the first loop of a process makes a pipe that stays; it is not these tests' leak
uvloop.new_event_loop().close()

GENERATORS = [
    pytest.param(
        load._measure_with_wrk, marks=pytest.mark.skipif(not load.wrk_installed(), reason="needs wrk"), id="wrk"
    ),
    pytest.param(lambda *arguments: uvloop.run(load._measure_with_asyncio(*arguments)), id="asyncio"),
]


@pytest.mark.parametrize("request_of", [models.add_sub_json, models.add_sub_binary])
def test_ask_once(server: Server, request_of: object) -> None:
    assert callable(request_of)
    request = request_of()
    load.ask_once(server.url, request)
    with pytest.raises(load.LoadFailed):
        load.ask_once(server.url, replace(request, expected=b"something else"))


@pytest.mark.parametrize("measure", GENERATORS)
def test_measure(server: Server, measure: object) -> None:
    assert callable(measure)
    result = measure(server.url, models.add_sub_json(), 2, 1)
    assert result.requests_per_s > 10
    assert 0 < result.p50_s <= result.p99_s < 1
    with pytest.raises(load.LoadFailed):
        measure(server.url, replace(models.add_sub_json(), path="/v2/models/nope/infer"), 2, 1)


def test_table() -> None:
    case = Case("name", HttpLoad(models.add_sub_json()), clients=1, unit=8)
    found = {
        "Conch": [load.Measurement(100 + i, 0.002, 0.003) for i in (0, 50, 100)],
        "Triton": [load.Measurement(100, 0.001, 0.2)],
    }
    assert row(case, found, "Triton") == (
        "| name | 1,200 | 800 | **1.50** | 2.00 ms | 1.00 ms | 2.00 | 3.00 ms | 200 ms |"
    )
    assert row(case, {"Conch": found["Conch"]}, "Triton").count("–") == 5
    assert header("Triton").count("|") == 20


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in add_sub_cases() + identity_cases() + classifier_cases()]
    assert len(set(names)) == len(names)


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PERF_ANALYZER", "/no/such/program")
    left_out = [case.name for case in add_sub_cases() if not can_be_measured(case)]
    assert left_out and all("gRPC" in name for name in left_out)
    assert "$PERF_ANALYZER" in capsys.readouterr().err
    monkeypatch.delenv(real_triton.VARIABLE, raising=False)
    with pytest.raises(servers.DoesNotStart, match=real_triton.VARIABLE), servers.triton([]):
        pass
