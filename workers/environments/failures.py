"""Why there is no environment, in words that clients may read."""

import re
from collections.abc import Iterable

_MAX_LINE_CHARACTERS = 300
_MAX_LINES = 6
_ADDRESS = re.compile(r"\b[a-z+]+://[^\s,;'\")\]]+")
_PATH = re.compile(r"(?<![\w.:/~])~?/(?:[^\s/'\",:;)\]]+/)*([^\s/'\",:;)\]]*)")


class EnvironmentFailed(Exception):
    """``str`` is the reason, for clients."""


def without_places(text: str) -> str:
    """Paths are cut to their last part; addresses, which may hold passwords, go altogether."""
    return _PATH.sub(lambda found: found[1] or "[folder]", _ADDRESS.sub("[address]", text))


def telling(lines: Iterable[str]) -> str:
    """The end of what a program printed, on lines of their own: those that speak of errors, where some do."""
    printed = [line.strip() for line in lines if line.strip()]
    errors = [line for line in printed if line.lower().startswith(("error", "fatal"))]
    return "\n".join(_shortened(without_places(line)) for line in (errors or printed)[-_MAX_LINES:])


def _shortened(line: str) -> str:
    return line if len(line) <= _MAX_LINE_CHARACTERS else f"{line[:_MAX_LINE_CHARACTERS]} …"
