"""A ``ModelInferRequest`` as a call to a model, and the model's answer as a ``ModelInferResponse``."""

from typing import Any, Final, NamedTuple

import numpy as np

from conch.errors import InvalidArgument, TooLarge
from conch.requester.inference import InferenceCall, InferenceResult, OutputTensor, TensorInput
from conch.requester.models import ReadyModel
from conch.requester.regions import RegionTableView
from conch.requester.validation import refused
from conch.tensors import STORAGE_DTYPES, pack
from frontends.classification import classify
from frontends.grpc.codec import join_response, service_pb2
from frontends.grpc.parameters import FINAL_RESPONSE, class_count, place_of, set_parameters, take_parameters

ModelInferResponse: Final = service_pb2.ModelInferResponse

#: field of InferTensorContents -> its NumPy type, and the datatypes that it may hold; the last is its own
_TYPED: Final = {
    "bool_contents": (np.dtype(np.bool_), ("BOOL",)),
    "int_contents": (np.dtype("<i4"), ("INT8", "INT16", "INT32")),
    "int64_contents": (np.dtype("<i8"), ("INT64",)),
    "uint_contents": (np.dtype("<u4"), ("UINT8", "UINT16", "UINT32")),
    "uint64_contents": (np.dtype("<u8"), ("UINT64",)),
    "fp32_contents": (np.dtype("<f4"), ("FP32",)),
    "fp64_contents": (np.dtype("<f8"), ("FP64",)),
    "bytes_contents": (np.dtype(np.object_), ("BYTES",)),
}
_DATATYPES: Final = frozenset({*STORAGE_DTYPES, "BYTES"})
#: Triton's name for a datatype that there is not
_NO_DATATYPE: Final = "<invalid>"
#: protobuf's limit for a message, less what is around the tensors
_MAX_OUTPUT_NBYTES: Final = 2**31 - 2**20


class Wanted(NamedTuple):
    """``classes`` maps outputs to how many of the top classes the client wants instead of the tensor."""

    call: InferenceCall
    classes: dict[str, int]


def decode(
    request: Any, blobs: list[memoryview], model: ReadyModel, regions: RegionTableView, forwarded: dict[str, str]
) -> Wanted:
    """``blobs`` are the request's ``raw_input_contents``, ``forwarded`` the parameters that its metadata adds.

    Raises ``ClientError``, in Triton's order: a request with several faults gets the text that Triton gives.
    """
    call = InferenceCall([], client_id=request.id)
    if request.parameters:
        take_parameters(request.parameters, call)
    inputs = request.inputs
    if len({tensor.name for tensor in inputs}) != len(inputs):
        raise _named_twice(call, inputs)
    if forwarded:
        call.parameters = {**call.parameters, **forwarded}
    position = 0
    for tensor in inputs:
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        if datatype not in _DATATYPES:
            datatype = _NO_DATATYPE
        data: bytes | memoryview
        place = place_of(tensor) if tensor.parameters else None
        if place is not None:
            if tensor.HasField("contents"):
                raise InvalidArgument(
                    f"unexpected 'content' provided when using shared memory for input tensor '{name}' for model "
                    f"'{model.name}'"
                )
            call.inputs.append(TensorInput(name, datatype, shape, b"", regions.window(*place)))
            continue
        if tensor.HasField("contents"):
            if blobs:
                raise InvalidArgument(
                    f"contents field must not be specified when using raw_input_contents for '{name}' for model "
                    f"'{model.name}'"
                )
            data = _typed(tensor, datatype, model.name)
        elif position < len(blobs):
            data = blobs[position]
            position += 1
        else:
            raise InvalidArgument(f"unable to find data for input tensor '{name}' for model '{model.name}' in request.")
        call.inputs.append(TensorInput(name, datatype, shape, data))
    return Wanted(call, _take_outputs(request.outputs, call, regions) if request.outputs else {})


def _named_twice(call: InferenceCall, inputs: Any) -> InvalidArgument:
    seen: set[str] = set()
    for tensor in inputs:
        if tensor.name in seen:
            return refused(call, f"input '{tensor.name}' already exists in request")
        seen.add(tensor.name)
    raise AssertionError("no input is named twice")


def _take_outputs(outputs: Any, call: InferenceCall, regions: RegionTableView) -> dict[str, int]:
    classes = {}
    targets = {}
    for output in outputs:
        if not output.parameters:
            continue
        place = place_of(output)
        count = class_count(output)
        if place is not None and count:
            raise InvalidArgument("output can't set both 'shared_memory_region' and 'classification'")
        if place is not None:
            targets[output.name] = regions.window(*place)
        elif count:
            classes[output.name] = count
    call.outputs = tuple(output.name for output in outputs)
    if targets:
        call.targets = targets
    return classes


def _typed(tensor: Any, datatype: str, model_name: str) -> bytes:
    """Wire bytes of an input's typed ``contents``."""
    data = b""
    # in order of the fields' numbers, which is Triton's
    for field, values in tensor.contents.ListFields():
        dtype, datatypes = _TYPED[field.name]
        if data:
            raise _unexpected(tensor.name, model_name, ", binary data was already supplied.")
        if datatype not in datatypes:
            raise _unexpected(tensor.name, model_name, f" of type '{datatypes[-1]}', expected datatype '{datatype}'")
        if datatype == "BYTES":
            data = pack(values)
            continue
        array = np.fromiter(values, dtype, len(values))
        if datatype != datatypes[-1]:
            limits = np.iinfo(STORAGE_DTYPES[datatype])
            if array.min() < limits.min or array.max() > limits.max:
                raise InvalidArgument(f"a value of input '{tensor.name}' is out of the range of datatype {datatype}")
            array = array.astype(STORAGE_DTYPES[datatype])
        data = array.tobytes()
    return data


def _unexpected(name: str, model_name: str, rest: str) -> InvalidArgument:
    return InvalidArgument(f"unexpected explicit tensor data for input tensor '{name}' for model '{model_name}'{rest}")


def encode(result: InferenceResult, classes: dict[str, int], model: ReadyModel, final: bool | None = None) -> bytes:
    """The encoded ``ModelInferResponse``. ``final`` says in a stream whether it is the request's last one. The result
    has been released when this returns or raises. Raises ``InvalidArgument`` for an output that cannot be shown as
    asked."""
    try:
        head = ModelInferResponse(
            model_name=result.model_name, model_version=str(result.model_version), id=result.client_id
        )
        if result.parameters:
            set_parameters(head.parameters, result.parameters)
        if final is not None:
            head.parameters[FINAL_RESPONSE].bool_param = final
        outputs = [_shown(output, classes, model) for output in result.outputs] if classes else result.outputs
        add = head.outputs.add
        nbytes = 0
        for output in outputs:
            add(name=output.name, datatype=output.datatype, shape=output.shape)
            nbytes += len(output.data)
        if nbytes > _MAX_OUTPUT_NBYTES:
            raise TooLarge(
                f"the outputs take {nbytes} bytes, and a gRPC message holds no more than 2 GiB; ask for fewer outputs, "
                "or have them written to shared memory"
            )
        return join_response(head, [output.data for output in outputs])
    finally:
        result.release()


def _shown(output: OutputTensor, classes: dict[str, int], model: ReadyModel) -> OutputTensor:
    count = classes.get(output.name)
    if not count:
        return output
    return classify(output, count, model.max_batch_size > 0, model.labels.get(output.name, ()))
