"""Protobuf messages of any contents, good messages that are changed, and bytes that are hardly messages."""

import copy
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from tests.differential.grpc_cases import _CONTENTS as CONTENTS
from tests.differential.grpc_cases import good, pb
from tests.scenarios.fuzz.values import DATATYPES, FLOATS, GARBAGE, SIGNED_64, TEXTS, UNSIGNED_64, damaged

#: what parameters and settings are called that mean something
KEYS = (
    *("priority", "timeout", "sequence_id", "sequence_start", "sequence_end", "binary_data_output", "binary_data"),
    *("binary_data_size", "classification", "headers", "triton_x", "triton_enable_empty_final_response", "custom", ""),
    *("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "config", "file:1/model.py", "file:"),
    *("unload_dependents", "log_file", "log_info", "log_verbose_level", "log_format", "trace_level", "trace_rate"),
    *("trace_count", "trace_file", "log_frequency"),
)
#: what protobuf takes for a string
STRINGS = TEXTS.map(lambda text: text.encode(errors="replace").decode())

_SIGNED_32 = SIGNED_64.filter(lambda number: -(2**31) <= number < 2**31)
_UNSIGNED_32 = UNSIGNED_64.filter(lambda number: number < 2**32)
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: STRINGS,
    FieldDescriptor.TYPE_BYTES: GARBAGE | st.sampled_from([0, 4, 11, 60, 64, 68]).map(bytes),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: FLOATS,
    FieldDescriptor.TYPE_FLOAT: FLOATS,
    FieldDescriptor.TYPE_INT32: _SIGNED_32,
    FieldDescriptor.TYPE_INT64: SIGNED_64,
    FieldDescriptor.TYPE_UINT32: _UNSIGNED_32,
    FieldDescriptor.TYPE_UINT64: UNSIGNED_64,
}


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _put(draw: st.DrawFn, message: Message, field: FieldDescriptor) -> None:
    """A value of any kind into a field; one more, if it holds several."""
    if _is_map(field):
        key = draw(st.sampled_from(KEYS) | STRINGS)
        value = field.message_type.fields_by_name["value"]
        if value.message_type is None:
            getattr(message, field.name)[key] = draw(_SCALARS[value.type])
        else:
            _fill(draw, getattr(message, field.name)[key])
    elif field.message_type is not None:
        holder = getattr(message, field.name)
        inner = holder.add() if field.is_repeated else holder
        inner.SetInParent()
        _fill(draw, inner)
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_SCALARS[field.type], max_size=17)))
    else:
        setattr(message, field.name, draw(_SCALARS[field.type]))


def _fill(draw: st.DrawFn, message: Message) -> None:
    for field in message.DESCRIPTOR.fields:
        for _ in range(draw(st.sampled_from([0, 0, 1, 2] if field.is_repeated else [0, 1]))):
            _put(draw, message, field)


@st.composite
def any_message(draw: st.DrawFn, make: Callable[[], Message]) -> Any:
    message = make()
    _fill(draw, message)
    return message


def _inner(message: Message) -> list[Message]:
    """The message and all that it holds."""
    found = [message]
    for field, value in message.ListFields():
        if _is_map(field):
            values = (
                [value[key] for key in sorted(value)] if field.message_type.fields_by_name["value"].message_type else []
            )
        elif field.message_type is None:
            continue
        else:
            values = list(value) if field.is_repeated else [value]
        for each in values:
            found += _inner(each)
    return found


@st.composite
def changed(draw: st.DrawFn, message: Any) -> Any:
    """``message`` with one to three fields that are set, left out, doubled or shortened."""
    message = copy.deepcopy(message)
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in _inner(message) if place.DESCRIPTOR.fields]
        if not places:
            break
        place = draw(st.sampled_from(places))
        field = draw(st.sampled_from(list(place.DESCRIPTOR.fields)))
        value = getattr(place, field.name)
        match draw(st.sampled_from(["put", "put", "put", "clear", "double", "shorten"])):
            case "clear":
                place.ClearField(field.name)
            case "double" if field.is_repeated and not _is_map(field):
                value.extend(copy.deepcopy(list(value)))
            case "shorten" if field.is_repeated and not _is_map(field) and len(value):
                del value[draw(st.integers(0, len(value) - 1))]
            case _:
                if field.is_repeated and draw(st.booleans()):
                    place.ClearField(field.name)
                _put(draw, place, field)
    return message


# ------------------------------------------------------------------------------------------------------------- requests


def _inference(model: str, datatype: str, shape: list[int], data: bytes) -> Any:
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[data])
    request.inputs.add(name="INPUT0", datatype=datatype, shape=shape)
    request.outputs.add(name="OUTPUT0")
    return request


def _typed() -> Any:
    request = good()
    del request.raw_input_contents[:]
    for tensor in request.inputs:
        tensor.contents.int_contents.extend(range(16))
    return request


