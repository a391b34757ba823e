"""Models that ask to be given a request once more."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as httpclient

from tests.scenarios.conftest import Serve
from tests.scenarios.decoupled import Stream, telling, text_of, write_decoupled_model
from tests.scenarios.models import write_model

ITERATIVE = "sequence_batching { iterative_sequence: true }\n"
# Answers at the third time, how often it was asked.
THIRD = """
class TritonPythonModel:
    def initialize(self, args):
        self.times = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy()
            times = self.times[int(values[0])] = self.times.get(int(values[0]), 0) + 1
            if times < 3:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                responses.append(None)
            else:
                responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", values * times)]))
        return responses
"""
# One response each time it is given the request, as many as its input says.
COUNTDOWN = """
class TritonPythonModel:
    def initialize(self, args):
        self.left = None

    def execute(self, requests):
        for request in requests:
            if self.left is None:
                self.left = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0])
            self.left -= 1
            text = numpy.array([str(self.left).encode()], numpy.object_)
            response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", text)])
            if self.left:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                request.get_response_sender().send(response)
            else:
                self.left = None
                request.get_response_sender().send(response, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    write_model(tmp_path / "models", "third", THIRD, extra=ITERATIVE)
    write_decoupled_model(tmp_path / "models", "countdown", COUNTDOWN, {"IN": ("STRING", 1)}, {"OUT": ("STRING", 1)})
    config = tmp_path / "models" / "countdown" / "config.pbtxt"
    config.write_text(config.read_text() + "\n" + ITERATIVE)
    yield tmp_path / "models"


def test_rescheduled_requests(serve: Serve, repository: Path) -> None:
    server = serve(repository)
    with httpclient.InferenceServerClient(server.url) as client:
        for value in (5, 7):
            tensor = httpclient.InferInput("INPUT0", [2], "INT32")
            tensor.set_data_from_numpy(np.array([value, 1], np.int32))
            answer = client.infer("third", [tensor]).as_numpy("OUTPUT0")
            assert answer is not None
            assert answer.tolist() == [3 * value, 3]
    for count in (4, 1):
        with Stream(server.grpc_url, telling(str(count), model="countdown")) as stream:
            assert [text_of(answer) for answer in stream.rest()] == [str(left) for left in reversed(range(count))]
