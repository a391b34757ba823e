"""Adds up the numbers of a sequence. The sequence's id is a number written out as text; the last sum has it added."""

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            number, start, end, sequence = (
                pb_utils.get_input_tensor_by_name(request, name).as_numpy().item()
                for name in ("INPUT", "START", "END", "CORRID")
            )
            if start:
                self.sums[sequence] = 0
            self.sums[sequence] += number
            result = self.sums[sequence]
            if end:
                result += int(sequence)
                del self.sums[sequence]
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", numpy.array([[result]], dtype=numpy.int32))])
            )
        return responses
