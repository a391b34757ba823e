"""Prometheus' text format, written as Triton writes it: integers without a point, no ``_total``, no ``_created``."""

from collections.abc import Iterable

from frontends.metrics.families import Family, Sample

CONTENT_TYPE = b"Content-Type: text/plain; charset=utf-8\r\n"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def exposition(families: Iterable[Family]) -> bytes:
    """A family without samples is left out, headings too."""
    lines = []
    for family in families:
        if family.samples:
            lines.append(f"# HELP {family.name} {family.help}")
            lines.append(f"# TYPE {family.name} {family.kind}")
            lines += [f"{family.name}{_labels(sample)} {_number(sample.value)}" for sample in family.samples]
    lines.append("")
    return "\n".join(lines).encode(errors="replace")


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in sample.labels) + "}"


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.16g}"
