"""Adds and subtracts numbers that are written out as text: "12" + "3" = "15"."""

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            left, right = numbers(request, "INPUT0"), numbers(request, "INPUT1")
            responses.append(
                pb_utils.InferenceResponse(
                    [pb_utils.Tensor("OUTPUT0", texts(left + right)), pb_utils.Tensor("OUTPUT1", texts(left - right))]
                )
            )
        return responses


def numbers(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy().astype(numpy.int64)


def texts(numbers):
    return numbers.astype(numpy.bytes_).astype(numpy.object_)
