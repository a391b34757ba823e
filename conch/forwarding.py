"""Headers of a client's request that become parameters of its inference (inventory X-19b)."""

import re
from collections.abc import Iterable
from typing import Final

from conch.errors import InvalidArgument

_RESERVED: Final = frozenset(
    {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"}
)
_RESERVED_PREFIX: Final = "triton_"


class HeaderForwarding:
    """False when ``pattern`` is empty: nothing is forwarded. Raises ``InvalidArgument`` for what is no pattern.

    A header is forwarded when the pattern is found anywhere in its name, which is compared as the client spelled it
    unless the pattern begins with ``(?i)``. Those in ``withheld``, in lower case, never are.
    """

    def __init__(self, pattern: str, flag: str, withheld: frozenset[str] = frozenset()) -> None:
        self._withheld = withheld
        try:
            self._pattern = re.compile(pattern) if pattern else None
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidArgument(f"--{flag} '{pattern}' is not a regular expression: {error}") from None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def parameters(self, headers: Iterable[tuple[str, str]]) -> dict[str, str]:
        """What is to be added to the parameters of a request with these names and values; of a name that comes more
        than once, the last value. Raises ``InvalidArgument`` for reserved names."""
        found: dict[str, str] = {}
        if self._pattern is None:
            return found
        for name, value in headers:
            if self._pattern.search(name) is None or name.lower() in self._withheld:
                continue
            if name in _RESERVED or name.startswith(_RESERVED_PREFIX):
                raise InvalidArgument(f"Header '{name}' is reserved for Triton usage and cannot be forwarded.")
            found[name] = value
        return found
