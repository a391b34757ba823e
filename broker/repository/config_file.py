"""A model configuration in its three forms: text (``config.pbtxt``), protobuf message, canonical JSON.

Canonical JSON is what Triton's HTTP API shows (inventory 2.13): original field names in the order of their declaration,
scalars and lists printed even at their default, sub-messages only when set, enums by name, 64-bit integers as numbers,
compact. Maps are sorted by key, so that equal configurations have equal text.
"""

from collections.abc import Callable
from typing import Any

import msgspec
from google.protobuf import json_format, text_format

from conch.errors import InvalidArgument, PollFailed
from conch.model_config import ModelConfig, decode_config
from conch.protos import model_config_pb2

#: a message of type ``inference.ModelConfig``; the generated classes are made at run time, so types end here
ModelConfigMessage = Any

#: no model configuration is larger; a file that is, is something else
MAX_CONFIG_NBYTES = 16 << 20


def parse_text(text: str) -> ModelConfigMessage:
    """``config.pbtxt`` as a message. Raises ``PollFailed`` with line, column and what is wrong there."""
    message = model_config_pb2.ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise PollFailed(f"failed to read text proto from config.pbtxt: {error}") from error
    return message


def parse_json(text: str) -> ModelConfigMessage:
    """A configuration from JSON by protobuf's rules: camelCase or snake_case names, numbers or strings of digits.

    Raises ``InvalidArgument`` with what is wrong. Unknown names are errors.
    """
    message = model_config_pb2.ModelConfig()
    if len(text) > MAX_CONFIG_NBYTES:
        raise InvalidArgument(f"a model configuration may have {MAX_CONFIG_NBYTES} bytes at most")
    try:
        json_format.Parse(text, message)
    except json_format.ParseError as error:
        raise InvalidArgument(str(error)) from error
    except RecursionError as error:
        raise InvalidArgument("the JSON is nested too deeply") from error
    return message


def to_json(message: ModelConfigMessage) -> str:
    """Canonical JSON of a configuration."""
    return msgspec.json.encode(_plain(message)).decode()


def decode(config_json: str) -> ModelConfig:
    """The typed view of canonical JSON. Raises ``InvalidArgument`` for an enum's number that has no name."""
    try:
        return decode_config(config_json)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"the model configuration has an unknown value: {error}") from error


def copy(message: ModelConfigMessage) -> ModelConfigMessage:
    duplicate = model_config_pb2.ModelConfig()
    duplicate.CopyFrom(message)
    return duplicate


# ------------------------------------------------------------------------------------- protobuf message -> plain data

_Convert = Callable[[Any], Any]
#: message type -> how to print each of its fields, in the order of declaration
_printers: dict[str, tuple[tuple[str, Callable[[Any, str], Any]], ...]] = {}


class _Absent:
    pass


_ABSENT = _Absent()


def _plain(message: Any) -> dict[str, Any]:
    descriptor = message.DESCRIPTOR
    printers = _printers.get(descriptor.full_name)
    if printers is None:
        printers = tuple((field.name, _printer(field)) for field in descriptor.fields)
        _printers[descriptor.full_name] = printers
    printed = ((name, print_field(message, name)) for name, print_field in printers)
    return {name: value for name, value in printed if value is not _ABSENT}


def _printer(field: Any) -> Callable[[Any, str], Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        convert_key = _map_key
        convert = _converter(field.message_type.fields_by_name["value"])
        return lambda message, name: {
            convert_key(key): convert(value) for key, value in sorted(getattr(message, name).items())
        }
    convert = _converter(field)
    if _is_repeated(field):
        return lambda message, name: [convert(value) for value in getattr(message, name)]
    if field.has_presence:  # sub-messages and members of a oneof
        return lambda message, name: convert(getattr(message, name)) if message.HasField(name) else _ABSENT
    return lambda message, name: convert(getattr(message, name))


def _is_repeated(field: Any) -> bool:
    try:
        return bool(field.is_repeated)
    except AttributeError:  # protobuf before 6
        return bool(field.label == field.LABEL_REPEATED)


def _converter(field: Any) -> _Convert:
    if field.message_type is not None:
        return _plain
    if field.enum_type is not None:
        names = field.enum_type.values_by_number
        return lambda number: names[number].name if number in names else number
    if field.type == field.TYPE_FLOAT:
        return _shortest_float
    if field.type == field.TYPE_DOUBLE:
        return _integral
    return lambda value: value


def _map_key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)


def _integral(value: float) -> float | int:
    """Protobuf prints 1.0 as 1."""
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else value


def _shortest_float(value: float) -> float | int:
    """The shortest decimal that is the same 32-bit number: 0.1, not 0.10000000149011612."""
    for digits in (6, 7, 8):
        text = f"{value:.{digits}g}"
        short = float(text)
        probe = model_config_pb2.ModelSequenceBatching.StrategyDirect(minimum_slot_utilization=short)
        if probe.minimum_slot_utilization == value:
            return _integral(short)
    return _integral(value)
