"""Models that only the Python backend has: one that asks two others, and a decoupled one."""

from pathlib import Path

_STEP_CONFIG = """\
backend: "python"
max_batch_size: 0
input {{ name: "{taken}", data_type: TYPE_UINT8, dims: [ -1 ] }}
output {{ name: "{given}", data_type: TYPE_UINT8, dims: [ -1 ] }}
instance_group {{ kind: KIND_CPU }}
"""
_STEP_CODE = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            values = pb_utils.get_input_tensor_by_name(request, "{taken}").as_numpy()
            values += 1
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("{given}", values)]))
        return responses
"""
_CHAIN_CODE = """\
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.both(pb_utils.get_input_tensor_by_name(request, "IN")) for request in requests]

    def both(self, tensor):
        for model, output in ("first_step", "BETWEEN"), ("second_step", "OUT"):
            request = pb_utils.InferenceRequest(model_name=model, requested_output_names=[output], inputs=[tensor])
            response = request.exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            tensor = pb_utils.get_output_tensor_by_name(response, output)
        return pb_utils.InferenceResponse([tensor])
"""
_COUNT_CONFIG = """\
backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input { name: "COUNT", data_type: TYPE_INT32, dims: [ 1 ] }
output { name: "INDEX", data_type: TYPE_INT32, dims: [ 1 ] }
instance_group { kind: KIND_CPU }
"""
_COUNT_CODE = """\
import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for index in range(pb_utils.get_input_tensor_by_name(request, "COUNT").as_numpy()[0]):
                tensor = pb_utils.Tensor("INDEX", numpy.array([index], numpy.int32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def write_chain(repository: Path) -> None:
    """``chain`` adds 2 to UINT8 of any length: it passes its input to ``first_step``, whose output to ``second_step``,
    and what that gives on, without looking at them. Each step adds 1 in place."""
    _write(repository, "first_step", *_step("IN", "BETWEEN"))
    _write(repository, "second_step", *_step("BETWEEN", "OUT"))
    _write(repository, "chain", _STEP_CONFIG.format(taken="IN", given="OUT"), _CHAIN_CODE)


def write_counter(repository: Path) -> None:
    """``counter`` answers with as many responses as its input says: 0, 1, 2 …"""
    _write(repository, "counter", _COUNT_CONFIG, _COUNT_CODE)


def _step(taken: str, given: str) -> tuple[str, str]:
    names = {"taken": taken, "given": given}
    return _STEP_CONFIG.format(**names), _STEP_CODE.format(**names)


def _write(repository: Path, model: str, config: str, code: str) -> None:
    (repository / model / "1").mkdir(parents=True)
    (repository / model / "config.pbtxt").write_text(config)
    (repository / model / "1" / "model.py").write_text(code)
