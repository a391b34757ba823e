"""Metrics that models make, seen on the metrics page of a whole server.

The page that they are compared with was taken from Triton 2.51, which ran the same model.
"""

import http.client
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from tests.scenarios.conftest import Serve
from tests.scenarios.harness import Server, serving
from tests.scenarios.models import write_model
from tests.scenarios.test_metrics import scrape, scrape_until

#: does what it is sent, as Python
OBEYS_PYTHON = """
FAMILIES = {}

class TritonPythonModel:
    def initialize(self, args):
        self.family = pb_utils.MetricFamily("loaded", "Loads", pb_utils.MetricFamily.COUNTER)
        self.metric = self.family.Metric({"model": args["model_name"]})
        self.metric.increment(1)

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        order = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()[0].decode()
        try:
            text = repr(eval(order, dict(globals(), self=self, MF=pb_utils.MetricFamily)))
        except pb_utils.TritonModelException as error:
            text = str(error)
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", numpy.array([text.encode()], numpy.object_))])

    def make(self, name, description, kind, labels=None, buckets=None):
        family = pb_utils.MetricFamily(name, description, getattr(pb_utils.MetricFamily, kind))
        FAMILIES.setdefault(name, []).append(family)
        return family.Metric(labels, buckets)

    def finalize(self):
        self.metric.increment(100)
"""

#: answers what another model answers to the same tensor, without looking at it
ASKS = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        child = pb_utils.InferenceRequest(
            model_name="passes", requested_output_names=["OUTPUT0"], inputs=request.inputs()
        )
        return pb_utils.InferenceResponse(child.exec().output_tensors())
"""

#: the same with a tensor of its own
DOUBLES = ASKS.replace("request.inputs()", '[pb_utils.Tensor("INPUT0", request.inputs()[0].as_numpy() * 2)]')

#: answers its input as its output, without looking at it
PASSES = """
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request.inputs()[0]) for request in requests]

    def answer(self, tensor):
        tensor._name = "OUTPUT0"  # every public way to rename a tensor makes an array of it
        return pb_utils.InferenceResponse([tensor])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, make_run_dir: Callable[[], Path]) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("custom_metrics") / "models"
    write_model(repository, "one", OBEYS_PYTHON, "STRING", [1])
    write_model(repository, "other", OBEYS_PYTHON, "STRING", [1])
    write_model(repository, "two", OBEYS_PYTHON, "STRING", [1], instances=2)
    with serving([repository], make_run_dir()) as running:
        yield running


def tell(server: Server, model: str, order: str) -> str:
    with tritonclient.http.InferenceServerClient(server.url) as client:
        tensor = tritonclient.http.InferInput("INPUT0", [1], "BYTES")
        tensor.set_data_from_numpy(np.array([order.encode()], np.object_))
        text: bytes = client.infer(model, [tensor]).as_numpy("OUTPUT0")[0]
        return text.decode()


def page(server: Server) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
    finally:
        connection.close()


def lines(server: Server, name: str) -> list[str]:
    return [line for line in page(server).splitlines() if name in line]


def pids_of_both(server: Server) -> set[str]:
    """Asks until both instances of the model ``two`` have answered."""
    pids: set[str] = set()
    while len(pids) < 2:
        pids.add(tell(server, "two", "os.getpid()"))
    return pids


def test_what_is_counted_is_on_the_page_at_once(server: Server) -> None:
    tell(server, "one", "[self.make('at_once', 'text', 'COUNTER').increment(n) for n in range(5)]")
    assert lines(server, "at_once")[-1] == "at_once 10"
    tell(server, "one", "FAMILIES['at_once'][0].Metric().increment(1)")
    assert lines(server, "at_once")[-1] == "at_once 11"


def test_the_page_is_triton_s(server: Server) -> None:
    orders = [
        "self.make('c1', 'counter one', 'COUNTER').increment(8.5)",
        r"""self.make('c1', 'other description', 'COUNTER', {'q': 'we"ird\n\\', 'b': 'é'}).increment(1e300)""",
        "self.make('e1', '', 'COUNTER')",
        "self.make('g1', 'gauge', 'GAUGE', {'n': 'nan'}).set(float('nan'))",
        "FAMILIES['g1'][0].Metric({'n': 'inf'}).set(float('-inf'))",
        "FAMILIES['g1'][0].Metric({'n': 'third'}).set(1 / 3)",
        "self.make('h1', 'hist', 'HISTOGRAM', {'x': 'y'}, [0.1, 1, 2.5, 1000000, 1e20])",
        "[FAMILIES['h1'][0].Metric({'x': 'y'}, [9]).observe(value) for value in (0.1, 0.05, 5, 1e30, -1, 5.5)]",
        "FAMILIES['h1'][0].Metric({'e': 'empty'}, []).observe(3)",
    ]
    for order in orders:
        tell(server, "one", order)
    expected = r"""
# HELP c1 counter one
# TYPE c1 counter
c1 8.5
c1{b="é",q="we\"ird\n\\"} 1e+300
# TYPE e1 counter
e1 0
# HELP g1 gauge
# TYPE g1 gauge
g1{n="nan"} Nan
g1{n="inf"} -Inf
g1{n="third"} 0.3333333333333333
# HELP h1 hist
# TYPE h1 histogram
h1_count{x="y"} 6
h1_sum{x="y"} 1e+30
h1_bucket{x="y",le="0.1"} 3
h1_bucket{x="y",le="1"} 3
h1_bucket{x="y",le="2.5"} 3
h1_bucket{x="y",le="1000000"} 5
h1_bucket{x="y",le="1e+20"} 5
h1_bucket{x="y",le="+Inf"} 6
h1_count{e="empty"} 1
h1_sum{e="empty"} 3
h1_bucket{e="empty",le="+Inf"} 1
"""
    of_these = re.compile(r"(# (HELP|TYPE) )?(c1|e1|g1|h1)[ _{]")
    found = [line for line in page(server).splitlines() if of_these.match(line)]
    assert sorted(found) == sorted(expected.split("\n")[1:-1])


