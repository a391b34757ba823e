"""Metrics of a whole server: they say what the statistics say, and why requests failed."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.scenarios.conftest import Serve, copy_examples
from tests.scenarios.harness import Server, serving
from tests.scenarios.malformed_cases import SIMPLE, request
from tests.scenarios.models import ECHO, OBEY, write_model

SMALL_QUEUE = """
parameters { key: "seconds" value { string_value: "0.3" } }
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""
SLOW = """
parameters { key: "seconds" value { string_value: "0.5" } }
"""

#: name and labels to value
Scrape = dict[tuple[str, ...], float]


def scrape(server: Server, *more_labels: str) -> Scrape:
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200
        page = response.read().decode()
    finally:
        connection.close()
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = [
                sample.labels[name] for name in ("model", "version", "reason", *more_labels) if name in sample.labels
            ]
            found[(sample.name.removesuffix("_total"), *labels)] = sample.value
    return found


def scrape_until(server: Server, condition: Callable[[Scrape], bool]) -> Scrape:
    """The broker hears of the end of a batch a moment after the client has its answer."""
    deadline = time.monotonic() + 5
    while not condition(found := scrape(server)):
        assert time.monotonic() < deadline, found
    return found


def failures(found: Scrape, model: str) -> dict[str, float]:
    return {key[3]: value for key, value in found.items() if key[:2] == ("nv_inference_request_failure", model)}


def order(text: str) -> bytes:
    return json.dumps({"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "BYTES", "data": [text]}]}).encode()


def numbers() -> bytes:
    return json.dumps({"inputs": [{"name": "INPUT0", "shape": [1, 1], "datatype": "INT32", "data": [1]}]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = copy_examples(tmp_path_factory.mktemp("metrics") / "models", "simple")
    write_model(repository, "obey", OBEY, "STRING", [1])
    write_model(repository, "narrow", ECHO, max_batch_size=1, extra=SMALL_QUEUE)
    write_model(repository, "slow", ECHO, max_batch_size=1, extra=SLOW)
    with serving([repository], make_run_dir(), "--metrics-interval-ms=50") as running:
        yield running


def test_every_model_has_every_series_from_its_load(server: Server) -> None:
    found = scrape(server)
    for model in ("obey", "narrow", "slow", "simple"):
        assert ("nv_inference_request_success", model, "1") in found
        assert set(failures(found, model)) == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
        assert found["nv_inference_pending_request_count", model, "1"] == 0


def test_successes_are_those_of_the_statistics(server: Server) -> None:
    before = scrape(server)
    for _ in range(3):
        assert server.request("POST", SIMPLE, request())[0] == 200
    key = ("nv_inference_request_success", "simple", "1")
    found = scrape_until(server, lambda found: found[key] == before[key] + 3)
    statistics = json.loads(server.request("GET", "/v2/models/simple/stats")[1])["model_stats"][0]
    for name, value in {
        "request_success": statistics["inference_stats"]["success"]["count"],
        "count": statistics["inference_count"],
        "exec_count": statistics["execution_count"],
        "request_duration_us": statistics["inference_stats"]["success"]["ns"] // 1000,
        "queue_duration_us": statistics["inference_stats"]["queue"]["ns"] // 1000,
        "compute_input_duration_us": statistics["inference_stats"]["compute_input"]["ns"] // 1000,
        "compute_infer_duration_us": statistics["inference_stats"]["compute_infer"]["ns"] // 1000,
        "compute_output_duration_us": statistics["inference_stats"]["compute_output"]["ns"] // 1000,
    }.items():
        assert found[f"nv_inference_{name}", "simple", "1"] == value, name


def test_a_model_that_raises(server: Server) -> None:
    before = failures(scrape(server), "obey")
    assert server.request("POST", "/v2/models/obey/infer", order("raise"))[0] == 500
    assert server.request("POST", "/v2/models/obey/infer", order("error INTERNAL"))[0] == 500
    found = scrape_until(server, lambda found: failures(found, "obey")["BACKEND"] == before["BACKEND"] + 2)
    assert failures(found, "obey") == {**before, "BACKEND": before["BACKEND"] + 2}


def test_a_queue_that_is_full(server: Server) -> None:
    before = scrape(server)
    success = ("nv_inference_request_success", "narrow", "1")

    def ask(_: int) -> int:
        return server.request("POST", "/v2/models/narrow/infer", numbers())[0]

    with ThreadPoolExecutor(8) as clients:
        statuses = list(clients.map(ask, range(8)))
    refused = sum(status != 200 for status in statuses)
    assert 0 < refused < 8
    found = scrape_until(server, lambda found: found[success] == before[success] + 8 - refused)
    was, now = failures(before, "narrow"), failures(found, "narrow")
    assert now == {**was, "REJECTED": was["REJECTED"] + refused}


def test_a_client_that_leaves_and_requests_that_wait(server: Server) -> None:
    pending = ("nv_inference_pending_request_count", "slow", "1")
    success = ("nv_inference_request_success", "slow", "1")
    before = scrape(server)
    body = numbers()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(3)]
    for client in clients:
        client.sendall(head + body)
    scrape_until(server, lambda found: found[pending] == 2)
    clients[2].close()
    scrape_until(server, lambda found: failures(found, "slow")["CANCELED"] == 1 and found[pending] == 1)
    for client in clients[:2]:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
    found = scrape_until(server, lambda found: found[success] == before[success] + 2)
    assert found[pending] == 0
    assert failures(found, "slow") == {"REJECTED": 0, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}


def test_the_machine_is_looked_at_again(server: Server) -> None:
    assert scrape(server)["nv_cpu_memory_total_bytes",] > 1 << 28
    # no machine is idle while it is asked
    scrape_until(server, lambda found: found["nv_cpu_utilization",] > 0)


def test_series_go_with_their_model(serve: Serve, tmp_path: Path) -> None:
    repository = copy_examples(tmp_path / "models", "simple", "simple_identity")
    server = serve(repository, "--model-control-mode=explicit", "--load-model=simple", "--allow-cpu-metrics=false")
    key = ("nv_inference_request_success", "simple_identity", "1")
    found = scrape(server)
    assert key not in found and ("nv_cpu_utilization",) not in found
    assert server.request("POST", "/v2/repository/models/simple_identity/load")[0] == 200
    assert scrape(server)[key] == 0
    assert server.request("POST", "/v2/repository/models/simple_identity/unload")[0] == 200
    scrape_until(server, lambda found: key not in found)


def test_metrics_config(serve: Serve, simple_repository: Path) -> None:
    server = serve(
        simple_repository, "--metrics-config=counter_latencies=false", "--metrics-config", "summary_latencies=1"
    )
    found = scrape(server)
    assert ("nv_inference_count", "simple", "1") in found
    assert not [key for key in found if "duration" in key[0]]
    assert "Started Metrics Service at 127.0.0.1" in server.output
