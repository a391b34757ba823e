"""Python models in real workers: what goes in and what comes out."""

import numpy as np

from tests.workers.harness import Stage, ints

ECHO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", pb_utils.get_input_tensor_by_name(r, "IN").as_numpy())])
            for r in requests
        ]
"""


def test_echo(stage: Stage) -> None:
    worker = stage.ready(stage.model("echo", ECHO))
    for number in range(3):
        assert np.array_equal(stage.ask(worker, "echo", ints(1, 2, number)), ints(1, 2, number))