def test_misuse_says_what_triton_says(server: Server) -> None:
    assert tell(server, "one", "self.metric.set(1)") == (
        "Failed to set metric value: Failed to process the request for model 'one_0_0', message: "
        "TRITONSERVER_METRIC_KIND_COUNTER does not support Set"
    )
    assert "nv_inference_count' is a metric of the server" in tell(
        server, "one", "MF('nv_inference_count', 'text', MF.COUNTER)"
    )


def test_models_share_metrics(server: Server) -> None:
    for model in ("one", "other"):
        tell(server, model, "self.make('shared', 'of ' + __name__, 'COUNTER', {'a': 'b'}).increment(2)")
    assert lines(server, "shared")[-1] == 'shared{a="b"} 4'


def test_another_kind_of_another_model_is_not_shown(server: Server) -> None:
    tell(server, "one", "self.make('disputed', 'first', 'COUNTER').increment(2)")
    assert lines(server, "disputed")[-1] == "disputed 2"
    tell(server, "other", "self.make('disputed', 'second', 'GAUGE').set(5)")
    assert lines(server, "disputed") == ["# HELP disputed first", "# TYPE disputed counter", "disputed 2"]


def test_instances_sum_and_the_dead_count(server: Server) -> None:
    pids = pids_of_both(server)
    order = "(self.make('summed', 'text', 'COUNTER').increment(1), self.make('level', 'text', 'GAUGE').increment(1))"
    for _ in range(10):
        tell(server, "two", order)
    found = lines(server, "summed") + lines(server, "level")
    assert found[2] == "summed 10" and found[-1].startswith("level ")
    for pid in pids:
        os.kill(int(pid), signal.SIGKILL)
    found_now = scrape_until(server, lambda found: ("level",) not in found)
    assert found_now["summed",] == 10
    tell(server, "two", order)
    assert lines(server, "summed")[-1] == "summed 11"


def test_a_worker_that_hangs_holds_up_nothing(server: Server) -> None:
    tell(server, "other", "self.make('before', 'text', 'COUNTER').increment(3)")
    assert scrape(server)["before",] == 3
    pid = int(tell(server, "other", "os.getpid()"))
    os.kill(pid, signal.SIGSTOP)
    try:
        assert scrape(server)["before",] == 3
    finally:
        os.kill(pid, signal.SIGCONT)
    tell(server, "other", "FAMILIES['before'][0].Metric().increment(1)")
    assert scrape(server)["before",] == 4


def test_unloading_and_loading_again(serve: Serve, tmp_path: Path) -> None:
    """A counter goes on, through ``finalize`` too; a gauge is gone with its model."""
    repository = tmp_path / "models"
    write_model(repository, "one", OBEYS_PYTHON, "STRING", [1])
    server = serve(repository, "--model-control-mode=explicit", "--load-model=one")
    tell(server, "one", "self.make('level', 'text', 'GAUGE').set(7)")
    tell(server, "one", "self.make('freed', 'text', 'COUNTER').increment(7)")
    found = scrape(server)
    assert (found["loaded", "one"], found["level",], found["freed",]) == (1, 7, 7)
    tell(server, "one", "FAMILIES.pop('freed') and None")
    assert ("freed",) not in scrape(server)

    assert server.request("POST", "/v2/repository/models/one/unload")[0] == 200
    found = scrape_until(server, lambda found: ("level",) not in found)
    assert found["loaded", "one"] == 101
    assert server.request("POST", "/v2/repository/models/one/load")[0] == 200
    assert scrape(server)["loaded", "one"] == 102


def test_a_new_broker_is_told_by_the_workers(serve: Serve, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_model(repository, "one", OBEYS_PYTHON, "STRING", [1])
    server = serve(repository)
    tell(server, "one", "self.make('made', 'text', 'COUNTER').increment(7)")
    os.kill(server.program_pid("broker"), signal.SIGKILL)
    assert tell(server, "one", "1 + 1") == "2"
    assert scrape_until(server, lambda found: ("made",) in found)["made",] == 7


def copies(server: Server) -> dict[tuple[str, str], float]:
    """Bytes that were copied, by model and purpose."""
    found = re.findall(r'conch_copied_bytes_total{model="(\w+)",purpose="(\w+)",version="1"} (\d+)', page(server))
    return {(model, purpose): int(nbytes) for model, purpose, nbytes in found}


def test_tensors_that_pass_through_models_are_copied_once_by_each(serve: Serve, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    for name, code in (("passes", PASSES), ("asks", ASKS), ("doubles", DOUBLES)):
        write_model(repository, name, code)
    server = serve(repository)
    values = np.arange(1 << 20, dtype=np.int32)
    with tritonclient.http.InferenceServerClient(server.url) as client:
        tensor = tritonclient.http.InferInput("INPUT0", values.shape, "INT32")
        tensor.set_data_from_numpy(values)
        assert np.array_equal(client.infer("asks", [tensor]).as_numpy("OUTPUT0"), values)
        assert copies(server) == {("passes", "output"): values.nbytes, ("asks", "output"): values.nbytes}
        assert np.array_equal(client.infer("doubles", [tensor]).as_numpy("OUTPUT0"), values * 2)
    assert copies(server) == {
        ("passes", "output"): 2 * values.nbytes,
        ("asks", "output"): values.nbytes,
        ("doubles", "as_numpy"): values.nbytes,
        ("doubles", "request"): values.nbytes,
        ("doubles", "output"): values.nbytes,
    }
