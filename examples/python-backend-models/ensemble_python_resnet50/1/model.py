"""Takes the place of the ensemble of Triton's preprocessing example: the same two steps, asked one after the other."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._classify(request) for request in requests]

    def _classify(self, request):
        image = pb_utils.get_input_tensor_by_name(request, "INPUT")
        pixels = _ask("preprocess", _named("INPUT_0", image), "OUTPUT_0")
        scores = _ask("resnet50_trt", _named("input", pixels), "output")
        return pb_utils.InferenceResponse([_named("OUTPUT", scores)])


def _named(name, tensor):
    return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())


def _ask(model, tensor, output):
    request = pb_utils.InferenceRequest(model_name=model, inputs=[tensor], requested_output_names=[output])
    response = request.exec()
    if response.has_error():
        raise pb_utils.TritonModelException(response.error().message())
    return pb_utils.get_output_tensor_by_name(response, output)
