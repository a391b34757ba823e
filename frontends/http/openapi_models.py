"""JSON schemas of one model's requests and responses, and requests that it takes."""

import itertools
from collections.abc import Iterable
from math import prod
from typing import Any, Final

from conch.model_config import ModelInput, ModelOutput
from conch.requester.models import ReadyModel
from frontends.http.openapi_parts import BOOLEAN, COUNT, PARAMETERS, STRING, Schema, listed, record, reference

#: an image
_MAX_EXAMPLE_ELEMENTS: Final = 200_000
#: JSON has no numbers for them
_BINARY_ONLY: Final = frozenset({"FP16", "BF16"})


def _integer(bits: int, signed: bool) -> Schema:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return {"type": "integer", "minimum": low, "maximum": high}


ELEMENTS: Final[dict[str, Schema]] = {
    "BOOL": BOOLEAN,
    **{f"INT{bits}": _integer(bits, signed=True) for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": _integer(bits, signed=False) for bits in (8, 16, 32, 64)},
    "FP32": {"type": "number"},
    "FP64": {"type": "number"},
    "BYTES": STRING,
}
#: ``data`` of a datatype: a flat list, or nested ones
DATA_SCHEMAS: Final[dict[str, Schema]] = {
    f"{datatype}Data": listed({"anyOf": [element, reference(f"{datatype}Data")]})
    for datatype, element in ELEMENTS.items()
}
_IN_REGION: Final = record(
    {"shared_memory_region": STRING, "shared_memory_byte_size": COUNT, "shared_memory_offset": COUNT},
    ("shared_memory_region", "shared_memory_byte_size"),
)


class ModelSchemas:
    """``infer`` and ``generate`` are media types (schema and examples) of the requests; ``infer_response`` and
    ``generate_response`` names of schemas. Decoupled models have none for ``infer``. ``schemas`` and ``examples`` are
    to be added to the document; the examples have ``example_elements`` elements, which are at most
    ``max_example_elements``."""

    def __init__(self, model: ReadyModel, prefix: str, max_example_elements: int) -> None:
        self._model = model
        self._batching = model.max_batch_size > 0
        self.infer_response = f"{prefix}_infer_response"
        self.generate_response = f"{prefix}_generate_response"
        self.schemas = {
            f"{prefix}_generate_request": self._generate_request(),
            self.generate_response: self._generate_response(),
        }
        if not model.decoupled:
            self.schemas[f"{prefix}_infer_request"] = self._infer_request()
            self.schemas[self.infer_response] = self._infer_response()
        data = _example_data(model, min(max_example_elements, _MAX_EXAMPLE_ELEMENTS))
        self.example_elements = sum(map(len, data.values()))
        self.examples: dict[str, Any] = {}
        if data:
            if not model.decoupled:
                self.examples[f"{prefix}_infer"] = {"value": self._infer_example(data)}
            self.examples[f"{prefix}_generate"] = {"value": {name: _single(values) for name, values in data.items()}}
        self.infer = self._media(f"{prefix}_infer_request", f"{prefix}_infer")
        self.generate = self._media(f"{prefix}_generate_request", f"{prefix}_generate")

    def _media(self, schema: str, example: str) -> dict[str, Any]:
        media: dict[str, Any] = {"schema": reference(schema)}
        if example in self.examples:
            media["examples"] = {"example": {"$ref": f"#/components/examples/{example}"}}
        return media

    # ------------------------------------------------------------------------------------------------------- infer

    def _infer_request(self) -> Schema:
        inputs = self._model.config.input
        required = [tensor.name for tensor in inputs if not tensor.optional]
        names = [tensor.name for tensor in self._model.config.output]
        wanted = record(
            {
                "name": {"enum": names},
                "parameters": record({"binary_data": BOOLEAN, "classification": COUNT, **_IN_REGION["properties"]}),
            },
            ("name",),
        )
        there = [{"contains": record({"name": {"const": name}}, ("name",))} for name in required]
        given: Schema = {
            **listed({"oneOf": [self._input(tensor) for tensor in inputs]}),
            "minItems": len(required),
            "maxItems": len(inputs),
        }
        if there:
            given["allOf"] = there
        return record(
            {
                "id": STRING,
                "parameters": PARAMETERS,
                "inputs": given,
                "outputs": {**listed(wanted), "description": "All of them, if there are none"},
            },
            ("inputs",),
        )

    def _input(self, tensor: ModelInput) -> Schema:
        ways: list[Schema] = [
            record({"parameters": record({"binary_data_size": COUNT}, ("binary_data_size",))}, ("parameters",)),
            record({"parameters": _IN_REGION}, ("parameters",)),
        ]
        if tensor.datatype not in _BINARY_ONLY:
            ways.insert(0, record({"data": reference(f"{tensor.datatype}Data")}, ("data",)))
        return {**self._tensor(tensor), "oneOf": ways}

    def _tensor(self, tensor: ModelInput | ModelOutput) -> Schema:
        return record(
            {"name": {"const": tensor.name}, "datatype": {"const": tensor.datatype}, "shape": self._shape(tensor)},
            ("name", "datatype", "shape"),
        )

    def _shape(self, tensor: ModelInput | ModelOutput) -> Schema:
        dims: list[Schema] = [{"const": dim} if dim >= 0 else COUNT for dim in tensor.dims]
        if self._batching:
            dims.insert(0, {"type": "integer", "minimum": 1, "maximum": self._model.max_batch_size})
        shape: Schema = {"type": "array", "items": False, "minItems": len(dims), "maxItems": len(dims)}
        return {**shape, "prefixItems": dims} if dims else shape

    def _infer_response(self) -> Schema:
        outputs: list[Schema] = []
        for tensor in self._model.config.output:
            shown = self._tensor(tensor)
            if tensor.datatype not in _BINARY_ONLY:
                shown["properties"]["data"] = listed(ELEMENTS[tensor.datatype])
            shown["properties"]["parameters"] = record({"binary_data_size": COUNT, **_IN_REGION["properties"]})
            outputs.append(shown)
        return record(
            {**self._names(), "parameters": PARAMETERS, "outputs": listed({"anyOf": outputs} if outputs else {})},
            ("model_name", "model_version", "outputs"),
        )

    def _names(self) -> dict[str, Schema]:
        return {
            "id": STRING,
            "model_name": {"const": self._model.name},
            "model_version": {"const": str(self._model.version)},
        }

    def _infer_example(self, data: dict[str, list[Any]]) -> dict[str, Any]:
        return {
            "inputs": [
                {
                    "name": tensor.name,
                    "datatype": tensor.datatype,
                    "shape": [*([1] if self._batching else []), *_example_dims(tensor)],
                    "data": data[tensor.name],
                }
                for tensor in self._model.config.input
                if tensor.name in data
            ]
        }

    # ---------------------------------------------------------------------------------------------------- generate

    def _generate_request(self) -> Schema:
        inputs = self._model.config.input
        return record(
            {"id": STRING, "parameters": PARAMETERS, **_values(inputs)},
            tuple(tensor.name for tensor in inputs if not tensor.optional),
            additionalProperties={**PARAMETERS["additionalProperties"], "description": "A parameter of the model"},
        )

    def _generate_response(self) -> Schema:
        return record({**_values(self._model.config.output), **self._names()}, ("model_name", "model_version"))


def _values(tensors: Iterable[ModelInput | ModelOutput]) -> dict[str, Schema]:
    return {
        tensor.name: {"anyOf": [ELEMENTS[tensor.datatype], listed(ELEMENTS[tensor.datatype])]}
        for tensor in tensors
        if tensor.datatype not in _BINARY_ONLY
    }


# ----------------------------------------------------------------------------------------------------------- examples


def _example_dims(tensor: ModelInput) -> list[int]:
    return [dim if dim >= 0 else 1 for dim in tensor.dims]


def _example_data(model: ReadyModel, max_elements: int) -> dict[str, list[Any]]:
    """Values for the inputs that there must be (or, if there need not be any, for the first). Empty if JSON cannot hold
    them, or only with great length."""
    inputs = [tensor for tensor in model.config.input if not tensor.optional] or list(model.config.input[:1])
    counts = [prod(_example_dims(tensor)) for tensor in inputs]
    if sum(counts) > max_elements or any(tensor.datatype in _BINARY_ONLY for tensor in inputs):
        return {}
    return {tensor.name: _example_values(tensor.datatype, count) for tensor, count in zip(inputs, counts, strict=True)}


def _example_values(datatype: str, elements: int) -> list[Any]:
    cycle: Iterable[Any]
    match datatype:
        case "BYTES":
            cycle = ("text",)
        case "BOOL":
            cycle = (True, False)
        case "FP32" | "FP64":
            cycle = (0.5, 0.25, 0.75)
        case _:
            cycle = range(10)
    return list(itertools.islice(itertools.cycle(cycle), elements))


def _single(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
