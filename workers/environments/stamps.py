"""Whether what an environment was made from is still the same: a look at files' times, cheap enough for every start."""

import os
import re
from pathlib import Path

from workers.environments.choice import Wanted
from workers.environments.failures import EnvironmentFailed

_INCLUDE = re.compile(r"^\s*(?:-[rc][ =]?|--(?:requirement|constraint)[ =])\s*(\S+)", re.MULTILINE)


def now(wanted: Wanted) -> str:
    """Differs once an archive or a list of packages is another one, or packages were installed into a folder."""
    path = Path(wanted.path)
    if wanted.kind == "requirements":
        looked_at = lists(path)
    elif path.is_dir():
        looked_at = [path / "bin" / "python", *sorted(path.glob("lib/python3*/site-packages"))]
    else:
        looked_at = [path]
    return "\n".join(_stamp(place) for place in looked_at)


def check(wanted: Wanted, stamp: str) -> None:
    """Raises ``EnvironmentFailed`` unless all is as it was when ``stamp`` was taken."""
    if now(wanted) != stamp:
        raise EnvironmentFailed("it was changed while the environment was made; load the model again")


def lists(file: Path) -> list[Path]:
    """A list of packages, and the lists and constraints that it includes, as far as they can be read."""
    found: list[Path] = []
    remaining = [file]
    while remaining:
        path = remaining.pop(0)
        if path in found:
            continue
        try:
            text = path.read_text(errors="replace")
        except OSError:  # pip says what is wrong
            continue
        found.append(path)
        # normalised, or lists that include each other would never end
        remaining += [Path(os.path.normpath(path.parent / name)) for name in _INCLUDE.findall(text)]
    return found


def _stamp(path: Path) -> str:
    try:
        found = os.stat(path)
    except OSError as error:
        return f"{path} {error.errno}"
    return f"{path} {found.st_ino} {found.st_size} {found.st_mtime_ns}"
