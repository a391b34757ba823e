"""A place in a client's memory, as the parameters of an input or an output name it (inventory X-22)."""

from typing import Any

from conch.errors import MalformedJson
from conch.requester.inference import RegionWindow
from conch.requester.regions import RegionTableView
from frontends.http.json_values import NOT_STRING, unsigned


def region_window(parameters: dict[str, Any], regions: RegionTableView) -> RegionWindow:
    """``parameters`` has a ``shared_memory_region``. Raises ``ClientError`` with Triton's texts."""
    name = parameters["shared_memory_region"]
    if type(name) is not str:
        raise MalformedJson(f"Unable to parse 'shared_memory_region': {NOT_STRING}")
    offset = unsigned(parameters.get("shared_memory_offset", 0), "Unable to parse 'shared_memory_offset'")
    nbytes = unsigned(parameters.get("shared_memory_byte_size", 0), "Unable to parse 'shared_memory_byte_size'")
    return regions.window(name, offset, nbytes)
