"""Tables on a terminal, drawn as Triton draws them."""

import textwrap
from collections.abc import Iterable, Sequence

from conch.messages import ModelEntry

#: of the last column, which holds the long texts
_WRAP_COLUMNS = 100


def draw(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their longest line; the last one wraps."""
    cells = [[[name] for name in header], *(_wrapped(row) for row in rows)]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(header))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [rule]
    for number, row in enumerate(cells):
        for i in range(max(len(cell) for cell in row)):
            texts = (cell[i] if i < len(cell) else "" for cell in row)
            lines.append("|" + "|".join(f" {text:<{width}} " for text, width in zip(texts, widths, strict=True)) + "|")
        if number == 0:
            lines.append(rule)
    lines.append(rule)
    return "\n".join(lines) + "\n"


def _wrapped(row: Sequence[str]) -> list[list[str]]:
    *short, last = row
    lines = [part for line in last.splitlines() for part in textwrap.wrap(_shown(line), _WRAP_COLUMNS) or [""]]
    return [*([_shown(text)] for text in short), lines or [""]]


def _shown(text: str) -> str:
    """Names of folders may have line feeds in them, and what a terminal takes for commands."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def model_table(models: Iterable[ModelEntry]) -> str:
    """Triton's table of models: READY, or the state and its reason."""
    rows = []
    for entry in models:
        status = f"{entry.state}: {entry.reason}" if entry.reason else entry.state
        rows.append((entry.name, str(entry.version) if entry.version > 0 else "-", status))
    return draw(("Model", "Version", "Status"), rows)
