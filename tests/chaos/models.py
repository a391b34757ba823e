"""The models that are served meanwhile."""

from pathlib import Path

from tests.scenarios.conftest import copy_examples
from tests.scenarios.decoupled import TELL, write_decoupled_model
from tests.scenarios.faults.models import write_victim
from tests.scenarios.models import ECHO, write_model

#: of what is sent to ``identity``, in 32-bit numbers
IDENTITY_COUNT = 65_536
#: responses of one request to ``stream``
RESPONSES = 20

ASKING = """
class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "INPUT0")
            answer = pb_utils.InferenceRequest(
                model_name="identity", requested_output_names=["OUTPUT0"], inputs=[tensor]
            ).exec()
            if answer.has_error():
                responses.append(pb_utils.InferenceResponse(error=answer.error()))
            else:
                responses.append(pb_utils.InferenceResponse(answer.output_tensors()))
        return responses
"""


def write_models(repository: Path) -> None:
    """``simple`` with one instance, ``slow`` (20 ms a batch) with two, ``identity`` with two, ``asking``, which asks
    ``identity``, and ``stream``, which is decoupled."""
    copy_examples(repository, "simple")
    write_victim(repository, "slow", instances=2)
    write_model(repository, "identity", ECHO, instances=2)
    write_model(repository, "asking", ASKING)
    write_decoupled_model(repository, "stream", TELL, {"IN": ("STRING", 1)}, {"OUT": ("STRING", 1)})
