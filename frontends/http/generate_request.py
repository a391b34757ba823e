"""The body of a generate request: members of one JSON object become inputs or parameters, by their names."""

import json
import re
from collections.abc import Iterable
from typing import Any, Final

import orjson

from conch.datatypes import ITEM_SIZES
from conch.errors import ConchError, InvalidArgument, MalformedJson, TooLarge
from conch.messages import Parameter
from conch.requester.inference import InferenceCall, TensorInput
from conch.requester.models import InputRule, ReadyModel
from conch.requester.validation import refused
from frontends.http.json_values import NOT_STRING, parse, too_deep
from frontends.http.request_body import Body
from frontends.http.tensor_json import to_wire

_NESTED: Final = "parameters"
_SIGNED_64: Final = range(-(2**63), 2**63)
_PARSED: Final = range(-(2**63), 2**64)
#: valid JSON that spells no name with an escape; possessive, so that it takes linear time
_PLAIN_NAMES: Final = re.compile(rb'(?:[^"]++|"[^"\\]*+"|"(?:[^"\\]++|\\.)*+"(?![ \t\r\n]*+:))*+')


class _Object(tuple[tuple[str, Any], ...]):
    """A JSON object with all its members, those of one name too."""


def decode(body: Body, model: ReadyModel, max_input_nbytes: int) -> InferenceCall:
    """Raises ``ClientError`` with Triton's texts."""
    text = bytes(body) if type(body) is memoryview else body
    request = parse(text, max_input_nbytes)
    call = InferenceCall([])
    if type(request) is dict:
        call.client_id = request.get("id", "")
        if type(call.client_id) is not str:
            raise MalformedJson(f"Unable to parse 'id': {NOT_STRING}")
        if _may_repeat(bytes(text), model):
            request = _with_repetitions(bytes(text))
    _Reading(call, model, max_input_nbytes).take_object(request)
    return call


def _may_repeat(text: bytes, model: ReadyModel) -> bool:
    """Whether two members could have the name of one input. Exact parsing takes long and is rarely needed."""
    if any(text.count(orjson.dumps(name)) > 1 for name in model.inputs):
        return True
    return b"\\" in text and _PLAIN_NAMES.fullmatch(text) is None


def _with_repetitions(text: bytes) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_Object, parse_int=_integer)
    except RecursionError:
        raise too_deep() from None


def _integer(text: str) -> int | float:
    # the text has been parsed before: it is in the range of a double
    value = int(text)
    return value if value in _PARSED else float(value)


class _Reading:
    """One request while it is read."""

    def __init__(self, call: InferenceCall, model: ReadyModel, max_input_nbytes: int) -> None:
        self._call = call
        self._model = model
        self._max_nbytes = max_input_nbytes
        self._nbytes = 0
        self._parameters: dict[str, Parameter] = {}
        call.parameters = self._parameters

    def take_object(self, request: Any) -> None:
        for name, value in _members(request, "attempt to get members for non-object"):
            if name != _NESTED:
                self._take(name, value)
                continue
            if name in self._model.inputs:
                raise InvalidArgument(f"Keyword '{name}' for nested schema also given as input tensor name")
            wrong = f"Expected JSON object for keyword: '{name}': attempt to access JSON non-object as object"
            for nested_name, nested_value in _members(value, wrong):
                try:
                    self._take(nested_name, nested_value)
                except ConchError as error:
                    raise type(error)(f"Converting keyword: '{name}': {error.message}") from None

    def _take(self, name: str, value: Any) -> None:
        rule = self._model.inputs.get(name)
        if rule is None:
            self._parameters[name] = _parameter(name, value)
            return
        tensor = self._tensor(rule, value if type(value) is list else [value])
        if any(known.name == name for known in self._call.inputs):
            raise refused(self._call, f"input '{name}' already exists in request")
        self._call.inputs.append(tensor)

    def _tensor(self, rule: InputRule, data: list[Any]) -> TensorInput:
        item_nbytes = ITEM_SIZES.get(rule.datatype, 0)
        if item_nbytes:
            self._count(rule.name, len(data) * item_nbytes)
            shape = self._shape(rule, len(data))
            return TensorInput(rule.name, rule.datatype, shape, to_wire(rule.name, rule.datatype, data, len(data)))
        wire = to_wire(rule.name, rule.datatype, data, len(data))
        self._count(rule.name, len(wire))
        return TensorInput(rule.name, rule.datatype, self._shape(rule, len(data) if wire else 0), wire)

    def _count(self, name: str, nbytes: int) -> None:
        if self._nbytes + nbytes > self._max_nbytes:
            raise TooLarge(
                f"request size of {self._nbytes} bytes with input '{name}' of size {nbytes} bytes exceeds the maximum "
                f"allowed input size of {self._max_nbytes}. Use --http-max-input-size to increase the limit."
            )
        self._nbytes += nbytes

    def _shape(self, rule: InputRule, elements: int) -> tuple[int, ...]:
        batching = self._model.max_batch_size > 0
        if not elements:
            return _empty_shape(rule.dims, batching)
        shape = [-1, *rule.dims] if batching else list(rule.dims)
        for dim in shape:
            if dim >= 0:
                elements, rest = divmod(elements, dim) if dim else (0, 1)
                if rest:
                    raise _unfit(rule.name)
        for axis in reversed(range(len(shape))):
            if shape[axis] < 0:
                shape[axis], elements = elements, 1
        if elements != 1:
            raise _unfit(rule.name)
        return tuple(shape)


def _empty_shape(dims: tuple[int, ...], batching: bool) -> tuple[int, ...]:
    """One batch item, with nothing along the innermost variable dimension."""
    shape = list(dims)
    filled = 0
    for axis in reversed(range(len(shape))):
        if shape[axis] < 0:
            shape[axis], filled = filled, 1
    return (1, *shape) if batching else tuple(shape)


def _unfit(name: str) -> InvalidArgument:
    return InvalidArgument(f"The schema can not convert input '{name}' to tensor with proper shape")


def _members(value: Any, wrong: str) -> Iterable[tuple[str, Any]]:
    if type(value) is dict:
        return value.items()
    if type(value) is _Object:
        return value
    raise MalformedJson(wrong)


def _parameter(name: str, value: Any) -> Parameter:
    # unlike in an inference request, all names are the model's
    match value:
        case bool() | str() | float():
            return value
        case int():
            return value if value in _SIGNED_64 else float(value)
    raise InvalidArgument(f"parameter '{name}' has invalid type. It should be either 'int', 'bool', or 'string'.")
