"""Returns every number of a sequence, the first one plus 1, and the last one plus the sequence's id."""

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            number, start, end, sequence = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in ("INPUT", "START", "END", "CORRID")
            )
            result = number + start + end * sequence.astype(numpy.int32)
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", result)]))
        return responses
