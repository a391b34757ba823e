"""The body of an inference request: JSON, JSON followed by blobs, or nothing but one tensor's bytes."""

import math
from typing import Any, Final

from conch.datatypes import BYTES_PREFIX_NBYTES, ITEM_SIZES
from conch.errors import InvalidArgument, MalformedJson, TooLarge
from conch.messages import Parameter, Sequence
from conch.requester.inference import InferenceCall, TensorInput
from conch.requester.models import ReadyModel
from conch.requester.regions import RegionTableView
from conch.requester.validation import refused
from frontends.http.json_values import (
    MAX_UNSIGNED,
    NOT_ARRAY,
    NOT_STRING,
    NOT_UNSIGNED,
    boolean,
    is_unsigned,
    member,
    parse,
    too_large,
    unsigned,
)
from frontends.http.request_outputs import ALL_BINARY, ALL_JSON, OutputFormats, take_outputs
from frontends.http.request_regions import region_window
from frontends.http.tensor_json import to_wire

Body = bytes | bytearray | memoryview

_MAX_64: Final = 2**63 - 1
#: sizes in Triton's HTTP frontend are 32-bit signed
MAX_32: Final = 2**31 - 1
HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_ABSENT: Final = object()


def header_length(value: bytes | None, nbytes: int) -> int:
    """How much of a body of ``nbytes`` is JSON, by the value of the request's header. Raises ``InvalidArgument``."""
    if value is None:
        return nbytes
    text = value.decode("latin-1")
    digits = value.removeprefix(b"-")
    if not digits.isdigit():
        raise InvalidArgument(f"Unable to parse {HEADER_LENGTH}, got: {text}")
    if len(digits) > 10 or int(digits) > MAX_32:
        raise InvalidArgument(
            f"Unable to parse {HEADER_LENGTH}, value is out of range [ {-MAX_32 - 1}, {MAX_32} ], got: {text}"
        )
    if len(digits) < len(value) or int(digits) > nbytes:
        raise InvalidArgument(f"inference header size should be in range (0, {nbytes}), got: {text}")
    return int(digits)


def decode(
    body: Body, json_nbytes: int, model: ReadyModel, regions: RegionTableView, max_input_nbytes: int
) -> tuple[InferenceCall, OutputFormats]:
    """The request in ``body``, whose first ``json_nbytes`` are JSON (0: the whole body is the model's only input).

    Inputs given as blobs stay views of ``body``. Raises ``ClientError`` with Triton's texts.
    """
    if json_nbytes == 0:
        return _raw(body, model, max_input_nbytes), ALL_BINARY
    blobs = memoryview(b"")
    if json_nbytes < len(body):
        if json_nbytes > max_input_nbytes:
            raise too_large(json_nbytes, max_input_nbytes)
        blobs = memoryview(body)[json_nbytes:]
        text = bytes(memoryview(body)[:json_nbytes])
    else:
        text = bytes(body) if type(body) is memoryview else body  # type: ignore[assignment]
    request = parse(text, max_input_nbytes)
    # Triton's order, so that a request with several faults gets the text that Triton gives
    client_id = ""
    if type(request) is dict and "id" in request:
        client_id = request["id"]
        if type(client_id) is not str:
            raise MalformedJson(f"Unable to parse 'id': {NOT_STRING}")
    call = InferenceCall([], client_id=client_id)
    formats = ALL_JSON
    if type(request) is dict and "parameters" in request:
        formats = _take_parameters(request["parameters"], call)
    offset = 0
    for entry in member(request, "inputs", list, NOT_ARRAY):
        offset = _take_input(entry, call, blobs, offset, model.name, regions, max_input_nbytes)
    if offset != len(blobs):
        raise InvalidArgument(f"unexpected additional input data for model '{model.name}'")
    if "outputs" in request:
        formats = take_outputs(member(request, "outputs", list, NOT_ARRAY), call, regions, formats)
    return call, formats


# ---------------------------------------------------------------------------------------------------------- parameters


