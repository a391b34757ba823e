"""When a worker's control thread tells the broker of metrics, and what."""

import time

import numpy as np

from conch.messages import Died, Drain, MetricFamily, MetricSample, MetricsReport, ReportMetrics
from tests.workers.harness import FakeBroker, Stage, ints
from tests.workers.test_python_model import ECHO
from workers.metrics_reports import INTERVAL_S

#: counts what it is sent, from another thread, and once more at its end
COUNTS = """
import threading
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.family = pb_utils.MetricFamily("made", "by a model", pb_utils.MetricFamily.COUNTER)
        self.metric = self.family.Metric({"instance": args["model_instance_name"]})

    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "IN")
            thread = threading.Thread(target=self.metric.increment, args=[int(tensor.as_numpy()[0, 0])])
            thread.start()
            thread.join()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy())]))
        return responses

    def finalize(self):
        self.metric.increment(0.5)
"""

#: answers its inputs without looking at them
PASSES = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse(request.inputs()) for request in requests]
"""


def counted(report: MetricsReport) -> float:
    (value,) = [family.samples[0].value for family in report.families if family.name == "made"]
    return value


def test_changes_are_reported_and_only_changes(stage: Stage) -> None:
    worker = stage.ready(stage.model("counts", COUNTS))
    first = stage.broker.expect(MetricsReport)
    assert first == MetricsReport(
        worker, (MetricFamily("made", "by a model", "counter", (MetricSample({"instance": "counts_0_0"}, 0.0),)),)
    )
    begin = time.monotonic()
    for _ in range(20):
        stage.ask(worker, "counts", ints(1))
    reports = [stage.broker.expect(MetricsReport, where=lambda report: counted(report) == 20)]
    reports += [message for _, message in stage.broker.heard if isinstance(message, MetricsReport)]
    assert len(reports) <= 2 + (time.monotonic() - begin) / INTERVAL_S
    assert not stage.broker.listen(1.2)  # nothing has changed since


def test_a_report_that_was_asked_for_has_everything(stage: Stage) -> None:
    worker = stage.ready(stage.model("asked", COUNTS))
    stage.ask(worker, "asked", ints(3))
    stage.broker.heard.clear()
    stage.broker.to_control(worker, ReportMetrics())
    stage.broker.to_control(worker, ReportMetrics())
    for _ in range(2):
        report = stage.broker.expect(MetricsReport, where=lambda report: counted(report) == 3)
        (copied,) = [family for family in report.families if family.name == "conch_copied_bytes_total"]
        assert {sample.labels["purpose"]: sample.value for sample in copied.samples} == {"as_numpy": 4, "output": 4}
        assert copied.samples[0].labels == {"model": "asked", "version": "1", "purpose": "as_numpy"}


def test_a_worker_reports_before_it_ends(stage: Stage) -> None:
    worker = stage.ready(stage.model("ends", COUNTS))
    stage.ask(worker, "ends", ints(2))
    stage.broker.to_control(worker, Drain())
    died = stage.broker.expect(Died)
    assert (died.worker, died.exit_code) == (worker, 0)
    stage.broker.expect(MetricsReport, where=lambda report: counted(report) == 2.5)


def test_a_new_broker_is_told(own_stage: Stage) -> None:
    stage = own_stage
    worker = stage.ready(stage.model("told", COUNTS))
    stage.ask(worker, "told", ints(4))
    stage.broker.expect(MetricsReport, where=lambda report: counted(report) == 4)
    stage.broker.close()
    stage.broker = FakeBroker(stage.run_dir, epoch=8)
    stage.broker.expect(MetricsReport, where=lambda report: counted(report) == 4)
    stage.broker.to_control(worker, Drain())
    stage.broker.expect(Died)


def test_a_model_without_metrics_says_nothing_by_itself(stage: Stage) -> None:
    worker = stage.ready(stage.model("plain", ECHO))
    large = np.zeros((1, 100_000), np.int32)
    stage.ask(worker, "plain", large)
    assert not stage.broker.listen(0.8)
    stage.broker.to_control(worker, ReportMetrics())
    report = stage.broker.expect(MetricsReport)
    assert [family.name for family in report.families] == ["conch_copied_bytes_total"]
    assert {sample.value for sample in report.families[0].samples} == {400_000}


def test_tensors_that_are_passed_on_are_copied_once(stage: Stage) -> None:
    worker = stage.ready(stage.model("passes", PASSES))
    stage.infer(worker, "passes", OUT=np.zeros((1, 1000), np.int32))
    stage.broker.to_control(worker, ReportMetrics())
    (family,) = stage.broker.expect(MetricsReport).families
    assert [(sample.labels["purpose"], sample.value) for sample in family.samples] == [("output", 4000)]
