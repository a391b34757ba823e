"""Modules that are imported when something of them is first used, because they take long and few processes need them:

    if TYPE_CHECKING:
        import asyncio
    else:
        asyncio = Later("asyncio")

Not for modules of ours: where a model runs, none can be imported later.
"""

import importlib
from typing import Any


class Later:
    """For any thread. Annotations of parameters that name such a module have to be quoted."""

    def __init__(self, name: str) -> None:
        self._module = name

    def __getattr__(self, name: str) -> Any:
        found = getattr(importlib.import_module(self._module), name)
        setattr(self, name, found)
        return found