def _take_parameters(parameters: Any, call: InferenceCall) -> OutputFormats:
    if type(parameters) is not dict:
        raise MalformedJson("failed to get request params.: attempt to get members for non-object")
    formats = ALL_JSON
    sequence_id: int | str = 0
    start = end = False
    rest: dict[str, Parameter] = {}
    for key, value in parameters.items():
        what = f"Unable to parse '{key}'"
        match key:
            case "binary_data_output":
                formats = ALL_BINARY if boolean(value, what) else ALL_JSON
            case "sequence_id":
                if not is_unsigned(value) and type(value) is not str:
                    raise MalformedJson(f"{what}: {NOT_STRING}")
                sequence_id = value
            case "sequence_start":
                start = boolean(value, what)
            case "sequence_end":
                end = boolean(value, what)
            case "priority":
                call.priority = unsigned(value, what)
            case "timeout":
                call.timeout_us = unsigned(value, what)
            case _:
                rest[key] = _parameter(key, value)
    if sequence_id:
        call.sequence = Sequence(sequence_id, start, end)
    if rest:
        call.parameters = rest
    return formats


def _parameter(key: str, value: Any) -> Parameter:
    if key.startswith("triton_"):
        raise InvalidArgument(
            "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
        )
    match value:
        case bool() | str() | float():
            return value
        case int():
            return value if value <= _MAX_64 else float(value)
    raise InvalidArgument(f"parameter '{key}' has invalid type. It should be either 'int', 'bool', or 'string'.")


# -------------------------------------------------------------------------------------------------------------- inputs


def _take_input(
    entry: Any,
    call: InferenceCall,
    blobs: memoryview,
    offset: int,
    model: str,
    regions: RegionTableView,
    max_input_nbytes: int,
) -> int:
    """Appends one input and returns where the next input's blob begins."""
    data = binary = region = _ABSENT
    if type(entry) is dict:
        data = entry.get("data", _ABSENT)
        if "parameters" in entry:
            parameters = entry["parameters"]
            if type(parameters) is dict:
                binary = parameters.get("binary_data_size", _ABSENT)
                region = parameters.get("shared_memory_region", _ABSENT)
    if data is _ABSENT or binary is not _ABSENT or region is not _ABSENT:
        sources = (data is not _ABSENT, binary is not _ABSENT, region is not _ABSENT)
        if sum(sources) != 1:
            raise _wrong_sources(*sources)
    name, datatype, dims = entry.get("name"), entry.get("datatype"), entry.get("shape")
    if type(name) is not str or type(datatype) is not str or type(dims) is not list:
        raise _wrong_member(entry)
    for dim in dims:
        if type(dim) is not int or not 0 <= dim <= MAX_UNSIGNED:
            raise MalformedJson(f"Unable to parse 'shape': {NOT_UNSIGNED}")
    shape: tuple[int, ...] = tuple(dims)
    if data is not _ABSENT:
        call.inputs.append(TensorInput(name, datatype, shape, _data(data, name, datatype, shape, max_input_nbytes)))
        return offset
    if region is not _ABSENT:
        window = region_window(entry["parameters"], regions)
        call.inputs.append(TensorInput(name, datatype, shape, b"", window))
        return offset
    end = offset + unsigned(binary, "Unable to parse 'binary_data_size'")
    if end > len(blobs):
        raise InvalidArgument(
            f"unexpected size for input '{name}', expecting {end - len(blobs)} additional bytes for model '{model}'"
        )
    call.inputs.append(TensorInput(name, datatype, shape, blobs[offset:end]))
    return end


def _wrong_member(entry: dict[str, Any]) -> MalformedJson:
    for name, kind, wrong in (("name", str, NOT_STRING), ("datatype", str, NOT_STRING), ("shape", list, NOT_ARRAY)):
        try:
            member(entry, name, kind, wrong)
        except MalformedJson as error:
            return error
    raise AssertionError("nothing is wrong with these members")