def _with_parameters() -> Any:
    request = good()
    request.id = "7"
    request.outputs.add(name="OUTPUT1")
    for tensor in (request.inputs[0], request.outputs[0]):
        tensor.parameters["shared_memory_region"].string_param = "region"
        tensor.parameters["shared_memory_byte_size"].int64_param = 64
        tensor.parameters["shared_memory_offset"].int64_param = 0
    request.parameters["priority"].int64_param = 1
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def _classification() -> Any:
    request = _inference("scores", "FP32", [1, 5], bytes(20))
    request.outputs[0].parameters["classification"].int64_param = 2
    return request


INFERENCES = (
    good(),
    _typed(),
    _with_parameters(),
    _inference("echo_int32", "INT32", [4], bytes(16)),
    _inference("echo_bytes", "BYTES", [2], b"\1\0\0\0a\2\0\0\0bc"),
    _inference("matrix", "FP32", [2, 2], bytes(16)),
    _classification(),
)
MODELS = ("simple", "echo_int32", "echo_bytes", "echo_fp32", "matrix", "scores", "nope")


@st.composite
def mixed_contents(draw: st.DrawFn) -> Any:
    """Typed and raw contents of all kinds for inputs of all datatypes and shapes."""
    request = pb.ModelInferRequest(model_name=draw(st.sampled_from(MODELS)))
    for name in draw(st.lists(st.sampled_from(["INPUT0", "INPUT1", "x"]), max_size=3)):
        tensor = request.inputs.add(name=name, datatype=draw(st.sampled_from([*DATATYPES, "", "INT31"])))
        tensor.shape.extend(draw(st.lists(st.integers(0, 17) | SIGNED_64, max_size=4)))
        for field in draw(st.lists(st.sampled_from(sorted(CONTENTS)), max_size=2)):
            values = draw(st.lists(st.sampled_from(CONTENTS[field]), max_size=17))
            getattr(tensor.contents, field).extend(values)
    nbytes = st.sampled_from([0, 1, 3, 4, 16, 20, 63, 64, 65])
    request.raw_input_contents.extend(draw(st.lists(nbytes.map(bytes) | GARBAGE, max_size=3)))
    for name in draw(st.lists(st.sampled_from(["OUTPUT0", "OUTPUT1", "x"]), max_size=3)):
        request.outputs.add(name=name)
    return request


@st.composite
def inference_messages(draw: st.DrawFn) -> Any:
    """``ModelInferRequest``."""
    return draw(
        st.one_of(
            st.sampled_from(INFERENCES).flatmap(changed),
            st.sampled_from(INFERENCES).flatmap(changed),
            mixed_contents(),
            any_message(pb.ModelInferRequest),
        )
    )


# ---------------------------------------------------------------------------------------------------------- wire format


def _varint(number: int) -> bytes:
    data = b""
    while number > 0x7F:
        data += bytes([number & 0x7F | 0x80])
        number >>= 7
    return data + bytes([number])


@st.composite
def _wire_field(draw: st.DrawFn) -> bytes:
    """A field of any number and wire type, the ones that do not exist among them."""
    number = draw(st.integers(1, 12) | st.sampled_from([0, 15, 16, 100, 2**29 - 1, 2**29, 2**40]))
    wire_type = draw(st.integers(0, 7))
    tag = _varint(number << 3 | wire_type)
    match wire_type:
        case 0:
            return tag + draw(st.sampled_from([b"\0", b"\1", b"\xff" * 9 + b"\1", b"\xff" * 10, b"\x80"]))
        case 1:
            return tag + draw(st.sampled_from([struct.pack("<d", float("nan")), b"\xff" * 7]))
        case 2:
            data = draw(st.binary(max_size=20) | GARBAGE | st.lists(_wire_field(), max_size=3).map(b"".join))
            wrong = draw(st.sampled_from([0, 0, 0, 1, -1, 2**31, 2**63]))
            return tag + _varint(max(0, len(data) + wrong)) + data
        case 5:
            return tag + b"\0\0\xc0\x7f"
    return tag


def wire_garbage() -> st.SearchStrategy[bytes]:
    groups = st.integers(1, 300).map(lambda depth: b"\x0b" * depth)
    nested = st.integers(1, 200).map(_nested)
    return st.one_of(st.lists(_wire_field(), max_size=8).map(b"".join), GARBAGE, groups, nested)


def _nested(depth: int) -> bytes:
    """A message that holds a message and so on, each as field 5."""
    data = b""
    for _ in range(depth):
        data = b"\x2a" + _varint(len(data)) + data
    return data


@st.composite
def encoded(draw: st.DrawFn, messages: st.SearchStrategy[Any]) -> bytes:
    """Bytes of such a message; sometimes damaged."""
    data: bytes = draw(messages).SerializeToString(deterministic=True)
    return draw(damaged(data)) if draw(st.integers(0, 3)) == 0 else data
