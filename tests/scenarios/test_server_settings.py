"""Log and trace settings that change while a server runs, with the official client."""

import os
import signal
import time
from pathlib import Path

import numpy
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.scenarios.conftest import Serve
from tests.scenarios.models import write_model

PATIENCE_S = 10.0
CHATTY = """
import numpy
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            pb_utils.Logger.log_verbose("details")
            output = pb_utils.Tensor("OUTPUT0", pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy())
            responses.append(pb_utils.InferenceResponse([output]))
        return responses
"""


def infer(client: tritonclient.http.InferenceServerClient) -> None:
    tensor = tritonclient.http.InferInput("INPUT0", [1], "INT32")
    tensor.set_data_from_numpy(numpy.zeros(1, numpy.int32))
    client.infer("chatty", [tensor])


@pytest.mark.timeout(60)
def test_settings_reach_every_process_and_outlive_a_broker(serve: Serve, tmp_path: Path, run_dir: Path) -> None:
    write_model(tmp_path / "models", "chatty", CHATTY, "INT32", [1])
    server = serve(tmp_path / "models")
    with tritonclient.http.InferenceServerClient(server.url) as client:
        logs = run_dir / "logs"
        infer(client)
        assert client.get_log_settings()["log_verbose_level"] == 0
        changed = client.update_log_settings({"log_verbose_level": 1, "log_format": "ISO8601"})
        assert (changed["log_verbose_level"], changed["log_format"]) == (1, "ISO8601")
        deadline = time.monotonic() + PATIENCE_S
        while '"details"' not in (logs / "models" / "chatty.log").read_text():  # the worker is told at its leisure
            assert time.monotonic() < deadline, server.report()
            infer(client)
        assert '"HTTP request: POST /v2/models/chatty/infer"' in (logs / "http.log").read_text()
        assert client.update_trace_settings(settings={"trace_rate": "7"})["trace_rate"] == "7"
        assert client.update_trace_settings("chatty", {"trace_count": "3"})["trace_count"] == "3"

        broker = server.program_pid("broker")
        os.kill(broker, signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while server.program_pid("broker") in (0, broker):
            assert time.monotonic() < deadline, server.report()
            time.sleep(0.02)
        assert client.update_log_settings({"log_error": None})["log_verbose_level"] == 1
        traced = client.get_trace_settings("chatty")
        assert (traced["trace_rate"], traced["trace_count"]) == ("7", "3")

        for settings in ({"log_file": "/tmp/x"}, {"log_format": "x"}):
            with pytest.raises(InferenceServerException):
                client.update_log_settings(settings)
        with pytest.raises(InferenceServerException, match="trace file location can not be updated"):
            client.update_trace_settings(settings={"trace_file": "/tmp/x"})
