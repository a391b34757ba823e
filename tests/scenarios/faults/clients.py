"""Several clients that ask at the same time."""

import json
import threading
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.scenarios.faults.models import say, say_grpc
from tests.scenarios.faults.watch import Watch
from tests.scenarios.harness import Server

Answer = tuple[int | str, str]


class Clients:
    """A thread for each text, over HTTP and gRPC in turn. ``answers``: what ``say`` or ``say_grpc`` gave, by text."""

    def __init__(self, server: Server, texts: Sequence[str], model: str = "victim", only: Any = None) -> None:
        self.answers: dict[str, Answer] = {}
        assert len(set(texts)) == len(texts)
        protocols: list[Callable[..., Answer]] = [say, say_grpc] if only is None else [only]
        self._threads = [
            threading.Thread(target=self._ask, args=[server, text, model, protocols[number % len(protocols)]])
            for number, text in enumerate(texts)
        ]
        for thread in self._threads:
            thread.start()

    def _ask(self, server: Server, text: str, model: str, ask: Callable[..., Answer]) -> None:
        self.answers[text] = ask(server, text, model)

    def wait(self) -> dict[str, Answer]:
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads)
        return self.answers


def wait_for_queued(watch: Watch, model: str, count: int, timeout_s: float = 10.0) -> None:
    """Until so many requests wait in the broker, beside those that run."""
    watch.back_within(timeout_s, lambda: pending(watch.server, model) == count)


def pending(server: Server, model: str) -> int:
    rows: list[dict[str, Any]] = server.status()["models"]
    return sum(row["queued"] for row in rows if row["model"] == model)


def inferences(server: Server, model: str) -> int:
    """Successful ones since the model was loaded."""
    status, body = server.request("GET", f"/v2/models/{model}/stats")
    assert status == 200, body
    return int(json.loads(body)["model_stats"][0]["inference_count"])


def metric(server: Server, name: str, **labels: str) -> float:
    """Of the one sample that has these labels among its own."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    [value] = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    return float(value)


def assert_right(answers: dict[str, Answer]) -> None:
    """Everybody got what the model was told by them."""
    for text, (status, answer) in answers.items():
        assert (status in (200, "OK"), answer) == (True, text), (text, status, answer)
