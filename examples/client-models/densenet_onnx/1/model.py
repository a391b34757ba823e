"""Which colours are in a picture? Takes the place, the name and the shapes of a network that is 32 MB large.

There are a thousand classes, ten levels each of red, green and blue; `densenet_labels.txt` has their names. The score
of a class is the part of the picture that has this colour.
"""

import numpy
import triton_python_backend_utils as pb_utils

LEVELS = 10


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            picture = pb_utils.get_input_tensor_by_name(request, "data_0").as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("fc6_1", colour_scores(picture))]))
        return responses


def colour_scores(picture):
    """``picture``: [3, height, width], 0 to 255. Returns [1000] scores that add up to 1."""
    levels = numpy.rint(numpy.clip(picture, 0, 255) / 255 * (LEVELS - 1)).astype(numpy.int64)
    red, green, blue = levels.reshape(3, -1)
    counts = numpy.bincount((red * LEVELS + green) * LEVELS + blue, minlength=LEVELS**3)
    return (counts / counts.sum()).astype(numpy.float32)
