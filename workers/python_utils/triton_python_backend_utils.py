"""The module itself, under the name that models import: ``import triton_python_backend_utils as pb_utils``."""

from workers.python_utils.asking import set_asker as _set_asker
from workers.python_utils.asking import set_running as _set_running
from workers.python_utils.asking import set_serving as _set_serving
from workers.python_utils.bls import ResponseIterator
from workers.python_utils.datatypes import (
    TRITON_STRING_TO_NUMPY,
    deserialize_bytes_tensor,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
)
from workers.python_utils.failures import TritonError, TritonModelException
from workers.python_utils.logger import Logger
from workers.python_utils.metrics import MetricFamily
from workers.python_utils.model_config import (
    ModelConfig,
    get_input_config_by_name,
    get_output_config_by_name,
    using_decoupled_model_transaction_policy,
)
from workers.python_utils.model_control import is_model_ready, load_model, unload_model
from workers.python_utils.request import (
    TRITONSERVER_MEMORY_CPU,
    TRITONSERVER_MEMORY_GPU,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
    TRITONSERVER_REQUEST_RELEASE_ALL,
    TRITONSERVER_REQUEST_RELEASE_RESCHEDULE,
    InferenceRequest,
    InferenceTrace,
    MemoryType,
    PreferredMemory,
)
from workers.python_utils.response import (
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceResponse,
    InferenceResponseSender,
)
from workers.python_utils.tensor import Tensor
from workers.python_utils.texts import text

__all__ = [
    "TRITONSERVER_MEMORY_CPU",
    "TRITONSERVER_MEMORY_GPU",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_END",
    "TRITONSERVER_REQUEST_FLAG_SEQUENCE_START",
    "TRITONSERVER_REQUEST_RELEASE_ALL",
    "TRITONSERVER_REQUEST_RELEASE_RESCHEDULE",
    "TRITONSERVER_RESPONSE_COMPLETE_FINAL",
    "TRITON_STRING_TO_NUMPY",
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "InferenceTrace",
    "Logger",
    "MemoryType",
    "MetricFamily",
    "ModelConfig",
    "PreferredMemory",
    "ResponseIterator",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_model_dir",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "load_model",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "unload_model",
    "using_decoupled_model_transaction_policy",
    # for the worker
    "_set_asker",
    "_set_running",
    "_set_serving",
]

_model_dir = ""


def get_model_dir() -> str:
    """The folder of the model version that this worker runs."""
    return _model_dir


def _set_model_dir(path: str) -> None:
    global _model_dir
    _model_dir = path


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str | bytes) -> Tensor | None:
    if type(name) is not str:
        name = text(name, "name of get_input_tensor_by_name")
    for tensor in inference_request._inputs:
        if tensor._name == name:
            return tensor
    return None


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str | bytes) -> Tensor | None:
    if type(name) is not str:
        name = text(name, "name of get_output_tensor_by_name")
    for tensor in inference_response.output_tensors():
        if tensor._name == name:
            return tensor
    return None
