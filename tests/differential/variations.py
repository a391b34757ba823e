"""Wrong requests made from a good one: each of its parts is left out, or replaced by what does not belong there."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

#: stands for leaving the part out
MISSING = object()
WRONG: tuple[Any, ...] = (MISSING, None, True, -1, 0, 1, 1.5, 2**31, 2**63, 2**64, "", "x", [], {}, [[1]], {"a": 1})

Path = tuple[str | int, ...]


def name_of(path: Path, value: Any) -> str:
    shown = "missing" if value is MISSING else repr(value)
    return f"{'.'.join(map(str, path))} = {shown}"


def variations(good: Any, paths: Sequence[Path], values: Sequence[Any] = WRONG) -> Iterator[tuple[str, Any]]:
    """Every path with every value, with a name. A path may end in a member that ``good`` does not have."""
    for path in paths:
        for value in values:
            changed = copy.deepcopy(good)
            place: Any = changed
            for step in path[:-1]:
                if isinstance(place, dict) and step not in place:
                    place[step] = {}
                place = place[step]
            last = path[-1]
            if value is not MISSING:
                place[last] = value
            elif isinstance(last, int) or last in place:
                del place[last]
            else:
                continue
            yield name_of(path, value), changed