def _wrong_sources(data: bool, binary: bool, region: bool) -> InvalidArgument:
    text = (
        "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
        "'shared_memory_region' in 'parameters'. But"
    )
    found = [
        name
        for name, there in (("data", data), ("binary_data_size", binary), ("shared_memory_region", region))
        if there
    ]
    if not found:
        return InvalidArgument(f"{text} no field is set")
    return InvalidArgument(f"{text} set {' '.join(repr(name) for name in found)}")


def _data(data: Any, name: str, datatype: str, shape: tuple[int, ...], max_input_nbytes: int) -> bytes:
    elements = _element_count(shape)
    if elements == 0:
        return b""
    if elements > _MAX_64:
        raise InvalidArgument(
            f"invalid shape for input '{name}': shape [{','.join(map(str, shape))}] causes total element count to "
            f"exceed maximum size of {_MAX_64}"
        )
    if type(data) is not list:
        raise MalformedJson(f"Unable to parse 'data': {NOT_ARRAY}")
    item_nbytes = ITEM_SIZES.get(datatype, 0)
    nbytes = elements * item_nbytes
    if nbytes > _MAX_64:
        raise InvalidArgument(
            f"byte size overflow for input '{name}': element count ({elements}) * data type size ({item_nbytes}) "
            f"exceeds maximum allowed size ({_MAX_64})"
        )
    if nbytes > max_input_nbytes:
        raise _input_too_large(name, nbytes, max_input_nbytes)
    if not shape and len(data) != 1:
        return b""  # Triton reads nothing where there is no shape, and then finds that out
    wire = to_wire(name, datatype, data, elements)
    if len(wire) > max_input_nbytes:
        raise _input_too_large(name, len(wire), max_input_nbytes)
    return wire


def _element_count(shape: tuple[int, ...]) -> int:
    """Only until it is too large: the product of a hundred thousand large dimensions takes many seconds."""
    if 0 in shape:
        return 0
    elements = 1
    for dim in shape:
        elements *= dim
        if elements > _MAX_64:
            break
    return elements


def _input_too_large(name: str, nbytes: int, max_nbytes: int) -> TooLarge:
    return TooLarge(
        f"JSON input '{name}' has a byte_size ({nbytes} bytes) that exceeds the maximum allowed value of {max_nbytes} "
        "bytes. Use --http-max-input-size to increase the limit."
    )


# -------------------------------------------------------------------------------------------------- raw binary request


def _raw(body: Body, model: ReadyModel, max_input_nbytes: int) -> InferenceCall:
    """The whole body is the only input: its shape follows from the configuration and the size (inventory I-17)."""
    nbytes = len(body)
    if nbytes > max_input_nbytes:
        raise TooLarge(
            f"Raw input has a byte_size ({nbytes} bytes) that exceeds the maximum allowed value of {max_input_nbytes} "
            "bytes. Use --http-max-input-size to increase the limit."
        )
    call = InferenceCall([])
    inputs = model.config.input
    if len(inputs) != 1:
        raise refused(
            call,
            f"Raw request must only have 1 input (found 1) to be deduced but got {len(inputs)} inputs in "
            f"'{model.name}' model configuration",
        )
    config = inputs[0]
    if sum(dim < 0 for dim in config.dims) > 1:
        raise refused(
            call,
            f"The shape of the raw input '{config.name}' can not be deduced because there are more than one "
            "variable-sized dimension",
        )
    known = math.prod(dim for dim in config.dims if dim >= 0)
    data = body
    dims = config.dims
    if config.datatype == "BYTES":
        if known != 1 or any(dim < 0 for dim in config.dims):
            raise refused(call, f"For BYTE datatype raw input '{config.name}', the model must have input shape [1]")
        data = nbytes.to_bytes(BYTES_PREFIX_NBYTES, "little") + bytes(body)
    else:
        item_nbytes = known * ITEM_SIZES[config.datatype]
        deduced = nbytes // item_nbytes if item_nbytes else 0
        dims = tuple(deduced if dim < 0 else dim for dim in config.dims)
    shape = (1, *dims) if model.max_batch_size > 0 else tuple(dims)
    call.inputs.append(TensorInput(config.name, config.datatype, shape, data))
    return call
