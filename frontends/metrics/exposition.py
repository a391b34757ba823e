"""Prometheus' text format, written as Triton writes it: integers without a point, no ``_total``, no ``_created``."""

import math
from collections.abc import Iterable

from frontends.metrics.families import Family, Sample

CONTENT_TYPE = b"Content-Type: text/plain; charset=utf-8\r\n"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


def exposition(families: Iterable[Family]) -> bytes:
    """A family without samples is left out, headings too, and the help of one that has none."""
    lines = []
    for family in families:
        if family.samples:
            if family.help:
                lines.append(f"# HELP {family.name} {family.help.translate(_HELP_ESCAPES)}")
            lines.append(f"# TYPE {family.name} {family.kind}")
            lines += [
                f"{family.name}{sample.suffix}{_labels(sample)} {number(sample.value)}" for sample in family.samples
            ]
    lines.append("")
    return "\n".join(lines).encode(errors="replace")


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sample.labels) + "}"


def number(value: int | float) -> str:
    """With 16 digits at most; what is not finite in Triton's spelling."""
    if isinstance(value, int):
        return str(value)
    if math.isfinite(value):
        return f"{value:.16g}"
    return "Nan" if math.isnan(value) else f"{value:+.0f}".replace("inf", "Inf")
