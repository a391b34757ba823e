"""The outputs that an inference request lists, and how their client wants them."""

from typing import Any, Final, NamedTuple

from conch.errors import InvalidArgument
from conch.requester.inference import InferenceCall, RegionWindow
from conch.requester.regions import RegionTableView
from frontends.http.json_values import NOT_STRING, boolean, member, unsigned
from frontends.http.request_regions import region_window

_ABSENT: Final = object()
_NO_PARAMETERS: Final[dict[str, Any]] = {}


class OutputFormat(NamedTuple):
    """How the client wants one output. ``classes`` > 0: the top classes instead of the tensor."""

    binary: bool
    classes: int


class OutputFormats(NamedTuple):
    """``listed`` for the outputs that the request names, ``default`` for all when it names none."""

    default: OutputFormat
    listed: dict[str, OutputFormat]


JSON_FORMAT: Final = OutputFormat(False, 0)
BINARY_FORMAT: Final = OutputFormat(True, 0)
ALL_JSON: Final = OutputFormats(JSON_FORMAT, {})
ALL_BINARY: Final = OutputFormats(BINARY_FORMAT, {})


def take_outputs(
    entries: list[Any], call: InferenceCall, regions: RegionTableView, formats: OutputFormats
) -> OutputFormats:
    """Fills in the call's ``outputs`` and ``targets``. Raises ``ClientError`` with Triton's texts."""
    if not entries:
        return formats
    names = []
    listed: dict[str, OutputFormat] = {}
    targets: dict[str, RegionWindow] = {}
    for entry in entries:
        parameters = entry.get("parameters") if type(entry) is dict else None
        if type(parameters) is not dict:
            parameters = _NO_PARAMETERS
        in_region = "shared_memory_region" in parameters
        if in_region:
            _check_region_alone(parameters)
        name: str = member(entry, "name", str, NOT_STRING)
        names.append(name)
        if in_region:
            targets[name] = region_window(parameters, regions)
            listed[name] = JSON_FORMAT
            continue
        classes = binary = _ABSENT
        if parameters:
            classes = parameters.get("classification", _ABSENT)
            binary = parameters.get("binary_data", _ABSENT)
        class_count = 0 if classes is _ABSENT else unsigned(classes, "Unable to set 'classification'")
        is_binary = binary is not _ABSENT and boolean(binary, "Unable to parse 'binary_data'")
        listed[name] = OutputFormat(is_binary, class_count)
    call.outputs = tuple(names)
    if targets:
        call.targets = targets
    return OutputFormats(formats.default, listed)


def _check_region_alone(parameters: dict[str, Any]) -> None:
    if "classification" in parameters:
        raise InvalidArgument("Output can't set both 'shared_memory_region' and 'classification'")
    if "binary_data" in parameters and boolean(parameters["binary_data"], "Unable to set 'binary_data'"):
        raise InvalidArgument("Output can't set both 'shared_memory_region' and 'binary_data'")
