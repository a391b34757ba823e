"""Parameters of requests and responses as models give them."""

from typing import Any

from conch.messages import Parameter
from workers.python_utils.failures import TritonModelException


def checked_parameters(parameters: dict[str, Any] | None) -> dict[str, Parameter]:
    """The same with Python's own types instead of what inherits from them, such as NumPy's scalars. Raises
    ``TritonModelException`` for what cannot travel."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise TypeError(f"parameters must be a dict, got {type(parameters)}")
    checked: dict[str, Parameter] = {}
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        checked[str.__str__(key)] = _plain(value)
    return checked


def _plain(value: Any) -> Parameter:
    match value:
        case bool():
            return value
        case int():
            if not -(2**63) <= value < 2**64:
                raise TritonModelException(f"Expect parameters values of at most 64 bits, found {value}")
            return int(value)
        case float():
            return float(value)
        case str():
            return str.__str__(value)  # an enumeration's own is its name
    raise TritonModelException(f"Expect parameters values to have type bool/int/float/str, found type {type(value)}")
