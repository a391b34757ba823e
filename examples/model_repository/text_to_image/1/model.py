"""A stand-in for a text-to-image model: the same interface, a drawing instead of a network.

It shows what such a model needs from its server: an asset read once in ``initialize``, a string in, and a picture
out whose size depends on the prompt. Every byte of the prompt becomes one coloured cell, so the same prompt always
gives the same picture.
"""

import json
import math
import os

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.cell_pixels = int(parameters["cell_pixels"]["string_value"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        path = os.path.join(folder, parameters["palette"]["string_value"])
        if not os.path.exists(path):
            raise pb_utils.TritonModelException(
                f"the colours of this model are missing: no file {path}. "
                "Put palette.json there, or name another file in config.pbtxt, parameter 'palette'."
            )
        with open(path, encoding="utf-8") as file:
            palette = json.load(file)
        self.paper = numpy.array(palette["paper"], dtype=numpy.uint8)
        self.ink = numpy.array(palette["ink"], dtype=numpy.uint8)

    def execute(self, requests):
        return [self.draw(request) for request in requests]

    def draw(self, request):
        prompt = pb_utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0]
        if not prompt:
            error = pb_utils.TritonError("the prompt is empty", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        letters = numpy.frombuffer(prompt, dtype=numpy.uint8)
        columns = math.ceil(math.sqrt(len(letters)))
        rows = math.ceil(len(letters) / columns)
        cells = numpy.tile(self.paper, (rows * columns, 1))
        cells[: len(letters)] = self.ink[letters % len(self.ink)]
        cells[: len(letters)][letters == ord(" ")] = self.paper
        picture = cells.reshape(rows, columns, 3).repeat(self.cell_pixels, axis=0).repeat(self.cell_pixels, axis=1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("IMAGE", picture)])

    def finalize(self):
        print("text_to_image: finished")
