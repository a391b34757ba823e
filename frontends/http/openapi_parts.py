"""Pieces of OpenAPI that its modules share."""

from typing import Any, Final

Schema = dict[str, Any]


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def record(properties: dict[str, Schema], required: tuple[str, ...] = (), **more: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def json_body(schema: Schema, text: str = "OK") -> dict[str, Any]:
    """The ``responses`` entry for 200."""
    return {"200": {"description": text, "content": {"application/json": {"schema": schema}}}}


STRING: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
BOOLEAN: Final[Schema] = {"type": "boolean"}
#: values of parameters
SCALAR: Final[Schema] = {"type": ["string", "number", "boolean"]}
PARAMETERS: Final[Schema] = {"type": "object", "additionalProperties": SCALAR}

ERROR_RESPONSES: Final[dict[str, Any]] = {
    "default": {"description": "What went wrong", "content": {"application/json": {"schema": reference("Error")}}}
}
